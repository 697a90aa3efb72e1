from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from builders import write_coco
from PIL import Image

from data.build import build_data
from data.feed.loader import eval_loader
from evaluation.coco import coco_metrics
from evaluation.predictions import predict_split
from model.build import build_processor, get_head
from model.normalization import Normalization
from settings.keys import DataConfig, ImageSizeConfig


class Oracle(torch.nn.Module):
    """Predicts exactly the targets of the batches it will be given."""

    def __init__(self, batches, focal, num_classes, spoil=0.0):
        super().__init__()
        self.batches, self.focal, self.num_classes, self.spoil = (
            iter(batches),
            focal,
            num_classes,
            spoil,
        )

    def forward(self, pixel_values, pixel_mask):
        labels = next(self.batches).labels
        assert len(labels) == len(pixel_values)
        logits = torch.full((len(labels), 12, self.num_classes + (not self.focal)), -20.0)
        boxes = torch.full((len(labels), 12, 4), 0.5)
        if not self.focal:
            logits[..., -1] = 0.0
        for row, label in enumerate(labels):
            n = len(label["boxes"])
            boxes[row, :n] = label["boxes"]
            boxes[row, :n, 0] += self.spoil
            logits[row, torch.arange(n), label["class_labels"]] = 20.0
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
    loader = eval_loader(data.val, cfg, batch_size=4, pin=False)
    family = get_head(head)
    model = Oracle(list(loader), family.focal, len(data.taxonomy.names), spoil)
    processor = build_processor(family, size, Normalization())
    predictions = predict_split(
        Accelerator(cpu=True), model, processor, Normalization(), loader, len(data.val), 100
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


def test_the_canvas_of_evaluation_has_the_stride_of_training():
    """One canvas rule for both, or boxes near the right and bottom border would shift."""
    from data.feed.sampler import step_canvas
    from data.feed.transforms import full_canvas, resized_size

    for longest in (64, 100, 416, 1333):
        cfg = ImageSizeConfig(longest)
        sizes = torch.tensor(
            [resized_size(h, w, cfg) for h, w in ((427, 640), (640, 427), (99, 500))]
        )
        for row in sizes.numpy():
            tight, full = step_canvas(row[None]), full_canvas(cfg)
            assert all(side % 32 == 0 for side in (*tight, *full))
            assert all(t <= f for t, f in zip(tight, full, strict=True))


def test_processor_pads_to_the_canvas_of_evaluation():
    cfg = ImageSizeConfig(100)
    for head in ("detr", "deformable_detr"):
        processor = build_processor(get_head(head), cfg, Normalization())
        inputs = processor(images=[Image.new("RGB", (300, 180))], return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 128, 128)
        assert inputs["pixel_mask"].sum() == 100 * 60
