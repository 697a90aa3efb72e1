"""What can be learnt of images, and what then decides which checkpoint is the best."""

from typing import Literal

Task = Literal[
    "detection", "instance_segmentation", "semantic_segmentation", "panoptic_segmentation"
]
BoxFormat = Literal[
    "xywh",
    "xyxy",
    "cxcywh",
    "xywh_relative",
    "xyxy_relative",
    "cxcywh_relative",
    "voc",
    "coco",
    "pascal_voc",
    "albumentations",
    "yolo",
]
Labels = Literal["boxes", "masks", "regions", "segments"]
"""What is learnt of images: boxes of objects, masks of objects, the class of every pixel, or this and to which
object it belongs"""
EVERY_PIXEL: tuple[Labels, ...] = ("regions", "segments")
"""What gives every pixel a class, or says that it is not known"""
LABELS: dict[Task, Labels] = {
    "detection": "boxes",
    "instance_segmentation": "masks",
    "semantic_segmentation": "regions",
    "panoptic_segmentation": "segments",
}
METRICS: dict[Task, tuple[str, ...]] = {
    "detection": ("AP", "AP50", "AP75"),
    "instance_segmentation": ("AP", "AP50", "AP75"),
    "semantic_segmentation": ("mIoU", "pixel_accuracy", "mean_accuracy"),
    "panoptic_segmentation": ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"),
}
"""What can decide which checkpoint is the best; the first one does by default"""
