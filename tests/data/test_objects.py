import dataclasses

import numpy as np
import pytest
import torch

from data.objects import COLUMNS, Objects


def table(num, first=0, **more):
    numbers = np.arange(first, first + num)
    boxes = np.stack([numbers, numbers + 1.0, numbers + 2.0, numbers + 3.0], 1)
    return Objects(boxes.reshape(-1, 4), numbers, numbers=numbers, **more)


def test_columns_that_are_not_there_cost_nothing():
    plain = table(3)
    assert set(plain.columns()) == {"boxes", "classes", "numbers"}
    assert set(plain.take([2, 0]).columns()) == set(plain.columns())
    assert plain.scaled(2, 3).areas is None
    assert Objects.none().columns().keys() == {"boxes", "classes"}


def test_take_keeps_columns_together_and_in_the_wanted_order():
    chosen = table(4).take([3, 1])
    assert chosen.classes.tolist() == chosen.numbers.tolist() == [3, 1]
    assert chosen.boxes[:, 0].tolist() == [3, 1]
    assert table(4).take(np.array([True, False, False, True])).numbers.tolist() == [0, 3]
    assert len(table(4).take(slice(0))) == 0


def test_images_are_stacked_and_taken_apart_again():
    parts = [table(2), Objects.none(), table(3, first=5)]
    whole = Objects.of_images(parts)
    assert whole.image.tolist() == [0, 0, 2, 2, 2]
    for part, again in zip(parts, whole.by_image(3), strict=True):
        np.testing.assert_array_equal(again.boxes, part.boxes)
        assert again.image is None
    assert whole.of_image(2).classes.tolist() == [5, 6, 7]
    assert len(whole.of_image(1)) == 0
    assert [len(part) for part in whole.by_image(5)] == [2, 0, 3, 0, 0]


def test_concat_has_the_columns_that_all_have():
    scored = table(2, scores=np.array([0.1, 0.2]))
    assert Objects.concat([scored, scored]).scores.tolist() == [0.1, 0.2, 0.1, 0.2]
    assert Objects.concat([scored, table(1)]).scores is None
    assert Objects.concat([Objects.none(), scored]).scores.tolist() == [0.1, 0.2]
    assert len(Objects.concat([])) == 0
    assert len(Objects.of_images([])) == 0


def test_scaled_boxes_and_areas_follow_the_image():
    one = Objects(np.array([[1.0, 2, 3, 4]]), np.zeros(1, int), areas=np.array([12.0]))
    twice = one.scaled(2, 0.5)
    assert twice.boxes.tolist() == [[2, 1, 6, 2]]
    assert twice.areas.tolist() == [12.0]
    assert one.scaled(2, 3).areas.tolist() == [72.0]


@pytest.mark.parametrize("name", [name for name in COLUMNS if name not in ("boxes", "classes")])
def test_every_column_is_carried_by_every_method(name):
    """A new column needs no line in any of them."""
    values = np.arange(3) if name != "image" else np.array([0, 1, 2])
    some = dataclasses.replace(table(3), **{name: values})
    assert getattr(some.take([2, 1]), name).tolist() == [2, 1]
    assert getattr(Objects.concat([some, some]), name).tolist() == [0, 1, 2, 0, 1, 2]
    assert getattr(some.each(torch.from_numpy).take([0]), name).tolist() == [0]
    assert getattr(some.scaled(1, 1), name).tolist() == [0, 1, 2]
    if name != "image":
        stacked = Objects.of_images([some, some])
        assert getattr(stacked, name).tolist() == [0, 1, 2, 0, 1, 2]
        assert getattr(stacked.by_image(2)[1], name).tolist() == [0, 1, 2]
