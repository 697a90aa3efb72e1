"""Segments of things and stuff against pixels that are painted one by one."""

from dataclasses import replace

import numpy as np
import pytest

import segmented
from data.build import build_data
from data.feed.collate import collate
from data.feed.loader import TrainDataset
from data.feed.sampler import SampleRef
from data.masks import encode, in_cells, mask_column, merged, pixels_of
from data.objects import Objects
from data.regions import partition, segment_map, segments_of
from model.finding import fused
from segmented import COLOURS, CROWD, parts_of
from settings.keys import ImageSizeConfig

SIZE = (30, 40)
THING, CAR, SKY, ROAD = range(4)
STUFF = (SKY, ROAD)


def objects_of(planes, classes, crowds=()):
    """Objects with the masks of bool planes [n, H, W]."""
    return Objects(
        np.zeros((len(planes), 4)),
        np.array(classes, dtype=np.int64),
        areas=np.array([float(plane.sum()) for plane in planes]),
        iscrowd=np.isin(np.arange(len(planes)), list(crowds)),
        masks=mask_column([encode(plane) for plane in planes]),
    )


def rectangle(y, x, height, width, size=SIZE):
    plane = np.zeros(size, bool)
    plane[y : y + height, x : x + width] = True
    return plane


def random_objects(seed):
    rng = np.random.default_rng(seed)
    sides = rng.integers([0, 0, 1, 1], [25, 35, 30, 30], (9, 4)).tolist()
    planes = [rectangle(*side) for side in sides]
    return objects_of(planes, rng.integers(0, 4, 9), rng.choice(9, 2, replace=False))


def painted_keys(objects, background=None):
    """What the segment of every pixel is: (class, place of the thing or None); None where not known."""
    keys = np.full(SIZE, None, object)
    order = sorted(range(len(objects)), key=lambda place: -objects.areas[place])
    for place in [place for place in order if not objects.iscrowd[place]]:
        kind = int(objects.classes[place])
        for y, x in zip(*pixels_of(objects.masks[place], SIZE), strict=True):
            keys[y, x] = (kind, None if kind in STUFF else place)
    crowd = np.zeros(SIZE, bool)
    for place in np.flatnonzero(objects.iscrowd):
        crowd[pixels_of(objects.masks[place], SIZE)] = True
    for y, x in np.argwhere(~crowd) if background is not None else ():
        keys[y, x] = keys[y, x] or (background, None)
    return keys


def check_same(numbers, classes, keys):
    """That numbers and keys part the pixels in the same way, with the same classes."""
    pairs = set(zip(numbers.ravel().tolist(), keys.ravel().tolist(), strict=True))
    assert len(pairs) == len({n for n, _ in pairs}) == len({key for _, key in pairs})
    for number, key in pairs:
        assert (number == 0) == (key is None)
        assert key is None or classes[number - 1] == key[0]


# --- maps ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("background", [None, SKY])
@pytest.mark.parametrize("seed", range(20))
def test_things_are_apart_stuff_is_one_and_crowds_are_not_known(seed, background):
    objects = random_objects(seed)
    keys = painted_keys(objects, background)
    check_same(*segment_map(objects, SIZE, STUFF, background), keys)
    planes, segments = partition(objects, SIZE, background, STUFF)
    check_same(planes.ids[0], segments.classes, keys)
    present = np.unique(planes.ids[planes.ids > 0]).tolist()
    assert present == list(range(1, len(segments) + 1))
    assert not segments.iscrowd.any()
    for number in present:
        rows, columns = np.nonzero(planes.ids[0] == number)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert segments.boxes[number - 1].tolist() == box
        assert segments.areas[number - 1] == len(rows)


@pytest.mark.parametrize("seed", range(5))
def test_segments_of_a_map_give_the_map(seed):
    numbers, classes = segment_map(random_objects(seed), SIZE, STUFF)
    segments = segments_of(numbers, classes)
    again = segment_map(replace(segments, areas=None), SIZE, STUFF)
    there = np.unique(numbers[numbers > 0])
    assert segments.classes.tolist() == classes[there.astype(int) - 1].tolist()
    check_same(*again, painted_keys(random_objects(seed)))


