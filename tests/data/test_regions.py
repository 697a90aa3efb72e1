"""Regions against pixels that are counted one by one."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from pycocotools import mask as reference

from data.masks import Polygons, encode, mask_column, pixels_of
from data.objects import Objects
from data.record import Record
from data.regions import _disjoint, label_map, partition, rles_of
from data.schema import Split
from data.taxonomy import Taxonomy, with_background
from evaluation.predictions import NOTHING, Predictions
from evaluation.regions import confusion, region_metrics

VALUES = {np.uint8: [0, 1, 2, 7, 255], np.uint16: [0, 1, 300, 65535], np.int32: [0, 5, 65535]}
THREE = Taxonomy(("a", "b", "c"), (0, 1, 2))


def random_labels(seed, num=4, size=None):
    """int [H, W] of 0 to num - 1, in patches."""
    rng = np.random.default_rng(seed)
    height, width = size or rng.integers(1, 40, 2).tolist()
    labels = rng.integers(0, num, (height, width))
    for _ in range(6):
        y, x = rng.integers(0, height), rng.integers(0, width)
        labels[y : y + 15, x : x + 15] = rng.integers(0, num)
    return labels


def objects_of(planes, classes):
    """Objects with the masks of bool planes [n, H, W]."""
    masks = mask_column([encode(plane) for plane in planes])
    areas = np.array([float(plane.sum()) for plane in planes])
    boxes = np.zeros((len(masks), 4))
    return Objects(boxes, np.array(classes, dtype=np.int64), areas=areas, masks=masks)


def regions_of(labels):
    """Objects of the classes of a label map, of which 0 is no class."""
    classes = [int(value) for value in np.unique(labels) if value]
    return objects_of([labels == value for value in classes], [value - 1 for value in classes])


def drawn(objects, size):
    """Larger ones first, pixel by pixel."""
    labels = np.zeros(size, int)
    for place in sorted(range(len(objects)), key=lambda p: -objects.areas[p]):
        labels[pixels_of(objects.masks[place], size)] = objects.classes[place] + 1
    return labels


@pytest.mark.parametrize("kind", VALUES)
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.integers(0, 2**31))
def test_run_lengths_of_every_value_are_those_of_pycocotools(kind, seed):
    values = np.array(VALUES[kind], kind)
    labels = values[random_labels(seed, len(values))]
    rles = rles_of(labels)
    assert sorted(rles) == np.unique(labels).tolist()
    for value, rle in rles.items():
        plane = np.asfortranarray(labels == value, np.uint8)
        assert rle.size == labels.shape
        assert rle.counts == reference.encode(plane)["counts"]


@pytest.mark.parametrize("value", [0, 9])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (5, 6)])
def test_run_lengths_of_a_map_of_one_value(size, value):
    ((found, rle),) = rles_of(np.full(size, value, np.uint8)).items()
    assert found == value
    assert len(pixels_of(rle, size)[0]) == size[0] * size[1]


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.integers(0, 2**31), st.floats(0.3, 3), st.floats(0.3, 3))
def test_disjoint_run_lengths_give_what_drawing_gives(seed, y, x):
    labels = random_labels(seed)
    objects = regions_of(labels)
    np.testing.assert_array_equal(label_map(objects, labels.shape), labels)
    size = (max(1, int(labels.shape[0] * y)), max(1, int(labels.shape[1] * x)))
    assert _disjoint(objects, objects.classes + 1, size) is not None
    np.testing.assert_array_equal(label_map(objects, size), drawn(objects, size))


@pytest.mark.parametrize("seed", range(20))
def test_smaller_objects_cover_larger_ones(seed):
    rng = np.random.default_rng(seed)
    size = (30, 40)
    planes = np.zeros((6, *size), bool)
    for plane in planes:
        y, x = rng.integers(0, 25, 2)
        plane[y : y + rng.integers(1, 30), x : x + rng.integers(1, 30)] = True
    objects = objects_of(planes, rng.integers(0, 3, 6))
    np.testing.assert_array_equal(label_map(objects, size), drawn(objects, size))


def test_polygon_and_run_lengths_of_two_sizes_on_one_map():
    """A picture of 8 x 8 px, its left half, and a part of that given on 16 x 16 px."""
    part = np.zeros((16, 16), bool)
    part[4:8, 2:6] = True
    ring = np.array([[0.0, 0], [4, 0], [4, 8], [0, 8]])
    masks = mask_column([encode(part), Polygons((8, 8), (ring,))])
    areas = np.array([4.0, 32])
    wanted = np.zeros((8, 8), int)
    wanted[:, :4], wanted[2:4, 1:3] = 1, 2
    labels = label_map(
        Objects(np.zeros((2, 4)), np.array([1, 0]), areas=areas, masks=masks), (8, 8)
    )
    np.testing.assert_array_equal(labels, wanted)


def test_what_no_object_covers_is_unknown_or_background():
    plane = np.zeros((4, 6), bool)
    plane[1:3, 2:5] = True
    objects = objects_of([plane], [1])
    np.testing.assert_array_equal(label_map(objects, (4, 6)), np.where(plane, 2, 0))
    np.testing.assert_array_equal(label_map(objects, (4, 6), 0), np.where(plane, 2, 1))
    assert (label_map(Objects.none(), (4, 6)) == 0).all()
    assert (label_map(Objects.none(), (4, 6), 2) == 3).all()


@pytest.mark.parametrize("background", [None, 0, 5])
@pytest.mark.parametrize("seed", range(10))
def test_regions_are_numbered_partition_with_their_boxes_and_areas(seed, background):
    labels = random_labels(seed, 4, (23, 31))
    planes, regions = partition(regions_of(labels), labels.shape, background)
    if background is not None:
        labels = np.where(labels == 0, background + 1, labels)
    present = [value for value in np.unique(labels).tolist() if value]
    assert regions.classes.tolist() == [value - 1 for value in present]
    assert not regions.iscrowd.any()
    assert regions.masks is None
    (ids,) = planes.ids
    for number, value in enumerate(present, 1):
        rows, columns = np.nonzero(labels == value)
        np.testing.assert_array_equal(ids == number, labels == value)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert regions.boxes[number - 1].tolist() == box
        assert regions.areas[number - 1] == len(rows)
    assert ((ids == 0) == (labels == 0)).all()


def test_more_classes_than_a_byte_numbers():
    labels = np.arange(1, 301).reshape(20, 15)
    planes, regions = partition(regions_of(labels), labels.shape)
    np.testing.assert_array_equal(planes.ids[0], labels)
    assert regions.classes.tolist() == list(range(300))


# --- metrics -------------------------------------------------------------------------------------
def split_of(truths, unreadable=()):
    """A split of images with these label maps, of which 0 is no class."""
    records = [
        Record(i, f"{i}.jpg", *t.shape[::-1], regions_of(t), unreadable=i in unreadable)
        for i, t in enumerate(truths)
    ]
    return Split(records, [], {}, dense=True)


def predicted(maps, missing=()):
    found = Objects.of_images([regions_of(m) for m in maps])
    return Predictions(found, np.array(missing, dtype=np.int64))


@pytest.mark.parametrize("seed", range(10))
def test_metrics_are_those_of_pixels_counted_one_by_one(seed):
    rng = np.random.default_rng(seed)
    truths = [random_labels(10 * seed + i, 4) for i in range(4)]
    guesses = [random_labels(10 * seed + 5 + i, 4, t.shape) for i, t in enumerate(truths)]
    for truth, guess in zip(truths, guesses, strict=True):
        right = rng.random(truth.shape) < 0.5
        guess[right] = truth[right]
    split, predictions = split_of(truths), predicted(guesses)
    table = np.zeros((3, 4), int)
    for truth, guess in zip(truths, guesses, strict=True):
        for true, found in zip(truth.ravel().tolist(), guess.ravel().tolist(), strict=True):
            if true:
                table[true - 1, found - 1 if found else 3] += 1
    np.testing.assert_array_equal(confusion(split, predictions.objects, THREE), table)
    metrics = region_metrics(split, predictions, THREE)
    t, g = (np.concatenate([m.ravel() for m in maps]) for maps in (truths, guesses))
    t, g = t[t > 0], g[t > 0]
    iou = [((t == c) & (g == c)).sum() / ((t == c) | (g == c)).sum() for c in (1, 2, 3)]
    accuracy = [(g[t == c] == c).mean() for c in (1, 2, 3)]
    assert metrics["mIoU"] == pytest.approx(np.mean(iou))
    assert metrics["mean_accuracy"] == pytest.approx(np.mean(accuracy))
    assert metrics["pixel_accuracy"] == pytest.approx((t == g).mean())
    for c, name in enumerate("abc"):
        of_class = {"IoU": iou[c], "accuracy": accuracy[c], "pixels": int((t == c + 1).sum())}
        assert metrics["per_class"][name] == pytest.approx(of_class)


HALVES = np.array([[1, 1, 2, 2]])
"""Truth of most cases below: classes a and b, two pixels each; c is not there"""
BY_HAND = {
    "perfect": (HALVES, HALVES, 1.0, 1.0, 1.0),
    "one pixel wrong": (HALVES, [[1, 1, 2, 1]], (2 / 3 + 1 / 2) / 2, 3 / 4, (1 + 1 / 2) / 2),
    "one pixel of a class that is not there": (HALVES, [[1, 1, 2, 3]], 1.5 / 3, 3 / 4, 3 / 4),
    "one pixel without prediction": (HALVES, [[1, 1, 2, 0]], (1 + 1 / 2) / 2, 3 / 4, 3 / 4),
    "nothing predicted": (HALVES, [[0, 0, 0, 0]], 0.0, 0.0, 0.0),
    "wrong where nobody knows": ([[1, 0, 2, 0]], [[1, 3, 2, 1]], 1.0, 1.0, 1.0),
    "nothing known": ([[0, 0]], [[1, 2]], None, None, None),
}
"""Truth, prediction, mIoU, pixel accuracy, mean accuracy"""


@pytest.mark.parametrize("case", BY_HAND)
def test_metrics_by_hand(case):
    truth, guess, *expected = BY_HAND[case]
    found = region_metrics(split_of([np.array(truth)]), predicted([np.array(guess)]), THREE)
    assert [found[n] for n in ("mIoU", "pixel_accuracy", "mean_accuracy")] == [
        None if value is None else pytest.approx(value) for value in expected
    ]


def test_class_that_is_nowhere_has_no_numbers():
    metrics = region_metrics(split_of([HALVES]), predicted([HALVES]), THREE)
    assert metrics["per_class"]["c"] == {"IoU": None, "accuracy": None, "pixels": 0}


def test_image_that_could_not_be_read_counts_as_missed():
    nothing = np.zeros_like(HALVES)
    split = split_of([HALVES, HALVES], unreadable=[1])
    metrics = region_metrics(split, predicted([HALVES, nothing], missing=[1]), THREE)
    assert metrics["missing_images"] == 1
    assert metrics["mIoU"] == metrics["pixel_accuracy"] == metrics["mean_accuracy"] == 0.5


def test_split_on_which_nothing_is_predicted():
    metrics = region_metrics(split_of([HALVES] * 2), Predictions(NOTHING), THREE)
    assert metrics["mIoU"] == metrics["pixel_accuracy"] == 0.0


def test_missing_image_of_unknown_size_takes_no_part():
    split = split_of([HALVES, np.array([[1]])], unreadable=[1])
    assert confusion(split, predicted([HALVES] + [np.array([[0]])]).objects, THREE).sum() == 4


def test_background_is_a_class_where_nothing_is_annotated():
    taxonomy = with_background(Taxonomy(("a",), (7,)), "rest")
    truth, guess = np.array([[2, 2, 0, 0]]), np.array([[2, 2, 1, 0]])
    pixels = confusion(split_of([truth]), predicted([guess]).objects, taxonomy)
    assert pixels.tolist() == [[1, 0, 1], [0, 2, 0]]


def test_background_is_the_class_of_that_name_or_a_new_one():
    assert with_background(THREE, "b") == Taxonomy(("a", "b", "c"), (0, 1, 2), background=1)
    new = with_background(Taxonomy(("a", "b"), (0, 3)), "rest")
    assert new == Taxonomy(("rest", "a", "b"), (1, 0, 3), background=0)
    assert new.class_indices(np.array([0, 3, 1, 2])).tolist() == [1, 2, 0, -1]
