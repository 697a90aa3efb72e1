"""Mask AP against pycocotools, and what perfect predictions get."""

import dataclasses

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from builders import write_coco
from coco_reference import ground_truth, result_list
from data.build import build_data
from data.masks import encode, mask_column, pixels_of, to_rle
from data.objects import Objects
from evaluation.coco import coco_metrics
from evaluation.predictions import Predictions
from report.evaluation import metric_lines
from settings.keys import DataConfig


def build(tmp_path, num=24):
    write_coco(tmp_path, num, ids=(1, 3, 17))
    cfg = DataConfig(source="coco", path=str(tmp_path), val_fraction=0.5)
    return build_data(cfg, seed=0, labels="masks")


def perfect(split):
    objects = split.objects
    sizes = [(record.height, record.width) for record in split.records]
    masks = [to_rle(m, sizes[i]) for m, i in zip(objects.masks, objects.image, strict=True)]
    whole = Objects(
        objects.boxes,
        objects.classes,
        objects.image,
        scores=np.ones(len(objects)),
        masks=mask_column(masks),
    )
    return Predictions(whole, flat=whole)


def noisy(split, seed=0):
    """Every true mask moved, and as many where nothing is."""
    rng = np.random.default_rng(seed)
    exact = perfect(split).objects
    masks, boxes = [], []
    for image, mask in [*zip(exact.image, exact.masks, strict=True)] * 2:
        record = split.records[image]
        plane = np.zeros((record.height, record.width), np.uint8)
        plane[pixels_of(mask, plane.shape)] = 1
        far = 4 if len(masks) < len(exact) else 40
        plane = np.roll(plane, rng.integers(-far, far, 2), axis=(0, 1))
        masks.append(encode(plane))
        rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
        boxes.append([columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1])
    classes = np.concatenate([exact.classes, rng.integers(0, 3, len(exact))])
    scores = rng.uniform(size=len(masks))
    image = np.tile(exact.image, 2)
    found = Objects(np.array(boxes, float), classes, image, scores=scores, masks=mask_column(masks))
    return Predictions(found, flat=found.take(scores > 0.5))


def test_perfect_masks_score_one(tmp_path):
    data = build(tmp_path)
    metrics = coco_metrics(data.val, perfect(data.val), data.taxonomy)
    for name in ("AP", "AP50", "AP75", "AR_100", "box_AP", "flat_AP"):
        assert metrics[name] == 1.0, name
    assert "flat map of pipeline(): AP 1.000" in "\n".join(metric_lines(metrics))


@pytest.mark.parametrize("kind", ["segm", "bbox"])
@pytest.mark.parametrize("crowded", [False, True])
def test_equals_pycocotools(tmp_path, kind, crowded):
    data = build(tmp_path)
    split = data.val
    if crowded:
        records = [
            dataclasses.replace(
                record,
                objects=dataclasses.replace(
                    record.objects, iscrowd=np.arange(len(record.objects)) == 1
                ),
            )
            for record in split.records
        ]
        split = dataclasses.replace(split, records=records)
        assert split.objects.iscrowd.any()
    predictions = noisy(split)
    ours = coco_metrics(split, predictions, data.taxonomy)
    truth = COCO()
    truth.dataset = ground_truth(split, data.taxonomy)
    truth.createIndex()
    results = result_list(predictions, split, data.taxonomy)
    if kind == "segm":
        results = [{k: v for k, v in row.items() if k != "bbox"} for row in results]
    evaluator = COCOeval(truth, truth.loadRes(results), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    prefix = "" if kind == "segm" else "box_"
    assert 0.05 < ours[f"{prefix}AP"] < 0.95
    for place, name in enumerate(("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")):
        expected = evaluator.stats[place]
        wanted = None if expected < 0 else pytest.approx(expected, abs=1e-9)
        assert ours[f"{prefix}{name}"] == wanted, name
    assert ours[f"{prefix}AR_100"] == pytest.approx(evaluator.stats[8], abs=1e-9)
    assert ours["flat_AP"] < ours["AP"] or kind == "bbox"
