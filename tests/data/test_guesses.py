"""Datasets that are wrong in the same way throughout: recognised, and what the message says mends them."""

import dataclasses
import json
import os
import re

import numpy as np
import pytest

from builders import SHARED, write_coco, write_imagefolder
from data.boxes import written_as
from data.build import build_data, read_data
from data.findings import Findings
from data.guesses import guess_box_format, guess_zero, mending_keys
from data.objects import Objects
from data.record import Record
from data.schema import Split
from data.sources.files import ImageFiles
from errors import UserError
from formats import voc_xml
from settings.keys import DataConfig

FORMATS = ["xyxy", "cxcywh", "xywh_relative", "xyxy_relative", "cxcywh_relative"]
SETS = ["plates-openimages-416", "blood-cells"]


def given(name):
    root = SHARED / "data" / name
    if not root.is_dir():
        pytest.skip("no ../shared/data")
    return root


def coco_of(root, folder, change=lambda content: None, split="train", **places):
    """A COCO dataset in `folder` with the images of the set in `root` and its annotations, changed."""
    content = json.loads((root / "annotations" / f"{split}.json").read_text())
    change(content)
    images = folder / places.get("images", split)
    images.parent.mkdir(parents=True, exist_ok=True)
    if not images.exists():
        images.symlink_to(root / split)
    file = folder / places.get("annotations", f"annotations/{split}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def in_format(box_format):
    """Writes boxes in it, and areas in the same unit."""

    def change(content):
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        for annotation in content["annotations"]:
            size = np.array(sizes[annotation["image_id"]], float)
            box = written_as(np.array([annotation["bbox"]], float), box_format, size)
            annotation["bbox"] = box[0].tolist()

    return change


def shifted(by):
    def change(content):
        for annotation in content["annotations"]:
            annotation["category_id"] += by

    return change


def read(cfg):
    return build_data(cfg, 0)


def followed(cfg):
    """The configuration after the one key that the error names."""
    with pytest.raises(UserError) as error:
        read(cfg)
    ((key, value),) = re.findall(r"set data\.(\w+) ([^\s;]+)", str(error.value))
    kind = {"category_offset": int, "follow_links": lambda v: v == "true"}.get(key, str)
    return dataclasses.replace(cfg, **{key: kind(value)}), str(error.value)


def assert_same(one, other):
    assert one.taxonomy == other.taxonomy
    for a, b in ((one.train, other.train), (one.val, other.val)):
        assert [r.image_id for r in a.records] == [r.image_id for r in b.records]
        np.testing.assert_allclose(a.objects.boxes, b.objects.boxes, atol=1e-6)
        np.testing.assert_allclose(a.objects.areas, b.objects.areas, rtol=1e-6)
        assert (a.objects.classes == b.objects.classes).all()


def right(root):
    return read(DataConfig("coco", str(root), val_split="val"))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("box_format", FORMATS)
def test_boxes_of_another_format_are_recognised_and_the_key_mends_them(tmp_path, name, box_format):
    root, made = given(name), tmp_path / "made"
    for split in ("train", "val"):
        coco_of(root, made, in_format(box_format), split)
    cfg, text = followed(DataConfig("coco", str(made), val_split="val"))
    assert cfg.box_format == box_format
    assert "boxes of another format: read as xywh" in text
    assert text.count("\n") <= 1, "what comes of it is not listed besides"
    assert_same(read(cfg), right(root))


@pytest.mark.parametrize("by", [1, -1])
def test_ids_off_by_one_are_recognised_and_the_key_mends_them(tmp_path, by):
    root, made = given("blood-cells"), tmp_path / "made"
    for split in ("train", "val"):
        coco_of(root, made, shifted(by), split)
    cfg, text = followed(DataConfig("coco", str(made), val_split="val"))
    assert cfg.category_offset == -by
    assert "unknown category" not in text
    assert_same(read(cfg), right(root))


def test_whoever_says_the_format_is_believed(tmp_path):
    root, made = given("plates-openimages-416"), tmp_path / "made"
    coco_of(root, made, in_format("xyxy"))
    data = read_data(DataConfig("coco", str(made), box_format="xywh"), 0, found := Findings())
    assert found.counts()["box partly outside"] > 100
    assert len(data.train)


@pytest.mark.parametrize("name", [*SETS, "nuclei-instances"])
def test_nothing_is_guessed_of_sets_that_are_right(name):
    data = right(given(name))
    assert not set(data.findings.counts()) & {
        "boxes of another format",
        "ids of classes off by one",
    }


LAYOUTS = {
    "Roboflow": ("{s}", "{s}/_annotations.coco.json", "valid"),
    "COCO": ("{s}2017", "annotations/instances_{s}2017.json", "val"),
    "COCO, images apart": ("images/{s}2017", "annotations/instances_{s}2017.json", "val"),
    "images apart": ("images/{s}", "annotations/{s}.json", "val"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_usual_layouts_are_found_and_said(tmp_path, layout):
    images, annotations, val = LAYOUTS[layout]
    for split, name, seed in (("train", "train", 0), ("val", val, 1)):
        write_coco(tmp_path / "right", 8, split, seed=seed)
        folder, file = images.format(s=name), annotations.format(s=name)
        (tmp_path / "made" / folder).parent.mkdir(parents=True, exist_ok=True)
        os.rename(tmp_path / "right" / split, tmp_path / "made" / folder)
        (tmp_path / "made" / file).parent.mkdir(parents=True, exist_ok=True)
        os.rename(tmp_path / f"right/annotations/{split}.json", tmp_path / "made" / file)
        write_coco(tmp_path / "right", 8, split, seed=seed)
    data = read(DataConfig("coco", str(tmp_path / "made")))
    assert_same(data, right(tmp_path / "right"))
    said = "\n".join(data.findings.notes)
    assert f"validation split: {val}" in said
    assert (f"data.train_annotations: {annotations.format(s='train')}" in said) == (
        annotations != "annotations/{s}.json"
    )
    assert ("training images: " in said) == (images != "{s}")
    assert not list(data.findings)


def test_one_folder_for_the_images_of_both_splits(tmp_path):
    for split, seed in (("train", 0), ("val", 1)):
        write_coco(tmp_path, 8, split, seed=seed)
        (tmp_path / "images").mkdir(exist_ok=True)
        for image in sorted((tmp_path / split).iterdir()):
            image.rename(tmp_path / "images" / f"{split}{image.name}")
        (tmp_path / split).rmdir()
        file = tmp_path / f"annotations/{split}.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            image["file_name"] = split + image["file_name"]
        file.write_text(json.dumps(content))
    data = read(DataConfig("coco", str(tmp_path)))
    assert (len(data.train), len(data.val)) == (8, 8)
    assert not list(data.findings)


def test_images_in_a_folder_of_another_name_are_one_line(tmp_path):
    write_coco(tmp_path / "right", 8)
    write_coco(tmp_path / "made", 8)
    (tmp_path / "made/photos/2024").mkdir(parents=True)
    os.rename(tmp_path / "made/train", tmp_path / "made/photos/2024/spring")
    cfg, text = followed(DataConfig("coco", str(tmp_path / "made"), val_fraction=0.25))
    assert cfg.train_images == "photos/2024/spring"
    assert "8 images are not there" in text
    assert "missing image" not in text
    assert_same(read(cfg), read(DataConfig("coco", str(tmp_path / "right"), val_fraction=0.25)))


def test_keys_that_mend_have_names_of_folders_whole(tmp_path):
    name = "my photos, 2024; spring"
    write_coco(tmp_path, 8)
    os.rename(tmp_path / "train", tmp_path / name)
    findings = Findings()
    with pytest.raises(UserError, match="0 images"):
        read_data(DataConfig("coco", str(tmp_path), val_fraction=0.25), 0, findings)
    assert mending_keys(findings) == {"data.train_images": name}


@pytest.mark.parametrize("source", ["coco", "imagefolder"])
def test_links_are_followed_when_a_key_says_so(tmp_path, source):
    root = (write_coco if source == "coco" else write_imagefolder)(tmp_path / "data", 8)
    store = tmp_path / "elsewhere"
    store.mkdir()
    for image in (root / "train").glob("*.jpg"):
        image.rename(store / image.name)
        image.symlink_to(store / image.name)
    cfg = DataConfig(source, str(root), val_fraction=0.25)
    cfg, text = followed(cfg)
    assert cfg.follow_links is True
    assert "8 image files are links" in text
    assert "whoever makes a link chooses" in text
    data = read(cfg)
    assert len(data.train) + len(data.val) == 8


def test_names_may_not_lead_out_although_links_may(tmp_path):
    root = write_coco(tmp_path / "data", 4)
    (tmp_path / "secret.jpg").write_bytes((root / "train/000.jpg").read_bytes())
    file = root / "annotations/train.json"
    file.write_text(file.read_text().replace("000.jpg", "../../secret.jpg"))
    with pytest.raises(UserError, match="path leaves the folder"):
        read(DataConfig("coco", str(root), follow_links=True, val_fraction=0.25))


@pytest.mark.parametrize("said", [True, False])
def test_a_validation_split_beside_is_used_unless_none_is_wanted(tmp_path, said):
    write_coco(tmp_path, 8)
    write_coco(tmp_path, 4, "val", seed=1)
    data = read(
        DataConfig("coco", str(tmp_path), val_split="none" if said else None, val_fraction=0.25)
    )
    assert (len(data.train), len(data.val)) == ((6, 2) if said else (8, 4))
    assert bool(data.findings.notes) != said


def voc_of(root, folder, first):
    """A VOC dataset of a COCO one, whose corners count from `first`."""
    for split in ("train", "val"):
        content = json.loads((root / f"annotations/{split}.json").read_text())
        (folder / split).mkdir(parents=True)
        names = {category["id"]: category["name"] for category in content["categories"]}
        objects = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            x, y, w, h = (round(side) for side in annotation["bbox"])
            name, low = names[annotation["category_id"]], 1 - first
            box = (x - low, y - low, w + low, h + low)  # `voc_xml` adds 1, and ends at x + w
            objects[annotation["image_id"]].append((name, box, ""))
        for image in content["images"]:
            file, size = folder / split / image["file_name"], (image["width"], image["height"])
            file.symlink_to(root / split / image["file_name"])
            file.with_suffix(".xml").write_text(voc_xml(file.name, size, objects[image["id"]]))


@pytest.mark.parametrize("name", ["nuclei-instances", "plates-openimages-416"])
@pytest.mark.parametrize("first", [0, 1])
def test_corners_of_voc_that_count_from_0_are_told(tmp_path, name, first):
    """And those of the same boxes that count from 1 are not."""
    voc_of(given(name), tmp_path, first)
    cfg = DataConfig("voc", str(tmp_path), val_split="val", follow_links=True)
    if first == 0:
        touching = json.loads((given(name) / "annotations/train.json").read_text())["annotations"]
        assert sum(min(round(v) for v in a["bbox"][:2]) == 0 for a in touching) > 4
        cfg, text = followed(cfg)
        assert cfg.box_format == "xyxy"
        assert re.search(
            r"read as voc .*, [\d,]+ of [\d,]+ boxes begin at -1 and [\d,]+ at 0", text
        )
        assert "box partly outside" not in text
        believed = dataclasses.replace(cfg, box_format="voc")
        assert read(believed).findings.counts()["box partly outside"] > 4
    data = read(cfg)
    assert not data.findings.counts()["boxes of another format"]
    rounded = np.round(right(given(name)).train.objects.boxes)
    assert len(data.train.objects) == len(rounded)
    assert np.abs(data.train.objects.boxes - rounded).max() <= 1.0


def split_of(boxes, sizes):
    records = [
        Record(n, str(n), int(w), int(h), Objects(box[None], np.zeros(1, int), None))
        for n, (box, (w, h)) in enumerate(zip(boxes, sizes, strict=True))
    ]
    return Split(records, ImageFiles([]), {0: "a"})


def random_boxes(draw, num, sizes, largest):
    side = draw.uniform(0.01, largest, (num, 2)) * sizes
    low = draw.uniform(0, 1, (num, 2)) * (sizes - side)
    return np.concatenate([low, side], axis=1)


@pytest.mark.parametrize("largest", [0.05, 0.3, 1.0])
def test_right_boxes_are_never_taken_for_others(largest):
    """Also where some stick out by up to a tenth of their side, as people draw them."""
    draw = np.random.default_rng(0)
    for num in (5, 40, 400):
        for _ in range(30):
            sizes = draw.integers(64, 900, (num, 2)).astype(float)
            boxes = random_boxes(draw, num, sizes, largest)
            sloppy = draw.random(num) < 0.2
            boxes[sloppy, :2] -= draw.choice([-1, 1], (sloppy.sum(), 2)) * 0.1 * boxes[sloppy, 2:]
            assert guess_box_format([split_of(boxes, sizes)], "xywh") is None


@pytest.mark.parametrize("box_format", FORMATS)
@pytest.mark.parametrize("largest", [0.3, 0.9])
def test_random_boxes_of_another_format_are_told(box_format, largest):
    draw = np.random.default_rng(1)
    for _ in range(20):
        sizes = draw.integers(64, 900, (100, 2)).astype(float)
        boxes = written_as(random_boxes(draw, 100, sizes, largest), box_format, sizes)
        guess = guess_box_format([split_of(boxes, sizes)], "xywh")
        assert guess is not None
        assert box_format in (guess.box_format, *guess.alike)


def test_only_boxes_that_begin_just_before_their_images_count_from_0():
    draw = np.random.default_rng(2)
    sizes = draw.integers(64, 900, (400, 2)).astype(float)
    right = np.round(random_boxes(draw, 400, sizes, 0.3)) + [1.0, 1.0, 0.0, 0.0]
    right[:40, 0] = 0.0
    right[20:60, 1] = 0.0
    early = right + [-1.0, -1.0, 1.0, 1.0]
    assert guess_zero([split_of(early, sizes)], "voc").before == 60
    assert guess_zero([split_of(early, sizes)], "xyxy") is None
    assert guess_zero([split_of(right, sizes)], "voc") is None
    early[60:100, 0] = -5.0
    assert guess_zero([split_of(early, sizes)], "voc") is None, "carelessness on all sides"