def test_what_is_covered_by_others_is_no_segment():
    objects = objects_of([rectangle(5, 5, 4, 4), rectangle(5, 5, 4, 4)], [THING, CAR])
    planes, segments = partition(objects, SIZE, None, STUFF)
    assert segments.classes.tolist() == [CAR]
    assert (planes.ids[0] == 1).sum() == 16


def test_background_joins_the_class_of_that_name():
    sky, person = rectangle(0, 0, 4, 40), rectangle(10, 10, 5, 5)
    numbers, classes = segment_map(objects_of([person, sky], [THING, SKY]), SIZE, STUFF, SKY)
    assert classes.tolist() == [THING, SKY]
    np.testing.assert_array_equal(numbers, np.where(person, 1, 2))


def test_image_without_objects():
    numbers, classes = segment_map(Objects.none(), SIZE, STUFF)
    assert not numbers.any()
    assert len(classes) == 0
    assert len(partition(Objects.none(), SIZE, None, STUFF)[1]) == 0
    planes, segments = partition(Objects.none(), SIZE, ROAD, STUFF)
    assert segments.classes.tolist() == [ROAD]
    assert (planes.ids == 1).all()


def test_crowd_alone_leaves_the_background_around_it():
    crowd = rectangle(3, 4, 10, 10)
    planes, segments = partition(objects_of([crowd], [THING], [0]), SIZE, SKY, STUFF)
    assert segments.classes.tolist() == [SKY]
    np.testing.assert_array_equal(planes.ids[0], ~crowd)


@pytest.mark.parametrize("num", [254, 255, 256, 300])
def test_more_segments_than_a_byte_numbers(num):
    planes = np.arange(num).reshape(-1, 1, 1) == np.arange(320).reshape(16, 20)
    objects = objects_of(planes, [THING] * num)
    drawn, segments = partition(objects, (16, 20), SKY, STUFF)
    assert len(segments) == num + 1
    assert segments.classes.tolist() == [THING] * num + [SKY]
    expected = np.minimum(np.arange(320), num).reshape(16, 20) + 1
    np.testing.assert_array_equal(drawn.ids[0], expected)


def test_maps_of_two_scales():
    half, whole = rectangle(0, 0, 8, 8, (15, 20)), rectangle(20, 20, 5, 5)
    numbers, _ = segment_map(objects_of([half, whole], [THING, THING]), SIZE, STUFF)
    np.testing.assert_array_equal(numbers, rectangle(0, 0, 16, 16) + 2 * whole)


# --- what is found -------------------------------------------------------------------------------
@pytest.mark.parametrize("num", [1, 2, 5])
def test_merged_masks_cover_what_any_of_them_does(num):
    planes = [rectangle(3 * place, 5 * place, 12, 7) for place in range(num)]
    assert merged([encode(plane) for plane in planes]) == encode(np.any(planes, axis=0))


def found_on_two_images():
    planes = [rectangle(4 * place, 5 * place, 4, 5) for place in range(6)]
    table = objects_of(planes, [SKY, THING, SKY, THING, SKY, ROAD])
    scores = np.array([0.6, 0.5, 0.9, 0.7, 0.8, 0.4])
    return replace(table, scores=scores, image=np.array([0, 0, 0, 0, 1, 1]), areas=None), planes


def test_stuff_is_fused_on_each_image():
    found, planes = found_on_two_images()
    parts = fused(found, STUFF)
    assert parts.image.tolist() == [0, 0, 0, 1, 1]
    assert parts.classes.tolist() == [SKY, THING, THING, SKY, ROAD]
    assert parts.scores.tolist() == [0.9, 0.5, 0.7, 0.8, 0.4]
    assert parts.masks[0] == encode(planes[0] | planes[2])
    assert list(parts.masks[1:]) == [encode(planes[place]) for place in (1, 3, 4, 5)]
    np.testing.assert_allclose(parts.boxes[0], [0, 0, 15, 12])
    np.testing.assert_allclose(parts.boxes[1], [5, 4, 5, 4])


