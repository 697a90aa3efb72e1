"""Label maps: the same dataset in every form."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference

import painted
from builders import write_coco
from data.build import build_data
from data.sources.label_maps import LAYOUTS
from found import edit_json
from painted import NAMES, PICTURES, SPLITS, VOID, found, labels_of, read_maps, wanted
from run.banner import classes_without_example
from settings.keys import DataConfig


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check_dataset(cfg, change=wanted):
    """That it is the dataset of `painted`, with nothing found wrong."""
    findings, data = found(cfg)
    assert findings == []
    assert data.taxonomy.names == NAMES
    assert data.taxonomy.background is None
    for split, numbers in ((data.train, SPLITS["train"]), (data.val, SPLITS["val"])):
        assert split.dense
        for labels, number in zip(read_maps(split), numbers, strict=True):
            np.testing.assert_array_equal(labels, change(number))


# --- forms ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_every_layout_of_folders(tmp_path, layout):
    check_dataset(painted.write_folders(tmp_path, *layout))


@pytest.mark.parametrize("ending", ["_mask", "-labels", ".jpg"])
@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[-1]], ids=" ".join)
def test_label_maps_that_share_an_ending(tmp_path, layout, ending):
    check_dataset(painted.write_folders(tmp_path, *layout, ending=ending))


def test_folders_of_label_maps_that_are_given(tmp_path):
    cfg = painted.write_folders(tmp_path, maps="truth/of_{split}")
    given = {"train_annotations": "truth/of_train", "val_annotations": "truth/of_val"}
    check_dataset(replace(cfg, **given))


def test_folders_inside_of_a_split(tmp_path):
    cfg = painted.write_folders(tmp_path)
    for folder in ("images/train", "annotations/train"):
        (tmp_path / folder / "town").mkdir()
        for file in sorted((tmp_path / folder).glob("00[23]*")):
            file.rename(file.parent / "town" / file.name)
    check_dataset(cfg)


@pytest.mark.parametrize("way", PICTURES)
def test_every_picture_that_keeps_numbers(tmp_path, way):
    check_dataset(painted.write_folders(tmp_path, way=way))


@pytest.mark.parametrize("key", ["label_map_file_name", "mask_file_name", "annotation", "truth"])
def test_image_folders(tmp_path, key):
    cfg = painted.write_imagefolder(tmp_path, key)
    check_dataset(replace(cfg, label_map_column="truth" if key == "truth" else None))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["annotation", "mask", "truth"])
def test_hub(tmp_path, column, streaming):
    wish = "truth" if column == "truth" else None
    how = {"streaming": streaming, "label_map_column": wish}
    check_dataset(painted.write_hub(tmp_path / "hub", column, **how))


def test_voc(tmp_path):
    check_dataset(painted.write_voc(tmp_path))


def test_voc_has_names_of_its_own(tmp_path):
    _, data = found(replace(painted.write_voc(tmp_path), labels=None))
    assert data.taxonomy.names[:3] == ("background", "aeroplane", "bicycle")
    assert len(data.taxonomy.names) == 21


@pytest.mark.parametrize("names", [list(NAMES), dict(enumerate(NAMES))])
@pytest.mark.parametrize("file", ["categories.json", "id2label.json"])
def test_names_from_a_file(tmp_path, file, names):
    cfg = replace(painted.write_folders(tmp_path), labels=None)
    (tmp_path / file).write_text(json.dumps(names))
    check_dataset(cfg)


def test_zero_may_be_no_class(tmp_path):
    """As in ADE20K: 0 is of no class, and class c has the value c + 1."""
    cfg = painted.write_folders(tmp_path, edit=lambda a: np.where(a == VOID, 0, a + 1).astype("u1"))
    check_dataset(replace(cfg, reduce_labels=True))


def test_value_that_is_ignored(tmp_path):
    """255 is a class like any other, once another value is ignored."""
    cfg = replace(painted.write_folders(tmp_path), ignore_index=1, labels=["sky", "car", "rest"])
    cfg = replace(cfg, label_values=[0, 2, 255])
    findings, data = found(cfg)
    assert findings == []
    classes = np.zeros(256, int)
    classes[[0, 2, VOID]] = [1, 2, 3]
    for labels, number in zip(read_maps(data.train), SPLITS["train"], strict=True):
        np.testing.assert_array_equal(labels, classes[labels_of(number)])


def test_binary_masks_of_0_and_255(tmp_path):
    cfg = painted.write_folders(tmp_path, edit=lambda a: np.where(a == 1, 255, 0).astype("u1"))
    findings, data = found(replace(cfg, labels=["rest", "road"], label_values=[0, 255]))
    assert findings == []
    for labels, number in zip(read_maps(data.train), SPLITS["train"], strict=True):
        np.testing.assert_array_equal(labels, 1 + (labels_of(number) == 1))


def test_class_that_is_nowhere(tmp_path):
    cfg = painted.write_folders(tmp_path, edit=lambda a: np.where(a == 0, VOID, a).astype("u1"))
    findings, data = found(cfg)
    assert findings == []
    assert data.taxonomy.names == NAMES
    assert classes_without_example(data) == ["sky"]


def test_shared_ending_of_numbers_without_zeros(tmp_path):
    """'1_mask' is of '1', and '10_mask' is not of '1' with the ending '0_mask'; one image has none."""
    for folder, suffix, ending in (("images", "jpg", ""), ("annotations", "png", "_mask")):
        for number in range(12):
            file = tmp_path / folder / f"train/{number}{ending}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), number % 3).save(file)
    (tmp_path / "annotations/train/0_mask.png").unlink()
    cfg = DataConfig("label_maps", str(tmp_path), labels=list(NAMES), val_fraction=0.2)
    ((kind, text),), data = found(cfg)
    assert kind == "missing label map"
    assert "/0.jpg" in text
    for record in [*data.train.records, *data.val.records]:
        number = int(record.image_id.removesuffix(".jpg"))
        assert record.objects.classes.tolist() == [number % 3]


def test_text_beside_objects_is_no_label_map(tmp_path):
    cfg = painted.write_imagefolder(tmp_path)
    box = {"bbox": [[1, 1, 9, 9]], "category": [0], "segmentation": [[[1, 1, 9, 1, 9, 9]]]}
    for split in SPLITS:
        file = tmp_path / split / "metadata.jsonl"
        names = [json.loads(line)["file_name"] for line in file.read_text().splitlines()]
        rows = [{"file_name": name, "label": "street", "objects": box} for name in names]
        file.write_text("\n".join(map(json.dumps, rows)))
    _, data = found(cfg)
    assert data.taxonomy.background == 0
    assert len(data.train) == 4


@pytest.mark.parametrize("times", [0.5, 2, 3])
def test_label_map_of_another_scale(tmp_path, times):
    cfg = painted.write_folders(tmp_path)
    for file in tmp_path.glob("annotations/*/*"):
        labels = Image.open(file)
        size = (int(labels.width * times), int(labels.height * times))
        labels.resize(size, Image.Resampling.NEAREST).save(file)
    check_dataset(cfg)


def test_other_pixels_are_another_dataset(tmp_path):
    cfg = painted.write_folders(tmp_path)
    before = build_data(cfg, 0, labels="regions").fingerprint()
    assert build_data(cfg, 0, labels="regions").fingerprint() == before
    labels = labels_of(0)
    labels[0, 0] = 1 if labels[0, 0] != 1 else 2
    Image.fromarray(labels).save(tmp_path / "annotations/train/000.png")
    assert build_data(cfg, 0, labels="regions").fingerprint() != before


# --- masks of objects ----------------------------------------------------------------------------
LARGE, SMALL = (10, 12, 30, 20), (15, 16, 8, 6)
"""xywh boxes of a plate (a polygon) and, inside of it, a car (run lengths)"""


def write_nested(root):
    """COCO files whose first image has a car within a plate; where each is on it, bool [64, 96]."""
    write_coco(root, 4, ids=(1, 3))
    write_coco(root, 2, "val", ids=(1, 3))
    car = np.zeros((64, 96), bool)
    x, y, w, h = SMALL
    car[y : y + h, x : x + w] = True
    x, y, w, h = LARGE
    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
    rle = reference.encode(np.asfortranarray(car, np.uint8))
    written = {"size": [64, 96], "counts": rle["counts"].decode()}

    def nest(content):
        first = {"image_id": 10, "iscrowd": 0}
        own = [a for a in content["annotations"] if a["image_id"] != 10]
        content["annotations"] = [
            {**first, "id": 90, "category_id": 1, "bbox": SMALL, "segmentation": written},
            {**first, "id": 91, "category_id": 3, "bbox": LARGE, "segmentation": [ring]},
            *own,
        ]

    edit_json(root / "annotations/train.json", nest)
    return car, reference.decode(reference.frPyObjects([ring], 64, 96)[0]).astype(bool)


@pytest.mark.parametrize("background", ["background", "class3", None])
def test_masks_of_objects_become_regions(tmp_path, background):
    car, plate = write_nested(tmp_path)
    cfg = DataConfig("coco", str(tmp_path), val_split="val", background=background)
    findings, data = found(cfg)
    assert findings == []
    assert not data.train.dense
    names = data.taxonomy.names
    assert names == ("background",) * (background == "background") + ("class1", "class3")
    labels = painted.label_map(data.train.records[0].objects, (64, 96), data.taxonomy.background)
    around = names.index(background) + 1 if background else 0
    of_plate, of_car = names.index("class3") + 1, names.index("class1") + 1
    expected = np.where(car, of_car, np.where(plate, of_plate, around))
    np.testing.assert_array_equal(labels, expected)


def test_voc_objects(tmp_path):
    """The class of most of its pixels; what is void and no object's is a crowd."""
    cfg = painted.write_voc(tmp_path)
    (tmp_path / "SegmentationObject").mkdir()
    for number in [*SPLITS["train"], *SPLITS["val"]]:
        kinds, objects = np.zeros((2, *labels_of(number).shape), np.uint8)
        kinds[2:12, 2:12], objects[2:12, 2:12] = 2, 1
        kinds[2:4, 2:4] = 1
        kinds[20:30, 5:15], objects[20:30, 5:15] = 1, 2
        kinds[14:18, 20:30], objects[14:18, 20:30] = VOID, VOID
        kinds[20:22, 5:15] = VOID  # of the second object, as its own map has it
        for folder, labels in (("SegmentationClass", kinds), ("SegmentationObject", objects)):
            painted.as_palette(labels).save(tmp_path / folder / f"{number:03d}.png")
    findings, data = found(replace(cfg, labels=["road", "car"]), "masks")
    assert findings == []
    assert data.taxonomy.names == ("road", "car")
    for record in data.train.records:
        assert record.objects.classes.tolist()[:2] == [1, 0]
        boxes = [[2, 2, 10, 10], [5, 20, 10, 10], [20, 14, 10, 4]]
        assert record.objects.boxes.tolist() == boxes
        assert record.objects.areas.tolist() == [100, 100, 40]
        assert record.objects.iscrowd.tolist() == [False, False, True]
