"""Checks of the keys that say how labels are written and where they lie, and how large images are."""

from collections.abc import Iterator

from settings.keys import MAX_SIDE_PX, DataConfig

VALIDATION = ("val", "valid", "validation")
"""Names of validation splits that are found without being named"""
WITHOUT_BOXES = ("synthetic", "label_maps")
FOLDERS = ("coco", "imagefolder", "voc", "yolo", "label_maps")
"""Sources whose images are files"""


def check_labels(data: DataConfig) -> Iterator[str]:
    """What is wrong with these keys, for people."""
    source = data.source
    if source in WITHOUT_BOXES and data.box_format not in (None, "coco"):
        yield (
            f"data.box_format {data.box_format}: has no effect with data.source {source}, which has no boxes of its own"
        )
    if source in WITHOUT_BOXES and data.category_offset:
        yield f"data.category_offset {data.category_offset}: has no effect with data.source {source}"
    if abs(data.category_offset) > 1:
        yield f"data.category_offset {data.category_offset}: must be -1, 0 or 1"
    for key in ("train_images", "val_images"):
        if source != "coco" and getattr(data, key) is not None:
            yield (
                f"data.{key} {getattr(data, key)}: only data.source coco has it; data.{key[:-7]}_split says where "
                f"those of {source} are"
            )
    if data.allow_unlabelled and source != "yolo":
        yield f"data.allow_unlabelled: has no effect with data.source {source}, which has no label file of each image"
    if data.follow_links and source not in FOLDERS:
        yield f"data.follow_links: has no effect with data.source {source}, whose images are no files of a folder"


def check_size(data: DataConfig) -> Iterator[str]:
    """What is wrong with data.image_size, for people."""
    given, shortest = data.image_size.longest, data.image_size.shortest
    longest = given if isinstance(given, int) else None
    for key, side in (("longest", longest), ("shortest", shortest)):
        if side is not None and side <= 0:
            yield f"data.image_size.{key} {side}: must be greater than 0"
    if longest is not None and shortest and shortest > longest:
        yield f"data.image_size.shortest {shortest}: exceeds longest {longest}"
    if longest is not None and longest > MAX_SIDE_PX:
        yield f"data.image_size.longest {longest}: at most {MAX_SIDE_PX} px"
