import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from builders import write_coco
from coco_reference import ground_truth, result_list
from data.build import build_data
from data.objects import Objects
from evaluation.coco import coco_metrics
from evaluation.predictions import Predictions
from settings.keys import DataConfig


def build(tmp_path, ids=(1, 3, 17), num=24):
    write_coco(tmp_path, num, ids=ids)
    return build_data(DataConfig(source="coco", path=str(tmp_path), val_fraction=0.5), seed=0)


def perfect(split):
    objects = split.objects
    return Predictions(
        Objects(objects.boxes, objects.classes, objects.image, scores=np.ones(len(objects)))
    )


def noisy(split, seed=0):
    rng = np.random.default_rng(seed)
    exact = perfect(split).objects
    n = len(exact)
    boxes = np.concatenate([exact.boxes + rng.normal(0, 3, (n, 4)), rng.uniform(5, 40, (n, 4))])
    boxes[:, 2:] = boxes[:, 2:].clip(1)
    scores = rng.uniform(size=2 * n)
    classes = np.concatenate([exact.classes, rng.integers(0, 3, n)])
    return Predictions(Objects(boxes, classes, np.tile(exact.image, 2), scores=scores))


def test_perfect_predictions_score_one(tmp_path):
    data = build(tmp_path)
    metrics = coco_metrics(data.val, perfect(data.val), data.taxonomy)
    assert metrics["AP"] == metrics["AP50"] == metrics["AP75"] == metrics["AR_100"] == 1.0
    present = set(data.val.objects.classes.tolist())
    for index, row in enumerate(metrics["per_class"].values()):
        assert row["AP"] == (1.0 if index in present else None)


def test_equals_pycocotools(tmp_path):
    data = build(tmp_path)
    predictions = noisy(data.val)
    ours = coco_metrics(data.val, predictions, data.taxonomy)
    truth = COCO()
    truth.dataset = ground_truth(data.val, data.taxonomy)
    truth.createIndex()
    evaluator = COCOeval(
        truth, truth.loadRes(result_list(predictions, data.val, data.taxonomy)), "bbox"
    )
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert 0.05 < ours["AP"] < 0.95
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    for place, name in enumerate(names):
        expected = evaluator.stats[place]
        assert ours[name] == (None if expected < 0 else pytest.approx(expected, abs=1e-9))
    assert ours["AR_100"] == pytest.approx(evaluator.stats[8], abs=1e-9)
    precision = evaluator.eval["precision"]
    for index, row in enumerate(ours["per_class"].values()):
        valid = precision[:, :, index, 0, -1]
        if (valid > -1).any():
            assert row["AP"] == pytest.approx(valid[valid > -1].mean(), abs=1e-9)


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3)])
def test_category_ids_do_not_change_the_metric(tmp_path, ids):
    reference = build(tmp_path / "a", (1, 3, 17))
    other = build(tmp_path / "b", ids)
    first = coco_metrics(reference.val, noisy(reference.val), reference.taxonomy)
    second = coco_metrics(other.val, noisy(other.val), other.taxonomy)
    assert [first[k] for k in ("AP", "AP50", "AP75")] == [second[k] for k in ("AP", "AP50", "AP75")]


def test_no_predictions_score_zero(tmp_path):
    data = build(tmp_path)
    none = Predictions(perfect(data.val).objects.take(slice(0)))
    assert coco_metrics(data.val, none, data.taxonomy)["AP"] == 0.0


def test_missed_image_counts_as_missed(tmp_path):
    data = build(tmp_path, ids=(1,))
    exact = perfect(data.val).objects
    kept = exact.image != exact.image[0]
    some = Predictions(exact.take(kept))
    assert coco_metrics(data.val, some, data.taxonomy)["AR_100"] == pytest.approx(
        kept.mean(), abs=1e-6
    )
