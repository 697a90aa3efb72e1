"""Masks of windows: cut out of whole ones and put back, pixel by pixel as if they were drawn."""

from dataclasses import replace

import numpy as np
import pytest

from builders import tiny_run
from data.build import build_data, with_tiles
from data.masks import Polygons, Rle, encode, mask_column, pixels_of, to_rle
from data.objects import Objects
from data.strips import Strips, cut_out, put_back
from data.tiles import on_window
from settings.load import load_config


def plane_of(mask, size):
    plane = np.zeros(size, bool)
    plane[pixels_of(mask, size)] = True
    return plane


def planes(size, rng):
    """Of all kinds: sparse, dense, full, empty, whole columns, a single pixel."""
    yield from (rng.random(size) < density for density in (0.02, 0.5, 0.97))
    yield np.ones(size, bool)
    yield np.zeros(size, bool)
    columns = np.zeros(size, bool)
    columns[:, 2:5] = columns[:3, 5] = True
    yield columns
    dot = np.zeros(size, bool)
    dot[-1, -1] = True
    yield dot


WINDOWS = [(0, 0, 13, 9), (0, 0, 4, 4), (3, 2, 5, 6), (9, 5, 4, 4), (12, 8, 1, 1), (2, 0, 3, 9)]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_mask_is_cut_and_put_back_as_its_pixels_are(window):
    size, (x, y, w, h) = (9, 13), window
    for plane in planes(size, np.random.default_rng(0)):
        whole = encode(plane)
        strips = Strips.of(whole, size)
        assert strips.pixels == plane.sum()
        assert strips.rle(size) == whole
        cut = cut_out(whole, size, np.array(window))
        assert cut == encode(plane[y : y + h, x : x + w])
        alone = np.zeros(size, bool)
        alone[y : y + h, x : x + w] = plane[y : y + h, x : x + w]
        assert put_back(cut, size, np.array(window)) == encode(alone)


def test_a_mask_of_a_smaller_picture_is_cut_as_it_is_drawn_on_the_image():
    small = encode(np.random.default_rng(1).random((9, 13)) < 0.4)
    cut = cut_out(small, (27, 39), np.array([5, 7, 20, 11]))
    assert np.array_equal(plane_of(cut, (11, 20)), plane_of(small, (27, 39))[7:18, 5:25])


def test_polygons_stay_such_where_they_are_whole_and_are_cut_as_they_are_drawn_elsewhere():
    size = (60, 80)
    ring = np.array([[20.0, 10], [50, 14], [44, 41], [23, 36]])
    polygons = Polygons((30, 40), (ring / 2, ring / 2 + 1))  # of a picture half as large
    drawn = plane_of(polygons, size)
    inside = cut_out(polygons, size, np.array([15, 5, 50, 45]))
    assert isinstance(inside, Polygons)
    assert inside.size == (45, 50)
    assert np.array_equal(plane_of(inside, (45, 50)), drawn[5:50, 15:65])
    across = cut_out(polygons, size, np.array([30, 20, 30, 40]))
    assert isinstance(across, Rle)
    assert np.array_equal(plane_of(across, (40, 30)), drawn[20:60, 30:60])


def angle():
    """An L on an image of 40 x 60 px: a wide foot of 30 x 2 px, and 4 x 20 px above its left end."""
    plane = np.zeros((40, 60), bool)
    plane[10:30, 10:14] = plane[28:30, 10:40] = True
    return plane


def seen(plane, window, crowd=False):
    """What of it is on a window: objects, and the places of those."""
    y, x = np.nonzero(plane)
    box = np.array([[x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]], np.float64)
    objects = Objects(
        box, np.zeros(1, int), areas=np.array([264.0]), iscrowd=np.array([crowd], bool)
    )
    strips = Strips.of(encode(plane), plane.shape)
    return on_window(objects, np.array(window), lambda place: strips)


def test_the_box_of_a_cut_object_is_that_of_what_is_seen_of_its_mask():
    own, places = seen(angle(), (0, 0, 13, 40))  # 60 of its 132 px
    assert places.tolist() == [0]
    assert own.boxes.tolist() == [[10, 10, 3, 20]]
    assert own.areas.tolist() == [264 * 60 / 132]
    own, _ = seen(angle(), (12, 20, 20, 20))
    assert own.boxes.tolist() == [[0, 0, 20, 10]]
    own, _ = seen(angle(), (5, 5, 50, 30))  # whole
    assert own.boxes.tolist() == [[5, 5, 30, 20]]
    assert own.areas.tolist() == [264]


def test_an_object_is_on_a_window_that_has_enough_of_its_mask_whatever_of_its_box():
    window = (20, 0, 40, 40)  # two thirds of its box, and 40 of its 132 px
    assert len(seen(angle(), window)[0]) == 1
    window = (24, 0, 36, 40)  # more than half of its box, and 32 px
    assert len(seen(angle(), window)[0]) == 0
    assert len(seen(angle(), window, crowd=True)[0]) == 1
    window = (14, 0, 46, 28)  # most of its box, and no pixel
    assert len(seen(angle(), window)[0]) == 0
    assert len(seen(angle(), window, crowd=True)[0]) == 0
    window = (0, 0, 14, 40)  # an eighth of its box, and two thirds of its mask
    assert len(seen(angle(), window)[0]) == 1


def test_the_windows_of_a_split_have_the_masks_that_its_images_have_there(tmp_path):
    keys = {"data__tiles__size": 40, "data__tiles__overlap": 0.25, "data__tiles__whole": True}
    cfg = load_config(tiny_run(tmp_path, "maskformer", **keys))
    data = build_data(cfg.data, 0, labels="masks")
    # Run lengths as well as polygons, and one that is a crowd
    given = data.train.objects
    size = data.train.table.sizes[given.image]
    masks = [
        to_rle(mask, tuple(size[n].tolist())) if n % 2 else mask
        for n, mask in enumerate(given.masks)
    ]
    crowd = np.arange(len(given)) == 4
    changed = replace(given, masks=mask_column(masks), iscrowd=crowd)
    records = [
        replace(record, objects=own)
        for record, own in zip(data.train.records, changed.by_image(len(data.train)), strict=True)
    ]
    data = replace(data, train=replace(data.train, records=records))
    cut = with_tiles(data, cfg.data.tiles)
    assert len(cut.train) > len(data.train)
    assert cut.train.table.counts.tolist() == [len(record.objects) for record in cut.train.records]
    partly = 0
    for index, record in enumerate(cut.train.records):
        window = cut.train.images[index]
        place = slice(window.y, window.y + window.height), slice(window.x, window.x + window.width)
        number = next(n for n in range(8) if data.train.images[n] == window.source)
        wanted = []
        whole = data.train.records[number].objects
        for mask, is_crowd in zip(whole.masks, whole.iscrowd, strict=True):
            drawn = plane_of(mask, window.size)
            there = drawn[place]
            if there.any() and (is_crowd or there.sum() >= 0.25 * drawn.sum()):
                wanted.append(there)
            partly += there.any() and there.sum() < drawn.sum()
        assert len(record.objects) == len(wanted)
        for mask, box, there in zip(
            record.objects.masks, record.objects.boxes.tolist(), wanted, strict=True
        ):
            drawn = plane_of(mask, (record.height, record.width))
            assert np.array_equal(drawn, there)
            rows, columns = np.nonzero(there)
            around = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert box == pytest.approx(around, abs=1)
    assert partly > 4
    assert cut.val_windows.objects.masks is None
