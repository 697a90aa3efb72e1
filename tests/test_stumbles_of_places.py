"""Places that new users give: mistyped folders, files that cannot be written, label files that are missing."""

import dataclasses
import importlib
import json

import pytest

from builders import write_coco
from data.build import build_data
from data.findings import Findings
from data.images.decode import decode
from data.sources.synthetic import ensure_written, read_split
from disk import refuse_unwritable
from errors import UserError
from formats import write_yolo
from settings.keys import DataConfig
from settings.load import load_config

SMALL = ["--config", "configs/coco_small.yaml"]


OUTPUTS = {
    "tools.start --out": ["--minutes", "1"],
    "tools.check_data --json": [*SMALL, "--data.path", "x"],
    "tools.check_data --picture": [*SMALL, "--data.path", "x"],
    "tools.check_data --html": [*SMALL, "--data.path", "x"],
    "tools.check_data --advise": [*SMALL, "--data.path", "x"],
    "tools.check_data --repair": [*SMALL, "--data.path", "x"],
    "tools.check_data --ranges": [*SMALL, "--data.path", "x"],
    "tools.compare --html": ["a", "b"],
    "tools.predict --out": ["--model", "m", "i"],
    "tools.predict --json": ["--model", "m", "i"],
    "tools.evaluate --out": ["--model", "m", *SMALL, "--data.path", "x"],
    "tools.pack --out": [*SMALL, "--data.path", "x"],
    "tools.demo --space": ["--model", "m"],
    "tools.random_backbone --out": ["--backbone", "b"],
}
"""What writes where it is told to, and what else its command line needs"""


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("place", ["/proc/nothing/x", "a file/x"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, name, place):
    tool, option = name.split()
    (tmp_path / "a file").write_text("mine")
    given = [*OUTPUTS[name], option, str(tmp_path / place)]
    if tool == "tools.start":
        given.insert(0, str(tmp_path))
    with pytest.raises(UserError, match=f"{option} .*x: cannot be written: .*; name another place"):
        importlib.import_module(tool).arguments(given)
    assert (tmp_path / "a file").read_text() == "mine"


def test_a_place_of_another_kind_is_told_and_a_good_one_is_left_as_it_is(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("mine")
    folder.mkdir()
    with pytest.raises(UserError, match="--out .*file: is a file"):
        refuse_unwritable("--out", file, folder=True)
    with pytest.raises(UserError, match="--html .*folder: is a folder"):
        refuse_unwritable("--html", folder)
    for place in (file, tmp_path / "new/deep.html"):
        refuse_unwritable("--html", place)
    refuse_unwritable("--out", folder, folder=True)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
    assert file.read_text() == "mine"


@pytest.mark.parametrize("config", [None, "configs/debug.yaml", "path alone"])
def test_a_mistyped_folder_of_photos_is_no_place_for_synthetic_scenes(tmp_path, config):
    mistyped = tmp_path / "fotos"
    files, given = ["--config", str(config)], ["--data.path", str(mistyped)]
    if config is None:
        files = []
    if config == "path alone":
        (tmp_path / "own.yaml").write_text(f"data: {{path: {mistyped}}}\ntrain: {{steps: 1}}\n")
        files, given = ["--config", str(tmp_path / "own.yaml")], []
    with pytest.raises(UserError, match="fotos: no such folder.*add --data.source synthetic"):
        load_config([*files, *given])
    wanted = load_config([*files, *given, "--data.source", "synthetic"])
    assert wanted.data.path == str(mistyped)
    mistyped.mkdir()
    assert load_config([*files, *given]).data.source == "synthetic"


def test_a_file_that_names_a_place_for_synthetic_scenes_is_obeyed(tmp_path):
    """As config.yaml of a run does."""
    file = tmp_path / "c.yaml"
    file.write_text(f"data: {{source: synthetic, path: {tmp_path}/scenes}}\ntrain: {{steps: 1}}\n")
    assert load_config(["--config", str(file)]).data.path == f"{tmp_path}/scenes"
    assert load_config([]).data.path is None


@pytest.mark.parametrize("below", [".", "photos", "images/train"])
def test_somebodys_photos_are_not_taken_for_a_place_of_synthetic_scenes(tmp_path, below):
    (tmp_path / below).mkdir(exist_ok=True, parents=True)
    (tmp_path / below / "a.JPG").write_bytes(b"")
    cfg = DataConfig(path=str(tmp_path), synthetic_train=1, synthetic_val=1)
    with pytest.raises(
        UserError, match=r"a.JPG\), which data.source synthetic does not read.*tools.start"
    ):
        ensure_written(cfg, 0)
    assert {file.name for file in tmp_path.rglob("*.*")} == {"a.JPG"}


def test_synthetic_scenes_are_written_again_beside_others(tmp_path):
    for number in (1, 2):
        cfg = DataConfig(path=str(tmp_path), synthetic_train=number, synthetic_val=1)
        assert len(read_split(ensure_written(cfg, 0), "train", Findings())) == number


def yolo(root, lost):
    """A YOLO set of 16 and 4 images, of which `lost` training images have no label file."""
    write_yolo(root, 16, "train", 0)
    write_yolo(root, 4, "val", 1)
    for number in range(lost):
        (root / f"labels/train/{number:03}.txt").unlink()
    return DataConfig("yolo", str(root), val_split="val")


def test_a_label_file_that_is_missing_is_told_and_an_empty_one_is_not(tmp_path):
    data = build_data(yolo(tmp_path, 2), 0)
    assert data.findings.notes == [
        "2 of 16 images of train have no label file (taken as background; an empty file says that nothing is there): images/train/000.jpg, images/train/001.jpg"
    ]
    assert data.findings.counts() == {"image without label file": 2}
    for number in range(2):
        (tmp_path / f"labels/train/{number:03}.txt").touch()
    data = build_data(DataConfig("yolo", str(tmp_path), val_split="val"), 0)
    assert not data.findings.notes
    assert not len(data.findings)


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path):
    cfg = dataclasses.replace(yolo(tmp_path, 0), val_split="test")
    with pytest.raises(UserError, match="has no split 'test' .*; it has 'train, val'$"):
        build_data(cfg, 0)


def test_many_label_files_that_are_missing_are_not_taken_for_empty_images(tmp_path):
    cfg = yolo(tmp_path, 8)
    told = "8 of 16 images of train have no label file: .*000.jpg.*looked for labels/train/000.txt"
    with pytest.raises(UserError, match=f"{told}.*set data.allow_unlabelled true"):
        build_data(cfg, 0)
    data = build_data(dataclasses.replace(cfg, allow_unlabelled=True), 0)
    assert len(data.train) == 16
    assert not data.findings.notes
    assert not len(data.findings)


def test_many_images_that_a_coco_file_lists_without_annotations_are_a_line(tmp_path):
    root = write_coco(tmp_path, 16)
    told = "of 16 images of train.json have no annotations (taken as background): train/00"
    cfg = DataConfig("coco", str(root), val_fraction=0.25)
    assert told in "".join(build_data(cfg, 0).findings.notes)
    content = json.loads((root / "annotations/train.json").read_text())
    content["annotations"] += [
        {**content["annotations"][0], "image_id": image["id"], "id": 900 + image["id"]}
        for image in content["images"][:3]
    ]
    (root / "annotations/train.json").write_text(json.dumps(content))
    assert not build_data(cfg, 0).findings.notes


def test_a_file_that_is_no_image_is_told_in_words(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(UserError, match="a.jpg: cannot decode the image: its content is no image"):
        decode(tmp_path / "a.jpg", "a.jpg")
