"""What the four numbers of a box are in a source's files."""

from data.boxes import VOC
from settings.keys import DataConfig

OTHER_NAMES = {
    "pascal_voc": "xyxy",
    "albumentations": "xyxy_relative",
    "yolo": "cxcywh_relative",
}
OWN = {"yolo": "cxcywh_relative", "voc": VOC}
"""Of sources whose boxes are not xywh in pixels"""


def own_format(source: str) -> str:
    """What a source's boxes are, where the configuration does not say otherwise."""
    return OWN.get(source, "xywh")


def format_of(cfg: DataConfig) -> str:
    """The format of a dataset's boxes, by one name each."""
    given = cfg.box_format
    if given is None or given == "coco":
        return own_format(cfg.source)
    return OTHER_NAMES.get(given, given)
