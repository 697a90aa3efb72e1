"""What can be wrong with a dataset, and the list of what was found.

Readers and the image check write into one list of findings; training, evaluation and
`tools.check_data` decide by a finding's kind what to do about it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from errors import printable

Remedy = Literal["refused", "left out", "repaired", "converted", "noted"]
"""What training does about it: ends before step 0; does without the image or the box; clips or
reorders a box; decodes it as a person would see it; nothing, since it is no defect of one image"""

REMEDIES: dict[Remedy, str] = {
    "refused": "training does not start",
    "left out": "training leaves it out",
    "repaired": "training repairs it",
    "converted": "training converts it",
    "noted": "for your information",
}


@dataclass(frozen=True)
class Kind:
    """What a kind of finding means."""

    remedy: Remedy
    advice: str
    """What it means, or what to do about it, in a few words"""
    repaired: str | None = None
    """What a repaired copy does about it; None: it is left as it is"""
    whole_image: bool = False
    """It leaves a whole image out"""


def _image(advice: str) -> Kind:
    return Kind("left out", advice, "image left out, with its annotations", whole_image=True)


KINDS: dict[str, Kind] = {
    # the whole dataset, guessed from many annotations that are wrong in the same way
    "boxes of another format": Kind(
        "refused", "their four numbers are something else than what they are read as"
    ),
    "ids of classes off by one": Kind(
        "refused", "annotations count classes from another number than the names do"
    ),
    "images elsewhere": Kind("refused", "the files are in another folder"),
    "label files missing": Kind("refused", "many images have none, and would count as empty"),
    "links out of the folder": Kind("refused", "image files that are links to files elsewhere"),
    # annotation files
    "broken row": Kind("refused", "a row that cannot be understood; mend or delete it", "left out"),
    "path leaves the folder": Kind(
        "refused",
        "a file outside the dataset's folder; move it inside (a link that you made yourself: data.follow_links true)",
        "left out",
    ),
    "duplicate image id": Kind(
        "refused",
        "which annotations belong to which image cannot be known; make ids unique",
        "left out; ids are new",
    ),
    "annotation without image": Kind(
        "refused", "it belongs to an image that the file does not list; delete it", "left out"
    ),
    "unknown category": Kind(
        "refused",
        "its category is not among the dataset's; add that, or delete the annotation (of label maps "
        "data.label_values says which values are which data.labels)",
        "left out (pixels of a label map: ignored)",
    ),
    "duplicate annotation id": Kind("noted", "the ids of annotations are not used", "ids are new"),
    "image without label file": Kind(
        "noted", "taken as background; an empty label file says that nothing is on it"
    ),
    "image without annotation": Kind("noted", "an image file that no row mentions; it is not read"),
    "size differs from annotation": Kind(
        "repaired",
        "the size in the pixels is used; see whether its annotations fit it",
        "written with the size of the pixels",
    ),
    # images
    "missing image": _image("the file does not exist"),
    "empty file": _image("the file has no content"),
    "unreadable image": _image("not an image, or one that no decoder reads"),
    "truncated image": _image("the file ends too early; copy or download it again"),
    "absurd size": _image("more pixels than any photo has, so it is not even decoded"),
    "size differs from header": _image(
        "the header promises another size than the pixels have; save it anew"
    ),
    "wrong extension": Kind(
        "converted",
        "read by its content, whatever its name says",
        "copied under the extension of its format",
    ),
    "16-bit image": Kind("converted", "scaled to 8 bits", "encoded anew, as RGB"),
    "CMYK image": Kind(
        "converted",
        "made RGB; colours may look different from what a printer shows",
        "encoded anew, as RGB",
    ),
    "palette image": Kind("converted", "made RGB", "encoded anew, as RGB"),
    "transparent image": Kind("converted", "composited on white", "encoded anew, as RGB"),
    "EXIF-rotated image": Kind(
        "converted",
        "turned upright; annotations are expected in the upright image",
        "encoded anew, as RGB",
    ),
    # label maps
    "missing label map": _image("the image has none"),
    "unreadable label map": _image("not a picture whose pixels are numbers of classes"),
    "label map of another size": _image("it has another shape than its image"),
    "label map of too many values": Kind(
        "refused",
        "its pixels are hardly numbers of classes or of listed segments",
        "image left out, with its annotations",
        whole_image=True,
    ),
    "segments and label map disagree": Kind(
        "noted",
        "a segment without pixels, or pixels of none, of which nobody knows what they are",
        "segments without pixels left out; pixels of none are of none",
    ),
    # boxes
    "box not a number": Kind("left out", "one of its numbers is NaN or infinite", "box left out"),
    "box without area": Kind("left out", "its width or height is 0", "box left out"),
    "box with a negative side": Kind(
        "left out", "its width or height is negative; corners instead of sides?", "box left out"
    ),
    "box inverted": Kind(
        "repaired", "its corners are in the wrong order; they are swapped", "corners put in order"
    ),
    "box outside the image": Kind(
        "left out", "nothing of it lies inside its image", "box left out"
    ),
    "box partly outside": Kind("repaired", "clipped to the image", "box clipped"),
    "duplicate box": Kind("noted", "the same box and class twice in one image"),
    # masks
    "no mask": Kind("left out", "it has a box and no mask", "object left out"),
    "broken mask": Kind(
        "refused", "neither polygons nor run lengths; mend or delete it", "object left out"
    ),
    "mask without area": Kind("left out", "it covers no pixel", "object left out"),
    "mask ring without area": Kind(
        "repaired",
        "an outline of fewer than three corners; the object's other outlines count",
        "outline left out",
    ),
    "mask of another size": Kind(
        "left out", "its run lengths are of a picture of another shape", "object left out"
    ),
    "mask outside the image": Kind(
        "left out", "nothing of it lies inside its image", "object left out"
    ),
    "mask crosses itself": Kind(
        "noted", "its outline crosses itself, and what is inside is a matter of taste"
    ),
    "masks of one object": Kind(
        "noted", "two masks of a class are nearly the same; labelled twice?"
    ),
    "mask and box disagree": Kind(
        "noted", "its box is another than that around its mask; the mask counts"
    ),
    # classes, where every pixel has one
    "class without pixels": Kind("noted", "it has a name and no pixel in any split"),
    "class of validation alone": Kind(
        "noted", "it has pixels in validation and none in training, so it is never found"
    ),
    "gap in the ids of classes": Kind(
        "noted", "values between those that have a name; a pixel with one of them would end the run"
    ),
    # whole dataset
    "duplicate image": Kind("noted", "the same pixels twice in one split, which count double"),
    "training image in validation": Kind("noted", "it makes the validation look better than it is"),
}
"""Every kind of finding. An image without boxes is none: it is data."""

MASK_KINDS = {
    *(name for name in KINDS if "mask" in name or "label map" in name),
    *("class without pixels", "class of validation alone", "gap in the ids of classes"),
}
"""Those of datasets from which masks are read"""
GUESSED_KINDS = (
    *("boxes of another format", "ids of classes off by one", "images elsewhere"),
    *("links out of the folder", "label files missing"),
)
"""Those of the whole dataset, which explain many others and name the key that mends them"""
IMAGE_KINDS = {name for name, kind in KINDS.items() if kind.whole_image}


@dataclass(frozen=True)
class Finding:
    """One defect of one image, row or annotation."""

    kind: str
    """A key of KINDS"""
    where: str
    """File or row, and the annotation where it is one's"""
    detail: str = ""
    """What is there, and what was expected"""
    image: tuple[str, int] | None = None
    """(split, place in it) of the image it belongs to, if it belongs to one that is in the split"""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    @property
    def remedy(self) -> Remedy:
        return KINDS[self.kind].remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}{f' ({self.detail})' if self.detail else ''}"


class Findings:
    """A list of findings in the order they were made."""

    def __init__(self) -> None:
        self._list: list[Finding] = []
        self.notes: list[str] = []
        """What was found by itself, in a line each"""

    def add(
        self, kind: str, where: str, detail: str = "", image: tuple[str, int] | None = None
    ) -> None:
        """Note one finding. Its texts come from foreign files: they are made safe to print."""
        most = 400 if kind in GUESSED_KINDS else 200
        self._list.append(Finding(kind, printable(where, 1000), printable(detail, most), image))

    def drop(self, explained: Callable[[Finding], bool]) -> None:
        """Leave out findings that another one explains."""
        self._list = [finding for finding in self._list if not explained(finding)]

    def note(self, text: str) -> None:
        """Say what was found by itself, once."""
        line = printable(text, 400)
        if line not in self.notes:
            self.notes.append(line)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._list)

    def __len__(self) -> int:
        return len(self._list)

    def counts(self) -> Counter[str]:
        """Number of findings by kind."""
        return Counter(finding.kind for finding in self._list)

    def of_remedy(self, *remedies: Remedy) -> list[Finding]:
        """Findings that are dealt with in one of these ways."""
        return [finding for finding in self._list if finding.remedy in remedies]