def test_nothing_is_fused_without_stuff_or_objects():
    found, _ = found_on_two_images()
    parts = fused(found, ())
    assert list(parts.masks) == list(found.masks)
    assert parts.scores.tolist() == found.scores.tolist()
    nothing = fused(found.take(np.zeros(0, np.int64)), STUFF)
    assert nothing.boxes.shape == (0, 4)
    assert len(nothing.masks) == len(nothing.scores) == 0


# --- samples -------------------------------------------------------------------------------------
SIDE = 96
FLIPS = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
TURNED = {"Affine": {"rotate": [-30, 30], "scale": [0.6, 1.2], "p": 1.0}}
CROP = {"RandomCrop": {"height": 40, "width": 40, "p": 1.0}}
AUGMENTS = {"nothing": [], "flips": FLIPS, "all": [*FLIPS, TURNED, CROP]}


def samples_of(root, augment, longest=SIDE, fit="pad"):
    """Of images that show their parts: PNG, so that colours are what they were."""
    cfg = segmented.write_coco(root, ".png")
    cfg = replace(cfg, image_size=ImageSizeConfig(longest, fit=fit), augment=augment)
    data = build_data(cfg, 0, labels="segments")
    dataset = TrainDataset(data.train, cfg, 0, "segments", data.taxonomy)
    for epoch in range(4):
        for index in range(len(dataset.split)):
            yield index, dataset[SampleRef(index, epoch, (SIDE, SIDE))]


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_segments_move_with_the_pixels(tmp_path, name, fit):
    """Wherever a pixel has the pure colour of a part, it is of that part's segment; crowds are ignored."""
    places = []
    for index, sample in samples_of(tmp_path, AUGMENTS[name], fit=fit):
        (ids,) = sample.planes.ids
        np.testing.assert_array_equal(sample.planes.ignored, ids == 0)
        assert set(ids[ids > 0].tolist()) == set(range(1, len(sample.objects) + 1))
        number_of = {}
        for part, colour in enumerate(COLOURS.astype(int)):
            if not segmented.SEGMENTS[part]:
                continue
            shown = ids[(np.abs(sample.image - colour) <= 1).all(axis=2)]
            if len(shown):
                number = int(np.bincount(shown).argmax())
                assert (shown == number).mean() >= 0.98
                assert sample.objects.classes[number - 1] == segmented.CLASSES[part]
                number_of.setdefault(int(segmented.SEGMENTS[part]), set()).add(number)
        assert all(len(numbers) == 1 for numbers in number_of.values())  # both parts of the sky
        assert len(set.union(*number_of.values())) == len(number_of)
        crowd = (np.abs(sample.image - COLOURS[CROWD].astype(int)) <= 1).all(axis=2)
        assert sample.planes.ignored[crowd].mean() >= 0.98 if crowd.any() else True
        kinds = sample.objects.classes.tolist()
        assert max((kinds.count(kind) for kind in STUFF), default=1) <= 1
        places.append((index, ids.tobytes()))
    assert len(set(places)) == 4 if name == "nothing" else len(set(places)) > 6


@pytest.mark.parametrize("name", AUGMENTS)
def test_squares_are_full_of_segments_and_ignored_pixels(tmp_path, name):
    """90 px are no multiple of 4: squares at the edge are full as far as the image goes."""
    samples = [sample for _, sample in samples_of(tmp_path, AUGMENTS[name], 90)]
    batch = collate(samples)
    assert batch.num_objects == [len(np.unique(s.planes.ids[s.planes.ids > 0])) for s in samples]
    cells = batch.ignored.numpy().astype(int)
    np.add.at(cells, batch.objects.image.numpy(), batch.objects.masks.numpy())
    for own, inside in zip(cells, batch.pixel_mask.numpy(), strict=True):
        np.testing.assert_array_equal(own, in_cells(inside))


def test_whole_images_have_all_their_segments(tmp_path):
    for index, sample in samples_of(tmp_path, [], fit="stretch"):
        assert sample.objects.classes.tolist() == [THING, THING, CAR, SKY, ROAD]
        known = (segmented.SEGMENTS[parts_of(index)] > 0).mean()
        assert 1 - sample.planes.ignored.mean() == pytest.approx(known, abs=0.02)
