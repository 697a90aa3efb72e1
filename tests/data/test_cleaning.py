import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from data.cleaning import MIN_SIDE_PX, clean_boxes, repeated_boxes
from data.objects import Objects

ANY = st.floats(width=64)
NEAR = st.floats(-50, 700).map(lambda v: round(v, 1))
BOXES = npst.arrays(
    np.float64, st.tuples(st.integers(0, 12), st.just(4)), elements=st.one_of(ANY, NEAR)
)
SIDES = st.integers(1, 700)


@settings(max_examples=1000, deadline=None)
@given(BOXES, SIDES, SIDES)
def test_whatever_the_boxes_those_kept_lie_inside(boxes, width, height):
    given = boxes.copy()
    clean = clean_boxes(boxes, width, height)
    np.testing.assert_array_equal(boxes, given)
    out = clean.boxes
    assert np.isfinite(out).all()
    assert (out[:, :2] >= 0).all()
    assert (out[:, 2:] > MIN_SIDE_PX).all()
    assert (out[:, 0] + out[:, 2] <= width * (1 + 1e-12)).all()
    assert (out[:, 1] + out[:, 3] <= height * (1 + 1e-12)).all()


@settings(max_examples=1000, deadline=None)
@given(BOXES, SIDES, SIDES)
def test_every_box_is_kept_or_left_out_for_one_reason(boxes, width, height):
    clean = clean_boxes(boxes, width, height)
    partly = clean.problems["box partly outside"]
    left_out = [p for kind, p in clean.problems.items() if kind != "box partly outside"]
    assert sorted(np.concatenate([clean.kept, *left_out])) == list(range(len(boxes)))
    assert set(partly) <= set(clean.kept)
    untouched = np.isin(clean.kept, partly, invert=True)
    np.testing.assert_allclose(clean.boxes[untouched], boxes[clean.kept][untouched], atol=1.01)


@settings(max_examples=300, deadline=None)
@given(BOXES, SIDES, SIDES)
def test_cleaning_twice_changes_nothing(boxes, width, height):
    once = clean_boxes(boxes, width, height)
    twice = clean_boxes(once.boxes, width, height)
    assert len(twice.kept) == len(once.kept)
    np.testing.assert_allclose(twice.boxes, once.boxes, atol=1e-9)


@settings(max_examples=300, deadline=None)
@given(BOXES, SIDES, SIDES, st.integers(0, 12))
def test_boxes_of_several_images_are_cleaned_as_if_alone(boxes, width, height, cut):
    widths = np.where(np.arange(len(boxes)) < cut, width, 33)
    together = clean_boxes(boxes, widths, height)
    alone = [clean_boxes(boxes[:cut], width, height), clean_boxes(boxes[cut:], 33, height)]
    np.testing.assert_array_equal(together.boxes, np.concatenate([alone[0].boxes, alone[1].boxes]))


def test_each_kind():
    boxes = np.array(
        [
            [10, 10, 20, 20],
            [-5, 10, 20, 20],
            [-0.4, 10, 20, 20],
            [300, 10, 20, 20],
            [10, 10, 0, 5],
            [10, 10, -4, 5],
            [np.nan, 10, 4, 5],
            [1e308, 0, 1e308, 5],
        ]
    )
    clean = clean_boxes(boxes, 100, 80)
    assert clean.kept.tolist() == [0, 1, 2]
    assert clean.boxes[1].tolist() == [0, 10, 15, 20]
    assert {kind: places.tolist() for kind, places in clean.problems.items()} == {
        "box not a number": [6],
        "box with a negative side": [5],
        "box without area": [4],
        "box outside the image": [3, 7],
        "box partly outside": [1],
    }


def test_image_of_unknown_size_clips_nothing():
    clean = clean_boxes(np.array([[10.0, 20, 3000, 4000]]), np.inf, np.inf)
    assert clean.boxes.tolist() == [[10, 20, 3000, 4000]]
    assert not clean.problems["box partly outside"].size


def test_repeated_boxes_are_those_of_one_image_and_class():
    boxes = np.array([[1.0, 2, 3, 4]] * 5 + [[1, 2, 3, 5]])
    classes = np.array([0, 0, 1, 0, 0, 0])
    images = np.array([0, 0, 0, 1, 0, 0])
    objects = Objects(boxes, classes, images)
    assert repeated_boxes(objects).tolist() == [1, 4]
    assert repeated_boxes(objects.take(slice(0))).tolist() == []
