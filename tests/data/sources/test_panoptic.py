"""Panoptic label maps: the same dataset in every form, and what can be wrong with them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import segmented
from builders import write_coco
from data.build import build_data
from data.masks import encode
from errors import UserError
from found import edit_json
from painted import SPLITS, found, read_maps
from segmented import NAMES, STUFF, parts_of, read_segments
from settings.keys import DataConfig


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check_dataset(cfg, stuff=STUFF):
    """That it is the dataset of `segmented`, with nothing found wrong."""
    findings, data = found(cfg, "segments")
    assert findings == []
    assert data.taxonomy.names == NAMES
    assert data.taxonomy.background is None
    assert tuple(NAMES[c] for c in data.taxonomy.stuff) == tuple(stuff)
    for split, numbers in ((data.train, SPLITS["train"]), (data.val, SPLITS["val"])):
        assert split.dense
        for (segments, classes), number in zip(
            read_segments(split, data.taxonomy), numbers, strict=True
        ):
            np.testing.assert_array_equal(segments, segmented.wanted(number))
            assert classes.tolist() == [0, 0, 1, 2, 3]


# --- forms ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_coco(tmp_path, suffix):
    check_dataset(segmented.write_coco(tmp_path, suffix))


def test_coco_with_maps_of_another_scale(tmp_path):
    cfg = segmented.write_coco(tmp_path)
    for file in tmp_path.glob("annotations/*/*.png"):
        labels = Image.open(file)
        labels.resize((labels.width * 2, labels.height * 2), Image.Resampling.NEAREST).save(file)
    check_dataset(cfg)


def test_image_folder(tmp_path):
    check_dataset(segmented.write_imagefolder(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub(tmp_path, streaming):
    cfg = segmented.write_hub(tmp_path / "hub", streaming=streaming)
    for _ in range(2):  # then from what is stored
        check_dataset(cfg)


def test_segments_as_columns(tmp_path):
    """As older versions of the datasets library write lists of structs."""
    cfg = segmented.write_imagefolder(tmp_path)
    columns = {key: [row[key] for row in segmented.listed()] for key in segmented.listed()[0]}
    for file in tmp_path.glob("*/metadata.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [{**row, "segments_info": columns} for row in rows]
        file.write_text("\n".join(map(json.dumps, rows)))
    check_dataset(cfg)


def test_numbers_below_256_may_be_grey(tmp_path):
    cfg = segmented.write_imagefolder(tmp_path)
    for file in tmp_path.glob("*/maps/*.png"):
        Image.fromarray(parts_of(int(file.stem)).astype("u1")).save(file)
    grey = [{**row, "id": place} for place, row in enumerate(segmented.listed(), 1)]
    for file in tmp_path.glob("*/metadata.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows = [{**row, "segments_info": grey} for row in rows]
        file.write_text("\n".join(map(json.dumps, rows)))
    check_dataset(cfg)


def test_names_and_stuff_of_the_configuration(tmp_path):
    cfg = segmented.write_coco(tmp_path)
    check_dataset(replace(cfg, stuff=["car"]), ("car", *STUFF))
    _, data = found(replace(cfg, labels=["a", "b", "c", "d"], stuff=["a"]), "segments")
    assert data.taxonomy.names == ("a", "b", "c", "d")
    assert data.taxonomy.stuff == (0, 2, 3)


@pytest.mark.parametrize("write", [segmented.write_coco, segmented.write_imagefolder])
def test_stuff_that_is_no_class(tmp_path, write):
    with pytest.raises(UserError, match=r"data\.stuff water: the classes are person, car, sky"):
        found(replace(write(tmp_path), stuff=["water"]), "segments")


def test_stuff_and_pixels_are_part_of_the_fingerprint(tmp_path):
    cfg = segmented.write_coco(tmp_path)
    before = build_data(cfg, 0, labels="segments").fingerprint()
    assert build_data(cfg, 0, labels="segments").fingerprint() == before
    assert build_data(replace(cfg, stuff=["car"]), 0, labels="segments").fingerprint() != before
    file = tmp_path / "annotations/train/000.png"
    segmented.as_png(np.roll(parts_of(0), 1)).save(file)
    assert build_data(cfg, 0, labels="segments").fingerprint() != before


# --- other labels of panoptic files --------------------------------------------------------------
def test_coco_as_regions(tmp_path):
    findings, data = found(segmented.write_coco(tmp_path), "regions")
    assert findings == []
    assert (data.taxonomy.names, data.taxonomy.background) == (NAMES, None)
    for labels, number in zip(read_maps(data.train), SPLITS["train"], strict=True):
        np.testing.assert_array_equal(labels, segmented.wanted_regions(number))


def test_coco_as_masks_of_things(tmp_path):
    findings, data = found(segmented.write_coco(tmp_path), "masks")
    assert findings == []
    assert data.taxonomy.names == segmented.THINGS
    for record, number in zip(data.train.records, SPLITS["train"], strict=True):
        assert record.objects.classes.tolist() == [0, 0, 1, 0]
        assert record.objects.iscrowd.tolist() == [False, False, False, True]
        for mask, part in zip(record.objects.masks, (1, 2, 3, segmented.CROWD), strict=True):
            assert mask == encode(parts_of(number) == part)


def test_panoptic_files_have_no_boxes(tmp_path):
    with pytest.raises(UserError, match=r"train\.json: is a panoptic file; it has no boxes"):
        found(segmented.write_coco(tmp_path), "boxes")


# --- masks of objects ----------------------------------------------------------------------------
BOXES = [(1, 5, 5, 20, 40), (1, 8, 8, 6, 6), (3, 50, 30, 25, 25), (3, 80, 80, 10, 10)]
"""(category, x, y, w, h) of objects, the second within the first"""
CROWD = (1, 60, 0, 30, 40)


def write_objects(root):
    """COCO files of objects, those of the third image in rectangles; which it covers, 1 to 5, int [96, 96]."""
    write_coco(root, 4, ids=(1, 3))
    write_coco(root, 2, "val", ids=(1, 3))
    covered, entries = np.zeros((96, 96), int), []
    for place, (category, x, y, w, h) in enumerate([CROWD, *BOXES]):
        plane = np.zeros((96, 96), bool)
        plane[y : y + h, x : x + w] = True
        covered[plane] = place or 5
        entry = {"id": 90 + place, "image_id": 12, "category_id": category, "bbox": [x, y, w, h]}
        mask = {"size": [96, 96], "counts": encode(plane).counts.decode()}
        entries.append({**entry, "iscrowd": int(not place), "segmentation": mask})

    def put(content):
        own = [entry for entry in content["annotations"] if entry["image_id"] != 12]
        content["annotations"] = [*own, *entries]

    edit_json(root / "annotations/train.json", put)
    return covered


@pytest.mark.parametrize("background", ["background", "class3", None])
@pytest.mark.parametrize("stuff", [[], ["class3"]])
def test_masks_of_objects_become_segments(tmp_path, stuff, background):
    covered = write_objects(tmp_path)
    cfg = DataConfig(
        "coco", str(tmp_path), val_split="val", stuff=list(stuff), background=background
    )
    findings, data = found(cfg, "segments")
    assert findings == []
    names = data.taxonomy.names
    assert names == ("background",) * (background == "background") + ("class1", "class3")
    expected = {name for name in (*stuff, background) if name}
    assert {names[c] for c in data.taxonomy.stuff} == expected
    segments, classes = read_segments(data.train, data.taxonomy)[2]
    last = 3 if "class3" in expected else 4  # the fourth object is of the segment of the third
    around = {"background": last + 1, "class3": 3, None: 0}[background]
    np.testing.assert_array_equal(segments, np.array([around, 1, 2, 3, last, 0])[covered])
    kinds = ["class1", "class1", "class3", "class3"][:last]
    kinds += ["background"] * (background == "background")
    assert [names[c] for c in classes] == kinds
