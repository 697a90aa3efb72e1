"""Records as columns are the records that they were made of."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest

from data.masks import Polygons, encode, mask_column
from data.objects import Objects
from data.record import Record
from data.table import RecordTable


def objects(num, seed=0, masks=False):
    rng = np.random.default_rng(seed)
    ring = np.array([[0.5, 0.25], [7.0, 1 / 3], [3.0, 6.0]])
    kinds = [encode(np.eye(8, dtype=np.uint8)), Polygons((8, 8), (ring, ring + 1e-9))]
    return Objects(
        boxes=rng.uniform(0, 9, (num, 4)),
        classes=rng.integers(0, 3, num),
        areas=rng.uniform(0, 9, num),
        iscrowd=rng.random(num) < 0.5,
        numbers=rng.integers(-9, 9, num),
        masks=mask_column([kinds[k % 2] for k in range(num)]) if masks else None,
    )


def records(masks=False):
    return [
        Record(7, "a/ä.jpg", 40, 30, objects(3, 0, masks), "annotation", "d1"),
        Record("7", "\udcff", 30, 40, objects(0, 1, masks), "line", ""),
        Record(-(2**61), "c", 1, 1, objects(2, 2, masks), "line", "d3", unreadable=True),
    ]


def same(one, other):
    assert replace(one, objects=None) == replace(other, objects=None)
    assert type(one.image_id) is type(other.image_id)
    mine, theirs = one.objects.columns(), other.objects.columns()
    assert mine.keys() == theirs.keys()
    for name, column in mine.items():
        if name == "masks":
            assert [mask.key() for mask in column] == [mask.key() for mask in theirs[name]]
        else:
            assert column.dtype == theirs[name].dtype
            np.testing.assert_array_equal(column, theirs[name])


@pytest.mark.parametrize("masks", [False, True])
def test_records_come_back(masks):
    given = records(masks)
    table = RecordTable.of(given)
    assert len(table) == 3
    for one, other in zip(given, table, strict=True):
        same(one, other)
    same(table[-1], given[2])
    assert [record.image_id for record in table[1:]] == ["7", -(2**61)]
    np.testing.assert_array_equal(table.sizes, [[30, 40], [40, 30], [1, 1]])
    np.testing.assert_array_equal(table.counts, [3, 0, 2])
    same(pickle.loads(pickle.dumps(table))[0], given[0])
    with pytest.raises(IndexError):
        table[3]


def test_objects_of_all_images_have_their_places():
    given = records(masks=True)
    one, other = RecordTable.of(given).objects, Objects.of_images([r.objects for r in given])
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.boxes, other.boxes)
    assert [mask.key() for mask in one.masks] == [mask.key() for mask in other.masks]
    assert Objects.concat([one, one]).masks[5].key() == other.masks[0].key()
    np.testing.assert_array_equal(one.of_image(2).boxes, given[2].objects.boxes)


def test_a_split_without_images_and_one_without_objects():
    assert list(RecordTable.of([])) == []
    empty = [Record(1, "a", 4, 4, Objects.none())]
    assert len(RecordTable.of(empty)[0].objects) == 0
    assert len(RecordTable.of(empty).objects) == 0


def digest(given):
    found = hashlib.sha256()
    RecordTable.of(given).add_to(found)
    return found.hexdigest()


CHANGES = {
    "id": lambda r: replace(r, image_id="7"),
    "size": lambda r: replace(r, width=30, height=40),
    "pixels": lambda r: replace(r, digest="d2"),
    "box": lambda r: replace(r, objects=replace(r.objects, boxes=r.objects.boxes + 1)),
    "class": lambda r: replace(r, objects=replace(r.objects, classes=r.objects.classes + 1)),
    "area": lambda r: replace(r, objects=replace(r.objects, areas=r.objects.areas + 1)),
    "crowd": lambda r: replace(r, objects=replace(r.objects, iscrowd=~r.objects.iscrowd)),
    "mask": lambda r: replace(r, objects=replace(r.objects, masks=r.objects.masks[[1, 0, 2]])),
    "an object less": lambda r: replace(r, objects=r.objects.take(slice(2))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_sees_whatever_is_trained_on(change):
    given = records(masks=True)
    assert digest(given) == digest(records(masks=True))
    assert digest([CHANGES[change](given[0]), *given[1:]]) != digest(given)


def test_the_fingerprint_does_not_see_where_files_lie_and_what_objects_are_called():
    given = records()
    other = replace(
        given[0], where="b", objects=replace(given[0].objects, numbers=np.zeros(3, int))
    )
    assert digest([other, *given[1:]]) == digest(given)
