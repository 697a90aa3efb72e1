"""Masks against pycocotools, drawn planes, and what training makes of them."""

import shutil

import numpy as np
import pytest
from pycocotools import mask as reference

from data.feed import worker_memory
from data.feed.transforms import Augment
from data.masks import (
    Planes,
    Polygons,
    Rle,
    bounds,
    encode,
    encode_all,
    in_cells,
    mask_column,
    pixels_of,
    to_rle,
)
from data.objects import Objects
from errors import UserError


def random_plane(rng, size=(37, 53), parts=4):
    plane = np.zeros(size, np.uint8)
    for _ in range(parts):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        plane[y : y + rng.integers(1, 20), x : x + rng.integers(1, 25)] ^= 1
    return plane


def decoded(rle):
    return reference.decode({"size": list(rle.size), "counts": rle.counts})


def plane_of(mask, size):
    plane = np.zeros(size, np.uint8)
    plane[pixels_of(mask, size)] = 1
    return plane


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    plane = random_plane(rng, (rng.integers(1, 90), rng.integers(1, 90)), seed)
    rle = encode(plane)
    assert rle.counts == reference.encode(np.asfortranarray(plane))["counts"]
    np.testing.assert_array_equal(plane_of(rle, plane.shape), plane)
    both = encode_all(np.stack([plane, 1 - plane]))
    assert both[0] == rle
    np.testing.assert_array_equal(decoded(both[1]), 1 - plane)


@pytest.mark.parametrize("seed", range(20))
def test_polygons_are_filled_as_by_pycocotools(seed):
    rng = np.random.default_rng(seed)
    size = (48, 64)
    rings = tuple(rng.uniform(-5, 70, (rng.integers(3, 9), 2)) for _ in range(rng.integers(1, 4)))
    parts = reference.frPyObjects([ring.ravel().tolist() for ring in rings], *size)
    wanted = reference.decode(reference.merge(parts))
    np.testing.assert_array_equal(decoded(to_rle(Polygons(size, rings), size)), wanted)


def test_masks_of_another_size_of_the_picture_scale_with_it():
    square = Polygons((100, 200), (np.array([[20.0, 10], [60, 10], [60, 50], [20, 50]]),))
    for mask in (square, to_rle(square, square.size)):
        plane = plane_of(mask, (50, 50))
        rows, columns = np.flatnonzero(plane.any(1)), np.flatnonzero(plane.any(0))
        assert (rows[0], rows[-1], columns[0], columns[-1]) == (5, 24, 5, 14)
        assert plane.sum() == 20 * 10
        np.testing.assert_allclose(bounds(mask), [0.1, 0.1, 0.3, 0.5])


@pytest.mark.parametrize("size", [(37, 53), (74, 106), (111, 53), (19, 20)])
def test_every_pixel_of_a_resized_mask_is_the_nearest_one(size):
    plane = random_plane(np.random.default_rng(3))
    y = ((np.arange(size[0]) + 0.5) * 37 / size[0]).astype(int)
    x = ((np.arange(size[1]) + 0.5) * 53 / size[1]).astype(int)
    np.testing.assert_array_equal(plane_of(encode(plane), size), plane[y[:, None], x])


def overlapping(num, size, seed=0):
    """Objects of which many overlap, some of them nested."""
    rng = np.random.default_rng(seed)
    planes = [random_plane(rng, size, 2) for _ in range(num)]
    planes += [np.ones(size, np.uint8)]
    boxes = np.tile([0.0, 0, *size[::-1]], (len(planes), 1))
    return planes, Objects(
        boxes, np.arange(len(planes)), masks=mask_column([encode(p) for p in planes])
    )


@pytest.mark.parametrize("num", [0, 5, 300])
def test_overlapping_objects_keep_all_of_their_pixels(num):
    planes, objects = overlapping(num, (40, 60))
    drawn = Planes.drawn(objects, (40, 60))
    assert drawn.ids.dtype == (np.uint8 if num < 254 else np.uint16)
    for number, plane in enumerate(planes, 1):
        np.testing.assert_array_equal((drawn.ids == number).any(0), plane.astype(bool))
    boxes, areas = drawn.boxes(len(planes))
    np.testing.assert_array_equal(areas, [plane.sum() for plane in planes])
    for box, plane in zip(boxes, planes, strict=True):
        if plane.any():
            wanted = reference.toBbox(reference.encode(np.asfortranarray(plane)))
            np.testing.assert_array_equal(box, wanted)
        else:
            assert (box[2:] <= 0).all()


