"""Precision, recall, F1, the confusion matrix and the worst images: of a case made by hand, and as pycocotools has it."""

from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from coco_reference import ground_truth, result_list
from data.masks import Polygons, mask_column, to_rle
from data.objects import Objects
from data.record import Record
from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.coco import coco_metrics
from evaluation.curves import THRESHOLDS, mean
from evaluation.mistakes import analyse, words
from evaluation.predictions import NOTHING, Predictions
from report.mistakes import curves_json

SIZE = (100, 100)
NAMES = ("cat", "dog", "cow")
TAXONOMY = Taxonomy(NAMES, (0, 1, 2))


def table(rows, scores=False):
    """Of rows (image, class, x, y, w, h, score or whether it is a crowd)."""
    cells = np.array(rows, dtype=np.float64).reshape(-1, 7)
    objects = Objects(cells[:, 2:6], cells[:, 1].astype(int), cells[:, 0].astype(int))
    if scores:
        return replace(objects, scores=cells[:, 6])
    return replace(
        objects,
        areas=cells[:, 4] * cells[:, 5],
        iscrowd=cells[:, 6] > 0,
        numbers=np.arange(1, len(cells) + 1),
    )


def split_of(truth, num):
    tables = truth.by_image(num)
    return Split([Record(i, f"{i}.jpg", *SIZE, own) for i, own in enumerate(tables)], [], {})


def by_hand():
    """Image 0: a cat found, a dog taken for a cat, a dog missed. Image 1: a cat surrounded loosely, one found twice.
    Image 2: nothing but a crowd of dogs with a dog on it, and a false cow."""
    truth = table(
        [
            (0, 0, 0, 0, 20, 20, 0),
            (0, 1, 40, 40, 20, 20, 0),
            (0, 1, 70, 70, 20, 20, 0),
            (1, 0, 0, 0, 20, 20, 0),
            (1, 0, 50, 50, 20, 20, 0),
            (2, 1, 0, 0, 60, 60, 1),
        ]
    )
    found = table(
        [
            (0, 0, 0, 0, 20, 18, 0.9),
            (0, 0, 40, 40, 20, 20, 0.8),
            (0, 1, 0, 60, 5, 5, 0.05),
            (1, 0, 50, 50, 20, 20, 0.95),
            (1, 0, 50, 50, 20, 19, 0.7),
            (1, 0, 0, 0, 40, 40, 0.6),
            (2, 1, 10, 10, 20, 20, 0.9),
            (2, 2, 80, 80, 10, 10, 0.75),
        ],
        scores=True,
    )
    return split_of(truth, 3), found


