"""What can be wrong with label maps: each defect is named once, with its file, or ends the run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import painted
from data.findings import Findings
from data.sources.label_pictures import LabelRules, dense_record
from errors import UserError
from found import edit_line
from painted import NAMES, SPLITS, found, labels_of

RULES = LabelRules(255, False)


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save(edit):
    """Put a picture in the place of a label map, under its own name."""
    return lambda file: edit(labels_of(1)).save(file)


def jpeg(file):
    painted.as_grey(labels_of(1)).save(file, "JPEG")


def outside(file):
    """The same label map, by a link that leads out of the dataset."""
    elsewhere = file.parents[3] / "elsewhere.png"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


UNREADABLE = "unreadable label map"
PLANTED = {
    "absent": (lambda file: file.unlink(), "missing label map", "none of its name"),
    "no picture": (lambda file: file.write_text("x"), UNREADABLE, "001.png: not a picture"),
    "cut off": (
        lambda file: file.write_bytes(file.read_bytes()[:60]),
        UNREADABLE,
        "001.png: cannot be decoded",
    ),
    "JPEG": (jpeg, UNREADABLE, "001.png: a JPEG file"),
    "colours": (
        save(lambda a: Image.fromarray(painted.COLOURS[a])),
        UNREADABLE,
        "001.png: a picture in colours",
    ),
    "another shape": (
        save(lambda a: Image.fromarray(a[:-4])),
        "label map of another size",
        "32 x 44 px, the image has 32 x 48",
    ),
    "turned": (save(lambda a: Image.fromarray(a.T.copy())), "label map of another size", "48 x 32"),
    "unknown class": (
        save(lambda a: Image.fromarray(np.where(a == 1, 7, a).astype("u1"))),
        "unknown category",
        "label 7: id 7, not among [0, 1, 2]",
    ),
    "link": (outside, "path leaves the folder", "001.png links to"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_defects_are_named_once_and_with_their_file(tmp_path, case):
    plant, kind, said = PLANTED[case]
    root = tmp_path / "set"
    cfg = replace(painted.write_folders(root), labels=None)
    (root / "categories.json").write_text(json.dumps(NAMES))
    plant(root / "annotations/train/001.png")
    ((found_kind, text),), data = found(cfg)
    assert found_kind == kind
    assert "images/train/001.jpg" in text
    assert said in text
    kept = [record.image_id for record in data.train.records]
    assert kept == [f"{n:03d}.jpg" for n in range(4) if n != 1 or case == "unknown class"]


@pytest.mark.parametrize("dtype", ["f4", "i4"])
def test_numbers_that_are_no_classes(tmp_path, dtype):
    cfg = painted.write_folders(tmp_path, way="16-bit TIFF")
    Image.fromarray(labels_of(1).astype(dtype) - 1).save(tmp_path / "annotations/train/001.tif")
    ((kind, text),), _ = found(cfg)
    assert kind == UNREADABLE
    assert "001.tif: its numbers are" in text
    assert "-1" in text


def test_label_map_without_image(tmp_path):
    cfg = painted.write_folders(tmp_path)
    (tmp_path / "images/train/001.jpg").unlink()
    ((kind, text),), _ = found(cfg)
    assert kind == "image without annotation"
    assert "annotations/train/001.png: a label map without an image" in text


def test_line_of_an_image_folder_without_label_map(tmp_path):
    cfg = painted.write_imagefolder(tmp_path)
    lines = tmp_path / "train/metadata.jsonl"
    (tmp_path / "train/maps/001.png").unlink()
    edit_line(lines, 1, lambda row: row.update(label_map_file_name=None))
    ((kind, text),), data = found(cfg)
    assert kind == "missing label map"
    assert "metadata.jsonl, line 2" in text
    assert len(data.train) == 3


@pytest.mark.parametrize("name", ["../../elsewhere.png", "/etc/hosts", "maps/link.png"])
def test_image_folder_that_names_a_label_map_elsewhere(tmp_path, name):
    cfg = painted.write_imagefolder(tmp_path / "set")
    Image.fromarray(labels_of(1)).save(tmp_path / "elsewhere.png")
    (tmp_path / "set/train/maps/link.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "set/train/maps/001.png").unlink()
    lines = tmp_path / "set/train/metadata.jsonl"
    edit_line(lines, 1, lambda row: row.update(label_map_file_name=name))
    findings, data = found(cfg)
    (text,) = [text for kind, text in findings if kind == "path leaves the folder"]
    assert "metadata.jsonl, line 2" in text
    assert len(data.train) == 3


# --- what ends the run --------------------------------------------------------------------------------------
def emptied(cfg, root):
    for file in (root / "annotations/train").iterdir():
        file.unlink()
    return cfg


def renamed(cfg, root):
    for file in (root / "annotations/train").iterdir():
        file.rename(file.with_name(f"map{file.name}"))
    return cfg


ERRORS = {
    "no such layout": (lambda cfg, _: replace(cfg, train_split="all"), r"data\.train_annotations"),
    "no such folder": (
        lambda cfg, _: replace(cfg, val_annotations="none"),
        r"none: no such folder of data\.val_split or data\.val_annotations",
    ),
    "no label maps": (emptied, r"annotations/train: has no label maps \(\.png"),
    "other names": (
        renamed,
        r"label maps \('map000', .*\) are not named like the images \('000'\).*data\.train_annotations",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_ends_the_run_is_said(tmp_path, case):
    change, said = ERRORS[case]
    cfg = change(painted.write_folders(tmp_path), tmp_path)
    with pytest.raises(UserError, match=said):
        found(cfg)


def test_images_and_nothing_else(tmp_path):
    cfg = painted.write_folders(tmp_path, "{split}", "{split}")
    for file in tmp_path.rglob("*.jpg"):
        file.unlink()
    with pytest.raises(UserError, match=r"set data\.train_annotations"):
        found(cfg)


def test_column_that_there_is_not(tmp_path):
    folder = painted.write_imagefolder(tmp_path / "folder")
    hub = painted.write_hub(tmp_path / "hub", label_map_column="other")
    for cfg in (replace(folder, label_map_column="other"), hub, replace(hub, streaming=True)):
        with pytest.raises(UserError, match=r"data\.label_map_column other: "):
            found(cfg)


def test_label_maps_in_one_split_alone(tmp_path):
    cfg = painted.write_imagefolder(tmp_path)
    row = {"bbox": [[1, 1, 9, 9]], "category": [0], "segmentation": [[[1, 1, 9, 1, 9, 9]]]}
    lines = [json.dumps({"file_name": f"00{n}.jpg", "objects": row}) for n in SPLITS["val"]]
    (tmp_path / "val/metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError) as error:
        found(cfg)
    assert "data.train_split train has label maps, and data.val_split val has none" in str(
        error.value
    )
    assert "data.label_map_column" in str(error.value)


def test_value_beyond_the_names(tmp_path):
    """One stray pixel is a finding with its file; data.labels says which values are classes."""
    cfg = painted.write_folders(tmp_path)
    labels = labels_of(1)
    labels[0, 0] = 200
    Image.fromarray(labels).save(tmp_path / "annotations/train/001.png")
    ((kind, text),), _ = found(cfg)
    assert kind == "unknown category"
    assert "001.jpg, label 200" in text


def test_two_images_of_one_name(tmp_path):
    cfg = painted.write_folders(tmp_path)
    Image.open(tmp_path / "images/train/001.jpg").save(tmp_path / "images/train/001.webp")
    ((kind, text),), data = found(cfg)
    assert kind == "missing label map"
    assert "001.jpg has that name as well" in text
    assert len(data.train) == 4


def test_first_line_without_label_map(tmp_path):
    cfg = painted.write_imagefolder(tmp_path)
    lines = tmp_path / "train/metadata.jsonl"
    edit_line(lines, 0, lambda row: row.update(label_map_file_name=None))
    ((kind, _), (other, _)), data = found(cfg)
    assert {kind, other} == {"missing label map", "image without annotation"}
    assert len(data.train) == 3


def test_thousands_of_broken_label_maps_are_a_finding_or_a_record(tmp_path):
    """Bytes changed, cut out and cut off: nothing else is ever raised."""
    rng = np.random.default_rng(0)
    image = painted.write_images(tmp_path)[1]
    image = tmp_path / f"{image}.jpg"
    whole = []
    for way in ("grey", "palette", "16 bits", "16-bit TIFF", "GIF"):
        (name,) = painted.write_maps(tmp_path / way, way=way)[1:2]
        whole.append((tmp_path / way / name).read_bytes())
    findings, read = Findings(), 0
    for number in range(3000):
        content = bytearray(whole[number % len(whole)])
        for place in rng.integers(0, len(content), rng.integers(1, 6)):
            content[place] = rng.integers(0, 256)
        if number % 3 == 0:
            content = content[: rng.integers(1, len(content))]
        record = dense_record(number, "x", image, bytes(content), RULES, findings)
        read += record is not None
    assert read + len(findings) == 3000
    assert min(read, len(findings)) > 200
    assert set(findings.counts()) <= {UNREADABLE, "label map of another size"}


def named(root, names):
    cfg = painted.write_folders(root)
    (root / "id2label.json").write_text(json.dumps(names))
    return replace(cfg, labels=None)


IGNORED = {
    "label_maps": (painted.write_folders, {"ignore_index": 1}, "1: is the value of class 'road'"),
    "ignored background": (
        lambda root: named(root, dict(enumerate(NAMES))),
        {"ignore_index": 0},
        "0: is the value of class 'sky'",
    ),
    "named void": (
        lambda root: named(root, {0: "sky", 255: "void"}),
        {},
        "255: is the value of class 'void'",
    ),
    "reduced": (
        painted.write_folders,
        {"ignore_index": 2, "reduce_labels": True},
        "2: is the value of class 'road'",
    ),
    "imagefolder": (
        painted.write_imagefolder,
        {"ignore_index": 2},
        "2: is the value of class 'car'",
    ),
    "hub": (
        lambda root: painted.write_hub(root / "hub"),
        {"ignore_index": 2},
        "2: is the value of class 'car'",
    ),
    "voc": (painted.write_voc, {"ignore_index": 0}, "0: is the value of class 'sky'"),
}


@pytest.mark.parametrize("case", IGNORED)
def test_class_whose_value_is_ignored_is_refused(tmp_path, case):
    write, changes, said = IGNORED[case]
    cfg = replace(write(tmp_path / "set"), **changes)
    with pytest.raises(UserError, match=rf"data\.ignore_index {said} as well"):
        found(cfg)


def test_values_in_any_order_keep_their_names(tmp_path):
    cfg = replace(painted.write_folders(tmp_path), label_values=[2, 0, 1])
    findings, data = found(replace(cfg, labels=["car", "sky", "road"]))
    assert findings == []
    names = dict(zip(data.taxonomy.category_ids, data.taxonomy.names, strict=True))
    assert names == dict(enumerate(NAMES))