def test_objects_beside_each_other_share_a_plane():
    masks = [encode(np.eye(30, dtype=np.uint8)[:, [i] * 30]) for i in range(30)]
    objects = Objects(np.zeros((30, 4)), np.zeros(30, int), masks=mask_column(masks))
    assert Planes.drawn(objects, (30, 30)).ids.shape == (1, 30, 30)


@pytest.mark.parametrize("size", [(40, 60), (37, 53)])
def test_cells_are_counts_of_covered_pixels(size):
    planes, objects = overlapping(6, size)
    cells = Planes.drawn(objects, size).cells(7, (64, 96))
    for plane, own in zip(planes, cells, strict=True):
        padded = np.zeros((64, 96), int)
        padded[: size[0], : size[1]] = plane
        np.testing.assert_array_equal(own, padded.reshape(16, 4, 24, 4).sum((1, 3)))


def test_ignored_pixels_are_those_of_crowds_where_nothing_else_is():
    size = (8, 8)
    left, all_of_it = np.zeros(size, np.uint8), np.ones(size, np.uint8)
    left[:, :4] = 1
    one = Objects(np.zeros((1, 4)), np.zeros(1, int), masks=mask_column([encode(left)]))
    crowd = Objects(np.zeros((1, 4)), np.zeros(1, int), masks=mask_column([encode(all_of_it)]))
    planes = Planes.drawn(one, size).ignoring(crowd)
    np.testing.assert_array_equal(planes.ignored_cells((8, 8)), [[0, 16], [0, 16]])
    assert Planes.drawn(one, size).ignored_cells((8, 12)).sum() == 0


