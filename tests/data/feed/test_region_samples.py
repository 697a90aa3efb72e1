"""Training samples of regions: labels that move with the pixels, and every pixel has one or is ignored."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import painted
from builders import write_coco
from data.build import build_data
from data.feed.collate import collate
from data.feed.loader import TrainDataset
from data.feed.sampler import SampleRef
from data.masks import in_cells
from data.taxonomy import Taxonomy
from painted import COLOURS, VOID, labels_of
from settings.keys import DataConfig, ImageSizeConfig

SIZE = 96
"""Longest side of the samples: twice or more that of the images"""
FLIPS = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
AFFINE = {
    "Affine": {
        "rotate": [-30, 30],
        "scale": [0.6, 1.2],
        "translate_percent": {"x": [-0.2, 0.2]},
        "fill": [255, 0, 255],
        "p": 1.0,
    }
}
CROP = {"RandomCrop": {"height": 32, "width": 32, "p": 1.0}}
TURN = {"RandomRotate90": {"p": 1.0}}
AUGMENTS = {
    "nothing": [],
    "flips": FLIPS,
    "affine": [AFFINE],
    "crop": [CROP],
    "turned by 90 degrees": [TURN],
    "all": [*FLIPS, AFFINE, TURN, CROP],
}
PAD, STRETCH = ImageSizeConfig(SIZE, fit="pad"), ImageSizeConfig(SIZE, fit="stretch")


def make_dataset(root, augment=(), size=PAD):
    """Of images that show their labels: PNG, so that colours are what they were."""
    cfg = painted.write_folders(root)
    for file in (root / "images/train").glob("*.jpg"):
        Image.fromarray(COLOURS[labels_of(int(file.stem))]).save(file.with_suffix(".png"))
        file.unlink()
    cfg = replace(cfg, image_size=size, augment=list(augment))
    data = build_data(cfg, 0, labels="regions")
    return TrainDataset(data.train, cfg, 0, "regions", data.taxonomy)


def samples_of(dataset, epochs=5):
    canvas = (SIZE, SIZE)
    for epoch in range(epochs):
        yield from (dataset[SampleRef(i, epoch, canvas)] for i in range(len(dataset.split)))


def values_of(sample):
    """What each pixel has, as files of label maps would say it."""
    values = np.array([VOID, *sample.objects.classes])[sample.planes.ids.max(axis=0)]
    np.testing.assert_array_equal(values == VOID, sample.planes.ignored == 1)
    return values


@pytest.mark.parametrize("size", [PAD, STRETCH], ids=["pad", "stretch"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_labels_move_with_the_pixels(tmp_path, name, size):
    """Wherever a pixel has the pure colour of a class, it has that class; elsewhere it is at a border."""
    pure = {v: COLOURS[v].astype(int) for v in (0, 1, 2, VOID)}
    told = 0
    for sample in samples_of(make_dataset(tmp_path, AUGMENTS[name], size)):
        values = values_of(sample)
        for value, colour in pure.items():
            shown = (np.abs(sample.image - colour) <= 1).all(axis=2)
            assert (values[shown] == value).mean() >= 0.99 if shown.any() else True
            told += int(shown.sum()) / values.size
    assert told / 20 > 0.5


@pytest.mark.parametrize("name", ["nothing", "affine", "all"])
def test_squares_are_full_of_classes_and_ignored_pixels(tmp_path, name):
    """90 px are no multiple of 4: squares at the edge are full as far as the image goes."""
    size = ImageSizeConfig(90, fit="pad")
    batch = collate(list(samples_of(make_dataset(tmp_path, AUGMENTS[name], size))))
    cells = batch.ignored.numpy().astype(int)
    np.add.at(cells, batch.objects.image.numpy(), batch.objects.masks.numpy())
    for own, inside in zip(cells, batch.pixel_mask.numpy(), strict=True):
        np.testing.assert_array_equal(own, in_cells(inside))
    whole = (cells == 16).mean()
    assert 0.5 < whole < 1


@pytest.mark.parametrize("part", [1, 9])
def test_a_crop_keeps_every_region_of_which_a_pixel_is_left(tmp_path, part):
    """Of regions that are mostly outside as well, all pixels are as the whole image has them."""
    side = round(SIZE / part**0.5)
    crop = [{"RandomCrop": {"height": side, "width": side, "p": 1.0}}]
    whole = make_dataset(tmp_path / "a", [], STRETCH)
    cut = make_dataset(tmp_path / "b", crop, STRETCH)
    numbers = set()
    for sample in samples_of(cut, 10):
        full = values_of(whole[SampleRef(sample.index, 0, (SIZE, SIZE))])
        ours = values_of(sample)[:: SIZE // side, :: SIZE // side]
        windows = np.lib.stride_tricks.sliding_window_view(full, (side, side))
        assert (windows == ours).all(axis=(2, 3)).any()
        assert set(sample.objects.classes.tolist()) == set(ours[ours != VOID].tolist())
        numbers.add(len(sample.objects))
    assert len(numbers) > 1 or part == 1


def make_background(root, augment=()):
    """Of COCO files, where what no mask covers is background, class 0."""
    write_coco(root, 4)
    image_size = ImageSizeConfig(SIZE, fit="stretch")
    cfg = DataConfig("coco", str(root), val_on_train=True, image_size=image_size)
    cfg = replace(cfg, augment=list(augment))
    data = build_data(cfg, 0, labels="regions")
    assert data.taxonomy.background == 0
    return TrainDataset(data.train, cfg, 0, "regions", data.taxonomy)


def test_what_no_mask_covers_is_background_and_what_an_affine_fills_in_is_ignored(tmp_path):
    for sample in samples_of(make_background(tmp_path / "a"), 1):
        assert not sample.planes.ignored.any()
    filled = 0
    for sample in samples_of(make_background(tmp_path / "b", [AFFINE])):
        new = (sample.image == AFFINE["Affine"]["fill"]).all(axis=2)
        assert (values_of(sample)[new] == VOID).all()
        assert sample.planes.ignored[~new].mean() < 0.05  # the border of the two, half filled
        assert 0 in sample.objects.classes
        filled += new.mean()
    assert filled / 20 > 0.1


def test_crowds_have_a_class(tmp_path):
    dataset = make_background(tmp_path)
    record = dataset.split.records[0]
    assert not record.objects.iscrowd.any()
    crowd = replace(record, objects=replace(record.objects, iscrowd=np.array([True])))
    taxonomy = Taxonomy(("background", "class1"), (0, 1), background=0)
    twin = TrainDataset(
        replace(dataset.split, records=[crowd]), dataset.cfg, 0, "regions", taxonomy
    )
    ref = SampleRef(0, 0, (SIZE, SIZE))
    np.testing.assert_array_equal(values_of(twin[ref]), values_of(dataset[ref]))
    assert twin[ref].objects.classes.tolist() == [0, 1]
