from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from builders import write_coco
from data.build import build_data
from data.canvas import CanvasRule, step_canvas
from data.feed.loader import eval_loader
from evaluation.coco import coco_metrics
from evaluation.predictions import predict_split
from model.build import build_processor
from model.heads.registry import get_family
from model.memory import MemoryWatch
from model.normalization import Normalization
from model.trainable import Trainable
from settings.keys import DataConfig, ImageSizeConfig


class Oracle(torch.nn.Module):
    """Predicts exactly the targets of the batches it will be given."""

    dtype = torch.float32

    def __init__(self, batches, softmax, num_classes, spoil=0.0):
        super().__init__()
        self.batches, self.softmax, self.num_classes = iter(batches), softmax, num_classes
        self.spoil = spoil

    def forward(self, pixel_values, pixel_mask):
        batch = next(self.batches)
        assert len(batch.num_objects) == len(pixel_values)
        logits = torch.full((len(pixel_values), 12, self.num_classes + self.softmax), -20.0)
        boxes = torch.full((len(pixel_values), 12, 4), 0.5)
        if self.softmax:
            logits[..., -1] = 0.0
        for row, n in enumerate(batch.num_objects):
            objects = batch.objects.of_image(row)
            boxes[row, :n] = objects.boxes
            boxes[row, :n, 0] += self.spoil
            logits[row, torch.arange(n), objects.classes] = 20.0
        return SimpleNamespace(logits=logits, pred_boxes=boxes)


def score(tmp_path, head, size, spoil=0.0):
    write_coco(tmp_path, 21, ids=(1, 3, 17))
    file = tmp_path / "train" / "000.jpg"  # an EXIF-rotated one among them
    with Image.open(file) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    cfg = DataConfig(
        source="coco", path=str(tmp_path), val_on_train=True, image_size=size, num_workers=0
    )
    data = build_data(cfg, seed=0)
    rule = CanvasRule(size)
    loader = eval_loader(data.val, rule, batch_size=4, num_workers=0, pin=False)
    model = Oracle(list(loader), head == "detr", len(data.taxonomy.names), spoil)
    processor = build_processor(get_family(head), rule, Normalization())
    trainable = Trainable(model, processor, Normalization(), None)
    memory = MemoryWatch(torch.device("cpu"), "eval.batch_size")
    predictions = predict_split(
        Accelerator(cpu=True), trainable, loader, len(data.val), 100, 0.5, memory
    )
    return coco_metrics(data.val, predictions, data.taxonomy)


@pytest.mark.parametrize("head", ["detr", "deformable_detr"])
@pytest.mark.parametrize(
    "size", [ImageSizeConfig(64), ImageSizeConfig(100), ImageSizeConfig(128, 72)]
)
def test_perfect_predictions_score_one_through_the_whole_path(tmp_path, head, size):
    metrics = score(tmp_path, head, size)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR_100"] == 1.0


def test_boxes_a_tenth_of_the_image_off_do_not(tmp_path):
    assert score(tmp_path, "detr", ImageSizeConfig(64), spoil=0.1)["AP"] < 0.6


@pytest.mark.parametrize("multiple", [32, 14, 64])
def test_the_canvas_of_evaluation_has_the_stride_of_training(multiple):
    """One canvas rule for both, or boxes near the right and bottom border would shift."""
    for longest in (64, 100, 416, 1333):
        rule = CanvasRule(ImageSizeConfig(longest), multiple)
        for row in [rule.resized(h, w) for h, w in ((427, 640), (640, 427), (99, 500))]:
            tight, full = step_canvas(np.array([row]), multiple), rule.full
            assert all(side % multiple == 0 for side in (*tight, *full))
            assert all(t <= f for t, f in zip(tight, full, strict=True))


def test_processor_pads_to_the_canvas_of_evaluation():
    rule = CanvasRule(ImageSizeConfig(100))
    for head in ("detr", "deformable_detr"):
        processor = build_processor(get_family(head), rule, Normalization())
        inputs = processor(images=[Image.new("RGB", (300, 180))], return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 128, 128)
        assert inputs["pixel_mask"].sum() == 100 * 60