CHAINS = {
    "flip": [{"HorizontalFlip": {"p": 1.0}}],
    "both flips": [{"HorizontalFlip": {"p": 1.0}}, {"VerticalFlip": {"p": 1.0}}],
    "affine": [{"Affine": {"rotate": [10, 10], "scale": [0.8, 0.8], "p": 1.0}}],
    "crop": [{"RandomCrop": {"height": 48, "width": 48, "p": 1.0}}],
    "quarter turn": [{"RandomRotate90": {"p": 1.0}}],
    "flip, then crop": [
        {"HorizontalFlip": {"p": 1.0}},
        {"RandomCrop": {"height": 48, "width": 48, "p": 1.0}},
    ],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_masks_move_with_the_pixels_and_boxes_follow(chain):
    """The picture is painted with the object's mask, so that both can be compared after any warp."""
    size = (64, 96)
    plane = np.zeros(size, np.uint8)
    plane[20:50, 30:70] = 1
    plane[20:30, 30:40] = 0
    small = np.zeros(size, np.uint8)
    small[34:40, 44:56] = 1
    objects = Objects(
        np.array([[30.0, 20, 40, 30], [44, 34, 12, 6]]),
        np.array([4, 5]),
        masks=mask_column([encode(plane), encode(small)]),
    )
    image = np.stack([plane * 255, small * 255, plane * 0], axis=-1)
    planes = Planes.drawn(objects, size)
    moved, left, drawn = Augment(CHAINS[chain])(
        image, Objects(objects.boxes, objects.classes), (0, 0, 0), None, planes
    )
    assert left.classes.tolist() == [4, 5]
    for number, channel in enumerate((0, 1), 1):
        own = (drawn.ids == number).any(axis=0)
        painted = moved[..., channel] > 127
        union = (own | painted).sum()
        assert (own & painted).sum() > 0.93 * union, number
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        right, bottom = columns[-1] + 1, rows[-1] + 1
        wanted = [columns[0], rows[0], right - columns[0], bottom - rows[0]]
        np.testing.assert_array_equal(left.boxes[number - 1], wanted)
        assert left.areas[number - 1] == own.sum()


def test_objects_that_leave_the_picture_leave_the_numbering():
    masks = []
    for x in (0, 90):
        plane = np.zeros((32, 96), np.uint8)
        plane[4:20, x : x + 6] = 1
        masks.append(encode(plane))
    objects = Objects(
        np.array([[0.0, 4, 6, 16], [90, 4, 6, 16]]), np.array([7, 8]), masks=mask_column(masks)
    )
    planes = Planes.drawn(objects, (32, 96))
    shift = [{"Affine": {"translate_px": {"x": [10, 10], "y": [0, 0]}, "p": 1.0}}]
    image = np.zeros((32, 96, 3), np.uint8)
    _, left, drawn = Augment(shift)(
        image, Objects(objects.boxes, objects.classes), (0, 0, 0), None, planes
    )
    assert left.classes.tolist() == [7]
    assert np.unique(drawn.ids).tolist() == [0, 1]
    np.testing.assert_array_equal(left.boxes, [[10, 4, 6, 16]])


def test_memory_follows_pixels_and_not_objects_times_pixels():
    size, step = (512, 512), 32
    masks = []
    for y in range(0, 512, step):
        for x in range(0, 512, step):
            corners = [[x, y], [x + step - 1, y], [x + step - 1, y + step - 1], [x, y + step - 1]]
            masks.append(Polygons(size, (np.array(corners, float),)))
    objects = Objects(np.zeros((256, 4)), np.zeros(256, int), masks=mask_column(masks))
    planes = Planes.drawn(objects, size)
    assert planes.ids.nbytes == 512 * 512 * 2


def test_keys_tell_masks_apart():
    plane = random_plane(np.random.default_rng(0))
    ring = np.array([[1.0, 1], [5, 1], [5, 5]])
    masks = [
        *(encode(plane), encode(1 - plane), Rle((53, 37), encode(plane).counts)),
        *(Polygons((9, 9), (ring,)), Polygons((9, 10), (ring,)), Polygons((9, 9), (ring + 1,))),
    ]
    assert len({mask.key() for mask in masks}) == len(masks)


@pytest.mark.parametrize("argument", [{"mask_interpolation": 1}, {"fill_mask": 1}])
def test_arguments_that_would_mix_up_objects_are_refused(argument):
    with pytest.raises(UserError, match=f"with {next(iter(argument))} 1 would mix up"):
        Augment([{"Affine": {"rotate": [-5, 5], **argument}}])


def test_masks_count_in_what_workers_need(monkeypatch, tmp_path):
    """A hundred objects an image make a batch more than twice as large."""
    room = shutil.disk_usage(tmp_path)._replace(free=100_000_000)
    monkeypatch.setattr(worker_memory.shutil, "disk_usage", lambda _: room)
    monkeypatch.setattr(worker_memory, "_descriptors", lambda: 10_000)
    assert worker_memory.workers_short((512, 512), 4, 4) is None
    assert worker_memory.workers_short((512, 512), 4, 4, masks=1) is None
    assert "they come through pipes" in worker_memory.workers_short((512, 512), 4, 4, masks=100)


def test_objects_without_a_pixel_leave_the_numbering():
    """Also where the box is still there: a thin one that a resize stepped over, first of three."""
    ids = np.zeros((1, 8, 8), np.uint8)
    ids[0, 2:4, 2:4], ids[0, 6, 1:7] = 2, 3
    objects = Objects(np.tile([0.0, 0, 8, 8], (3, 1)), np.array([7, 8, 9]))
    planes, left = Planes(ids).fit(objects)
    assert left.classes.tolist() == [8, 9]
    np.testing.assert_array_equal(left.boxes, [[2, 2, 2, 2], [1, 6, 6, 1]])
    assert left.areas.tolist() == [4, 6]
    np.testing.assert_array_equal(planes.ids, np.where(ids > 0, ids - 1, 0))


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (0, 8), (64, 96)])
def test_cells_are_sums_of_four_by_four_pixels(size):
    """Empty, full and mixed planes, of bool and of bytes, also a part of a larger one."""
    height, width = size
    for share in (0.0, 0.5, 1.0):
        whole = np.random.default_rng(0).random((height, width + 8)) < share
        plane = whole[:, 4:-4]
        wanted = plane.reshape(height // 4, 4, width // 4, 4).sum(axis=(1, 3))
        for given in (plane, plane.astype(np.uint8)):
            found = in_cells(given)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, wanted)
