"""What was found, as files have it: drawings, label maps, predictions.json, COCO results."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data.coco_format import coco_results
from data.objects import Objects
from data.regions import label_map
from disk import WRITING, write_whole
from errors import UserError
from export.detector import LoadedDetector
from report.drawing import MOST_TAGS, draw_objects, legend_of, with_legend
from settings.tasks import EVERY_PIXEL
from tools.prediction_files import MARK, NAMES, RESULTS, is_video, real

JPEG_QUALITY = 90
PER_TAG_PX = 160
"""Side of a part of an image in which there is room for one tag"""
COCO_KEYS = {"image_id", "category_id", "file_name", "category_name"}
"""Entries of results by which ours are known"""


def texts_of(found: Objects, detector: LoadedDetector) -> list[str]:
    """Class and score of each object; the score of a region says nothing."""
    names = [detector.names[c] for c in found.classes]
    if detector.labels == "regions":
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, found.scores.tolist(), strict=True)]


def told_of(found: Objects, detector: LoadedDetector) -> list[str]:
    """The same for a line: of many objects how many of each class there are."""
    if len(found) <= MOST_TAGS:
        return texts_of(found, detector)
    return [
        f"{count} {name}"
        for name, count in Counter(detector.names[c] for c in found.classes).most_common()
    ]


def picture(image: np.ndarray, found: Objects, detector: LoadedDetector) -> Image.Image:
    """What is found on uint8 [H, W, 3], with a tag at each object, or a legend where all pixels have a class, or tags would hide
    what they name."""
    height, width = image.shape[:2]
    room = max(MOST_TAGS, height * width // PER_TAG_PX**2)
    if detector.labels not in EVERY_PIXEL and len(found) <= room:
        return draw_objects(image, found, texts_of(found, detector))
    return with_legend(draw_objects(image, found), legend_of(detector.names, [found]))


def save_drawing(drawn: Image.Image, file: Path) -> None:
    """As a JPEG that says what it is."""
    stream = io.BytesIO()
    drawn.save(stream, "JPEG", quality=JPEG_QUALITY, comment=MARK)
    write_whole(file, stream.getvalue())


def save_label_map(found: Objects, size: tuple[int, int], file: Path) -> None:
    """The class index of every pixel as a PNG that says what it is, of 16 bits if one is greater than 255."""
    labels = label_map(found, size) - 1  # every pixel has a class
    comment, stream = PngInfo(), io.BytesIO()
    comment.add_text("Comment", MARK)
    image = Image.fromarray(labels.astype(np.uint8) if labels.max() < 256 else labels)
    image.save(stream, "PNG", pnginfo=comment)
    write_whole(file, stream.getvalue())


class DrawnVideo:
    """An MP4 file that has its name when it is whole. Frames are made as large as the first."""

    def __init__(self, file: Path, rate: float):
        """
        Args:
            rate: frames a second.
        """
        self._file = file
        self._temporary = file.with_name(f"{WRITING}{file.name}")
        self._rate = rate
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def add(self, drawn: Image.Image) -> None:
        """
        Raises:
            OSError: if no video can be written.
        """
        if self._writer is None:
            self._size = (drawn.width, drawn.height)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._temporary), code, self._rate, self._size)
            if not self._writer.isOpened():
                raise OSError(f"{self._file}: no video can be written there")
        if (drawn.width, drawn.height) != self._size:  # a legend that got another line
            whole = Image.new("RGB", self._size)
            whole.paste(drawn, (0, 0))
            drawn = whole
        self._writer.write(cv2.cvtColor(np.asarray(drawn), cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Give it its name, if there is something in it."""
        if self._writer is not None:
            self._writer.release()
            self._temporary.replace(self._file)

    def give_up(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.release()
            self._temporary.unlink(missing_ok=True)


def entries(found: Objects, detector: LoadedDetector) -> list[dict[str, Any]]:
    """The objects as predictions.json has them."""
    rows: list[dict[str, Any]] = [
        {
            "label": detector.names[c],
            "score": round(score, 4),
            "box_xywh": [round(v, 2) for v in box],
        }
        for c, score, box in zip(
            found.classes, found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]
    for row, mask in zip(rows, [] if found.masks is None else found.masks, strict=False):
        row["mask_rle"] = mask.coco()
    return rows


class CocoResults:
    """COCO's results form, with the names that the ids stand for.

    Ids of images count the images from 1, and those of classes are their indices, unless an annotation file is given.
    """

    def __init__(
        self, files: Sequence[Path], names: Sequence[str], annotations: Path | None = None
    ):
        """
        Args:
            names: of the model's classes. annotations: a COCO file that has all images and classes.

        Raises:
            UserError: if it has not.
        """
        self.rows: list[dict[str, Any]] = []
        self._names = names
        self._ids: list[int | str] | None = None
        self._categories: Sequence[int] = range(len(names))
        self._seen = 0
        if annotations is not None:
            content = _read_annotations(annotations)
            self._categories = _category_ids(content, names, annotations)
            self._ids = _image_ids(content, files, annotations)

    def add(self, place: int, file: Path, frame: int | None, found: Objects) -> None:
        """What was found on the file at `place`."""
        self._seen += 1
        image_id = self._seen if self._ids is None else self._ids[place]
        alone = Objects(**{**found.columns(), "image": np.zeros(len(found), np.int64)})
        name = {"file_name": str(file)} | ({} if frame is None else {"frame": frame})
        for row, kind in zip(
            coco_results(alone, [image_id], self._categories), found.classes, strict=True
        ):
            self.rows.append({**row, "category_name": self._names[kind], **name})

    def write(self, file: Path) -> None:
        """All of them."""
        write_whole(file, json.dumps(self.rows) + "\n")


def refuse_lost_results(file: Path, out: Path | None = None) -> None:
    """
    Args:
        out: folder of drawings, which has lists of its own.

    Raises:
        UserError: if something lies there that is no earlier result list of ours, or `out` has another list there.
    """
    if out is not None and real(file) in (real(out / RESULTS), real(out / NAMES)):
        raise UserError(f"--json {file}: --out {out} has another list there; name another file")
    if not file.exists():
        if not file.parent.is_dir():
            raise UserError(f"--json {file}: there is no folder {file.parent}")
        return
    try:
        rows = json.loads(file.read_bytes())
        ours = isinstance(rows, list) and all(row.keys() >= COCO_KEYS for row in rows)
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(f"--json {file}: is not of an earlier prediction, and would be replaced")


def _read_annotations(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
        pairs = [(entry["id"], entry["file_name"]) for entry in content["images"]]
        pairs += [(entry["id"], entry["name"]) for entry in content["categories"]]
        if not all(isinstance(i, int | str) and isinstance(name, str) for i, name in pairs):
            raise ValueError("ids or names of another type")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"--ids {file}: no COCO annotation file ({type(error).__name__}: {error})"
        ) from error
    return content


def _category_ids(content: dict[str, Any], names: Sequence[str], file: Path) -> list[int]:
    known = {entry["name"]: entry["id"] for entry in content["categories"]}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(f"--ids {file}: has no category {missing[0]!r}, which the model knows")
    return [known[name] for name in names]


def _image_ids(content: dict[str, Any], files: Sequence[Path], where: Path) -> list[int | str]:
    """Ids by the longest end of a path that is a `file_name`."""
    known = {entry["file_name"]: entry["id"] for entry in content["images"]}
    ids = []
    for file in files:
        if is_video(file):
            raise UserError(f"--ids {where}: {file} is a video, whose frames have no ids there")
        parts = file.absolute().parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        name = next((end for end in ends if end in known), None)
        if name is None:
            raise UserError(f"--ids {where}: has no image {file}; leave --ids out to count images")
        ids.append(known[name])
    return ids
