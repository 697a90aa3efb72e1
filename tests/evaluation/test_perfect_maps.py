"""A model that knows the truth scores 1.0 but for the resize: mIoU and PQ through the path of predictions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)
from transformers.models.maskformer.image_processing_pil_maskformer import (
    MaskFormerImageProcessorPil,
)

from builders import write_coco
from data.build import build_data
from data.canvas import CanvasRule
from data.feed.collate import collate
from data.feed.loader import EvalDataset
from data.regions import label_map, segment_map
from evaluation.metrics import measure
from evaluation.predictions import Predictions
from model.finding import find_pixel_classes, find_regions, find_regions_of_384, find_segments
from settings.keys import DataConfig, ImageSizeConfig

SIDE = 128
STRIDES = {1: 0.995, 4: 0.95}
"""Stride of the predicted maps, px, and what is left of a perfect score on images of 60 to 120 px"""


@pytest.fixture(params=["regions", "segments"])
def data(request, tmp_path):
    write_coco(tmp_path, 8)
    return build_data(DataConfig("coco", str(tmp_path), val_on_train=True), 0, labels=request.param)


def truth_of(data, stride):
    """What a perfect model gives: class logits and masks of every true part, at `stride`."""
    grid = (SIDE // stride, SIDE // stride)
    taxonomy = data.taxonomy
    classes, masks = [], []
    for record in data.val.records:
        if data.labels == "regions":
            parts = label_map(record.objects, grid, taxonomy.background)
            kinds = np.arange(len(taxonomy.names))
        else:
            parts, kinds = segment_map(record.objects, grid, taxonomy.stuff, taxonomy.background)
        own = torch.full((12, len(taxonomy.names) + 1), -20.0)
        own[:, -1] = 20.0
        planes = torch.full((12, *grid), -20.0)
        for place, kind in enumerate(kinds.tolist()):
            own[place, kind], own[place, -1] = 20.0, -20.0
            planes[place][torch.from_numpy(parts == place + 1)] = 20.0
        classes.append(own)
        masks.append(planes)
    return torch.stack(classes), torch.stack(masks)


@pytest.mark.parametrize("stride", STRIDES)
def test_perfect_maps_score_one(data, stride):
    rule = CanvasRule(ImageSizeConfig(SIDE, fit="stretch"))
    dataset = EvalDataset(data.val, rule)
    batch = collate([dataset[index] for index in range(len(dataset))])
    sizes = torch.tensor(batch.orig_sizes)
    classes, masks = truth_of(data, stride)
    outputs = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    ways = {"384": (find_regions_of_384, None), "plain": (find_regions, None)}
    if data.labels == "segments":
        ways = {
            "maskformer": (find_segments, MaskFormerImageProcessorPil()),
            "mask2former": (find_segments, Mask2FormerImageProcessorPil()),
        }
    else:
        outputs.logits = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], masks)
        ways["linear"] = (find_pixel_classes, None)
    for name, (find, processor) in ways.items():
        found = find(outputs, processor, sizes, None, 0.5)
        metrics = measure(data.labels, data.val, Predictions(found), data.taxonomy)
        total = metrics["mIoU" if data.labels == "regions" else "PQ"]
        assert STRIDES[stride] <= total <= 1.0, (name, metrics)