def test_confusion_matrix_of_a_case_made_by_hand():
    split, found = by_hand()
    analysis = analyse("boxes", split, Predictions(found), TAXONOMY)
    # The best mean F1 is that of .81 to .90: cats 2 of 3, dogs 0; the middle of the range.
    assert analysis.score == 0.85
    expected = np.array([[2, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(analysis.confusion, expected)


def test_curves_of_a_case_made_by_hand():
    split, found = by_hand()
    analysis = analyse("boxes", split, Predictions(found), TAXONOMY)
    curves = analysis.curves
    at = {score: int(np.flatnonzero(score == THRESHOLDS)[0]) for score in (0, 0.6, 0.7, 0.8, 0.96)}
    # Cats: .95 and .90 are right; .80, .70 and .60 are not.
    cats = [(at[0], 2 / 5, 2 / 3), (at[0.7], 2 / 4, 2 / 3), (at[0.8], 2 / 3, 2 / 3)]
    for place, precision, recall in cats:
        assert curves.precision[0, place] == precision
        assert curves.recall[0, place] == recall
        expected = 2 * precision * recall / (precision + recall)
        assert curves.f1[0, place] == pytest.approx(expected, abs=1e-15)
    assert np.isnan(curves.precision[0, at[0.96]])
    assert curves.f1[0, at[0.96]] == 0
    # Of scores from .95 on a cat is right, and no dog is called one: the mean of both is .5. Later nothing is called.
    assert mean(curves.counted_precision)[95] == 0.5
    assert np.isnan(mean(curves.counted_precision)[96])
    assert curves_json(analysis, TAXONOMY.names)["mean"]["precision"][95:97] == [0.5, None]
    # Dogs: the one on the crowd counts as nothing; that of .05 is wrong. Of cows there is no object.
    assert curves.wrong[1, 0] == 1
    assert curves.wrong[1, 6] == 0
    assert np.isnan(curves.f1[2]).all()
    # Precision falls from 1 to 0 behind the recall of two in three, between the 67th and 68th of the recalls.
    np.testing.assert_array_equal(curves.precision_at_recall[0], [1.0] * 67 + [0.0] * 34)


def test_mistakes_of_a_case_made_by_hand(monkeypatch):
    split, found = by_hand()
    monkeypatch.setattr("evaluation.mistakes.recommended", lambda curves: 60)
    analysis = analyse("boxes", split, Predictions(found), TAXONOMY)
    expected = np.array([[2, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [2, 0, 1, 0]])
    np.testing.assert_array_equal(analysis.confusion, expected)
    told = {
        bad.place: words(bad, found, split.objects, NAMES, pixels=False) for bad in analysis.worst
    }
    assert told == {
        0: "cat 0.80 is dog, dog missed",
        1: "cat 0.70 is one too many, cat 0.60 is loose",
        2: "cow 0.75 is nothing",
    }
    assert [bad.mistakes for bad in analysis.worst] == [2, 2, 1]


def random_case(masks):
    """200 images, three classes; objects that overlap, are crowds, are found twice, moved or not at all."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(200), 5)
    classes = rng.integers(0, 3, len(image))
    boxes = np.column_stack([rng.uniform(0, 60, (len(image), 2)), rng.uniform(8, 35, (1000, 2))])
    truth = replace(
        Objects(boxes, classes, image),
        areas=boxes[:, 2:].prod(1),
        iscrowd=rng.uniform(size=1000) < 0.1,
        numbers=np.arange(1, 1001),
    )
    parts = []
    for share, noise in ((0.9, 1.5), (0.4, 3), (0.3, 12)):
        kept = np.flatnonzero(rng.uniform(size=1000) < share)
        moved = boxes[kept] + rng.normal(0, noise, (len(kept), 4))
        moved[:, 2:] = moved[:, 2:].clip(2)
        other = np.where(rng.uniform(size=len(kept)) < 0.1, 1, classes[kept])
        scores = rng.integers(1, 60, len(kept)) / 61  # some of them equal
        parts.append(Objects(moved, other, image[kept], scores=scores))
    found = Objects.concat(parts)
    found = found.take(np.lexsort((-found.scores, found.image)))
    if masks:
        truth, found = with_masks(truth), with_masks(found)
    return split_of(truth, 200), found


def with_masks(objects):
    """A triangle in each box."""
    rings = [
        np.array([[x, y], [x + w, y], [x, y + h]]).clip(0, 100) for x, y, w, h in objects.boxes
    ]
    masks = [to_rle(Polygons(SIZE, (ring,)), SIZE) for ring in rings]
    return replace(objects, masks=mask_column(masks))


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_average_precision_of_the_curve_is_that_of_pycocotools(masks):
    split, found = random_case(masks)
    curve = analyse("masks" if masks else "boxes", split, Predictions(found), TAXONOMY).curves
    truth = COCO()
    truth.dataset = ground_truth(split, TAXONOMY)
    truth.createIndex()
    results = result_list(Predictions(found), split, TAXONOMY)
    if masks:
        for row in results:
            del row["bbox"]
    evaluator = COCOeval(truth, truth.loadRes(results), "segm" if masks else "bbox")
    evaluator.params.iouThrs = np.array([0.5])
    evaluator.evaluate()
    evaluator.accumulate()
    expected = evaluator.eval["precision"][0, :, :, 0, 2].T
    assert 0.2 < expected.mean() < 0.9
    np.testing.assert_allclose(curve.precision_at_recall, expected, atol=1e-12)
    metrics = coco_metrics(split, Predictions(found), TAXONOMY)
    assert mean(curve.precision_at_recall).mean() == pytest.approx(metrics["AP50"], abs=1e-9)


def test_confusion_matrix_and_curves_say_the_same():
    split, found = random_case(masks=False)
    analysis = analyse("boxes", split, Predictions(found), TAXONOMY)
    curves, at = analysis.curves, analysis.threshold
    right = np.diag(analysis.confusion)[:3]
    np.testing.assert_array_equal(right, curves.right[:, at])
    np.testing.assert_array_equal(analysis.confusion[:3].sum(1), curves.objects)
    shown = analysis.confusion[:, :3].sum(0)
    np.testing.assert_array_equal(shown, (curves.right + curves.wrong)[:, at])
    totals = analysis.totals()
    drawn = curves_json(analysis, "abc")["mean"]["precision"][at]
    assert totals["precision"] == pytest.approx(drawn, abs=1e-3)
    assert totals["F1"] == pytest.approx((2 * right / (shown + curves.objects)).mean())
    assert totals["F1"] >= mean(curves.f1).max() - 1e-12
    scores = analysis.scores()
    assert all(len(counts) == 100 for counts in scores.values())
    for name, rows in (("right", curves.right), ("wrong", curves.wrong)):
        assert scores[name][50:].sum() == rows[:, 50].sum() > 0
        assert scores[name].sum() == rows[:, 0].sum()


def test_a_class_of_which_nothing_is_found_has_no_precision():
    split, found = random_case(masks=False)
    all_found = analyse("boxes", split, Predictions(found), TAXONOMY)
    some = found.take(found.classes != 0)
    analysis = analyse("boxes", split, Predictions(some), TAXONOMY)
    right, wrong = (
        rows[1:, analysis.threshold] for rows in (analysis.curves.right, analysis.curves.wrong)
    )
    assert analysis.totals()["precision"] == pytest.approx((right / (right + wrong)).sum() / 3)
    assert analysis.totals()["recall"] < all_found.totals()["recall"]


def test_nothing_found_and_nothing_there():
    split, _ = random_case(masks=False)
    analysis = analyse("boxes", split, Predictions(NOTHING), TAXONOMY)
    assert analysis.totals() == {}
    assert analysis.score == 0.5
    counts = np.bincount(split.objects.classes[~split.objects.iscrowd])
    np.testing.assert_array_equal(analysis.confusion[:3, 3], counts)
    empty = split_of(table([]), 2)
    assert not analyse("boxes", empty, Predictions(NOTHING), TAXONOMY).confusion.any()
    _, found = by_hand()
    found = found.take(found.image < 2)
    analysis = analyse("boxes", empty, Predictions(found), TAXONOMY)
    assert analysis.confusion[3].tolist() == [5, 0, 0, 0]
