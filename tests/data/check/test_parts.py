"""Figures of datasets of which every pixel has a class, against counts of their pixels."""

import numpy as np
import pytest

import painted
import segmented
from builders import write_coco
from data.build import read_data
from data.check.parts import drawn_parts, parts_of, pixel_statistics
from data.findings import Findings
from data.regions import label_map, segment_map
from painted import NAMES, SPLITS, VOID, labels_of
from segmented import CLASSES, CROWD, read_segments
from settings.keys import DataConfig


def figures_of(cfg, labels):
    data = read_data(cfg, 0, Findings(), labels)
    return data, pixel_statistics(parts_of(data.train, data), data.train, data)


def shares(figures):
    return [*(entry.share for entry in figures.classes), figures.ignored_share]


def test_regions_are_counted_by_pixels(tmp_path):
    _, figures = figures_of(painted.write_folders(tmp_path), "regions")
    maps = [labels_of(number) for number in SPLITS["train"]]
    pixels = np.concatenate([labels.ravel() for labels in maps])
    assert shares(figures) == pytest.approx([(pixels == v).mean() for v in (0, 1, 2, VOID)], abs=0)
    assert [entry.name for entry in figures.classes] == list(NAMES)
    images = [sum((labels == v).any() for labels in maps) for v in (0, 1, 2, VOID)]
    assert [entry.images for entry in figures.classes] == images[:3]
    assert [entry.parts for entry in figures.classes] == images[:3]
    assert figures.ignored_images == images[3]
    assert (figures.images, figures.images_without_labels, figures.parts) == (4, 0, sum(images[:3]))
    least = min((labels == v).mean() for labels in maps for v in range(3) if (labels == v).any())
    assert figures.part_share.least == pytest.approx(least, abs=1e-6)


def test_pixels_are_those_of_the_image_and_not_of_a_larger_label_map(tmp_path):
    _, figures = figures_of(painted.write_folders(tmp_path / "one"), "regions")
    cfg = painted.write_folders(tmp_path / "two")
    # One image's map three times as large: it counts as much as before.
    painted.as_grey(labels_of(1).repeat(3, 0).repeat(3, 1)).save(
        tmp_path / "two/annotations/train/001.png"
    )
    assert shares(figures_of(cfg, "regions")[1]) == shares(figures)


def test_images_of_ignored_pixels_alone(tmp_path):
    cfg = painted.write_folders(tmp_path)
    painted.as_grey(np.full_like(labels_of(0), VOID)).save(tmp_path / "annotations/train/000.png")
    _, figures = figures_of(cfg, "regions")
    assert figures.images_without_labels == 1
    assert figures.parts_per_image.least == 0


def test_segments_are_counted_with_stuff_united_and_groups_ignored(tmp_path):
    _, figures = figures_of(segmented.write_coco(tmp_path), "segments")
    places = np.concatenate([segmented.parts_of(n).ravel() for n in SPLITS["train"]])
    classes = np.array([-1 if c is None or p == CROWD else c for p, c in enumerate(CLASSES)])
    kinds = classes[places]
    expected = [(kinds == v).mean() for v in (0, 1, 2, 3, -1)]
    assert shares(figures) == pytest.approx(expected, abs=1e-12)
    assert [entry.parts for entry in figures.classes] == [8, 4, 4, 4]  # the sky is in two parts
    assert [entry.images for entry in figures.classes] == [4] * 4
    assert (figures.parts, figures.crowd_parts) == (20, 4)


def test_segments_as_regions_have_groups_too(tmp_path):
    _, figures = figures_of(segmented.write_coco(tmp_path), "regions")
    kinds = np.concatenate([segmented.wanted_regions(n).ravel() for n in SPLITS["train"]])
    assert shares(figures) == pytest.approx(
        [(kinds == v).mean() for v in (1, 2, 3, 4, 0)], abs=1e-12
    )
    assert (figures.parts, figures.crowd_parts) == (16, 0)


@pytest.mark.parametrize("background", ["background", None])
@pytest.mark.parametrize("labels", ["regions", "segments"])
def test_masks_of_objects_are_counted_as_they_are_drawn(tmp_path, labels, background):
    for split, num in (("train", 8), ("val", 2)):
        write_coco(tmp_path, num, split)
    cfg = DataConfig("coco", str(tmp_path), val_split="val", background=background)
    data, figures = figures_of(cfg, labels)
    taxonomy, kinds = data.taxonomy, []
    for r in data.train.records:
        size = (r.height, r.width)
        drawn = label_map(r.objects, size, taxonomy.background)
        if labels == "segments":
            numbers, classes = segment_map(r.objects, size, taxonomy.stuff, taxonomy.background)
            drawn = np.array([0, *(classes + 1)])[numbers]
        kinds.append(drawn.ravel())
    kinds = np.concatenate(kinds)
    values = [*range(1, len(taxonomy.names) + 1), 0]
    assert shares(figures) == pytest.approx([(kinds == v).mean() for v in values], abs=1e-12)
    assert (figures.ignored_share > 0) == (background is None)


def test_drawn_parts_are_what_training_sees(tmp_path):
    cfg = segmented.write_coco(tmp_path)
    data = read_data(cfg, 0, Findings(), "segments")
    numbers, classes = read_segments(data.train, data.taxonomy)[1]
    objects, ignored = drawn_parts(data.train.records[1], data)
    np.testing.assert_array_equal(ignored, numbers == 0)
    assert objects.classes.tolist() == classes.tolist()
    data = read_data(cfg, 0, Findings(), "regions")
    objects, ignored = drawn_parts(data.train.records[1], data)
    np.testing.assert_array_equal(ignored, segmented.wanted_regions(1) == 0)
    assert objects.classes.tolist() == [0, 1, 2, 3]
