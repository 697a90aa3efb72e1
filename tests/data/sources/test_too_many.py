"""Label maps of far more values than there are classes or segments: named at once, and never counted around."""

import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import painted
import segmented
from data.boxes import from_corners
from data.build import read_data, refuse_many
from data.check.forms import keys_of_copy
from data.check.repair import write_repaired
from data.findings import Findings
from data.masks import encode, mask_column
from data.objects import Objects
from data.record import Record
from data.regions import MOST_PARTS, TooManyValuesError, rles_of
from data.schema import Split
from data.taxonomy import Taxonomy
from errors import UserError
from found import edit_json
from painted import found
from settings.keys import DataConfig

TOO_MANY = "label map of too many values"


@pytest.fixture(autouse=True)
def _own_caches_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ramp(shape, num):
    """Values 0 ... num - 1 over and over, uint16 [H, W]."""
    return (np.arange(shape[0] * shape[1]).reshape(shape) % num).astype(np.uint16)


def named_folders(root):
    return painted.write_folders(root)


def nameless_folders(root):
    return replace(painted.write_folders(root), labels=None)


FORMS = {
    "label_maps": (named_folders, "images/train/001.jpg", "annotations/train/001.png"),
    "no names": (nameless_folders, "images/train/001.jpg", "annotations/train/001.png"),
    "imagefolder": (painted.write_imagefolder, "train/001.jpg", "train/maps/001.png"),
    "voc": (painted.write_voc, "JPEGImages/001.jpg", "SegmentationClass/001.png"),
}


@pytest.mark.parametrize("form", FORMS)
def test_depth_map_is_one_finding_and_fast(tmp_path, form):
    write, image, label_map = FORMS[form]
    cfg = write(tmp_path)
    Image.new("RGB", (256, 256)).save(tmp_path / image)
    Image.fromarray(ramp((256, 256), 65_536)).save(tmp_path / label_map)
    start = time.process_time()
    ((kind, text),), data = found(cfg)
    assert time.process_time() - start < 5  # with a finding for each value: half a minute
    assert kind == TOO_MANY
    assert "values without a meaning (" in text
    assert ", ...): a depth map, numbers of instances, a photo?" in text
    assert len(data.train) == 3


@pytest.mark.parametrize(("strangers", "kinds"), [(64, {"unknown category"}), (65, {TOO_MANY})])
def test_as_many_unknown_values_as_can_be_a_mistake_of_names_are_named_one_by_one(
    tmp_path, strangers, kinds
):
    cfg = painted.write_folders(tmp_path)
    labels = ramp((48, 32), 3 + strangers).astype(np.uint8)
    Image.fromarray(labels).save(tmp_path / "annotations/train/001.png")
    findings, _ = found(cfg)
    assert {kind for kind, _ in findings} == kinds
    assert len(findings) == (strangers if strangers == 64 else 1)


def test_many_classes_with_names_are_classes(tmp_path):
    cfg = painted.write_folders(tmp_path)
    Image.fromarray(ramp((48, 32), 1500)).save(tmp_path / "annotations/train/001.png")
    names = [f"class {number}" for number in range(1500)]
    findings, data = found(replace(cfg, labels=names, ignore_index=9999))
    # 255 is a class now, as it is in the other maps.
    assert findings == []
    assert len(data.train.records[1].objects) == 1500


def test_repaired_copy_is_without_it(tmp_path):
    cfg = painted.write_folders(tmp_path / "set")
    Image.fromarray(ramp((48, 32), 1536)).save(tmp_path / "set/annotations/train/001.png")
    data = read_data(cfg, 0, Findings(), "regions")
    assert write_repaired(data, list(data.findings), tmp_path / "copy") == 1
    copy = read_data(DataConfig(**keys_of_copy(data, tmp_path / "copy")), 0, Findings(), "regions")
    assert list(copy.findings) == []
    assert len(copy.train) == 3


def test_photo_in_the_place_of_a_panoptic_map(tmp_path):
    cfg = segmented.write_coco(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (480, 320, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "annotations/train/001.png")
    start = time.process_time()
    ((kind, text),), data = found(cfg, "segments")
    assert time.process_time() - start < 5
    assert kind == TOO_MANY
    assert "train/001.jpg: 15" in text  # 153,600 pixels, nearly each a colour of its own
    assert len(data.train) == 3


def test_segments_that_do_not_fit_sixteen_bits_are_not_counted_around(tmp_path):
    cfg = segmented.write_coco(tmp_path)

    def enlarge(content):
        entry = content["annotations"][1]["segments_info"]
        entry += [{"id": 10**6 + number, "category_id": 1} for number in range(MOST_PARTS)]

    edit_json(tmp_path / "annotations/train.json", enlarge)
    ((kind, text),), data = found(cfg, "segments")
    assert kind == TOO_MANY
    assert "65,541 segments, and 65,534 of an image can be told apart" in text
    assert len(data.train) == 3


def test_objects_and_classes_that_do_not_fit_sixteen_bits_are_refused():
    num = MOST_PARTS + 1
    mask = encode(np.ones((4, 4), bool))
    boxes = from_corners(np.tile([0.0, 0, 4, 4], (num, 1)))
    objects = Objects(boxes, np.zeros(num, np.int64), masks=mask_column([mask] * num))
    few = Split([Record(1, "a.jpg", 4, 4, objects.take(slice(0, MOST_PARTS)))], [], {})
    many = Split([Record(1, "b.jpg", 4, 4, objects)], [], {})
    one, all_ids = Taxonomy(("a",), (0,)), tuple(range(num))
    refuse_many([few], one, "masks")
    with pytest.raises(UserError, match="b.jpg: has 65,535 masks, and at most 65,534"):
        refuse_many([few, many], one, "masks")
    with pytest.raises(UserError, match="65,535 classes: at most 65,534"):
        refuse_many([few], Taxonomy(tuple(map(str, all_ids)), all_ids), "regions")


def test_most_values_are_taken_and_one_more_is_not():
    labels = ramp((8, 8), 10)
    assert list(rles_of(labels, 10)) == list(range(10))
    with pytest.raises(TooManyValuesError) as caught:
        rles_of(labels, 9)
    assert caught.value.values == list(range(10))
