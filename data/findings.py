"""What can be wrong with a dataset, and the list of what was found.

Readers and the image check write into one list of findings; training, evaluation and
`tools.check_data` decide by a finding's kind what to do about it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Remedy = Literal["refused", "left out", "repaired", "converted", "noted"]
"""What training does about it: ends before step 0; does without the image or the box; clips or
reorders a box; decodes it as a person would see it; nothing, since it is no defect of one image"""

IMAGE_KINDS = {
    *("missing image", "empty file", "unreadable image", "truncated image", "absurd size"),
}
"""Kinds that leave a whole image out"""

KINDS: dict[str, Remedy] = {
    # annotation files
    "broken row": "refused",
    "path leaves the folder": "refused",
    "duplicate image id": "refused",
    "annotation without image": "refused",
    "unknown category": "refused",
    "duplicate annotation id": "noted",
    "image without annotation": "noted",
    "size differs from annotation": "repaired",
    # images
    "missing image": "left out",
    "empty file": "left out",
    "unreadable image": "left out",
    "truncated image": "left out",
    "absurd size": "left out",
    "wrong extension": "converted",
    "16-bit image": "converted",
    "CMYK image": "converted",
    "palette image": "converted",
    "transparent image": "converted",
    "EXIF-rotated image": "converted",
    # boxes
    "box not a number": "left out",
    "box without area": "left out",
    "box with a negative side": "left out",
    "box inverted": "repaired",
    "box outside the image": "left out",
    "box partly outside": "repaired",
    "duplicate box": "noted",
    # whole dataset
    "duplicate image": "noted",
    "training image in validation": "noted",
}
"""Every kind of finding, and what is done about it. An image without boxes is none: it is data."""


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
        return KINDS[self.kind]

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}{f' ({self.detail})' if self.detail else ''}"


def printable(text: str, limit: int) -> str:
    """At most `limit` characters of `text`, without control characters and lone surrogates."""
    if len(text) > limit:
        text = f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


class Findings:
    """A list of findings in the order they were made."""

    def __init__(self) -> None:
        self._list: list[Finding] = []

    def add(
        self, kind: str, where: str, detail: str = "", image: tuple[str, int] | None = None
    ) -> None:
        """Note one finding. Its texts come from foreign files: they are made safe to print."""
        self._list.append(Finding(kind, printable(where, 1000), printable(detail, 200), image))

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
