"""What was read once is mapped from a file until anything of it changes."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import painted
from builders import write_coco
from data.build import read_data
from data.findings import Findings
from data.images import headers
from data.index import indexed
from data.objects import COLUMNS
from data.record import Record
from disk import cache_root
from formats import WRITERS, write_format, write_hub_set
from settings.keys import DataConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("data.index.SETTLED_NS", 0)


@pytest.fixture
def dataset(tmp_path):
    write_coco(tmp_path / "data", 8)
    write_coco(tmp_path / "data", 4, "val", seed=1)
    return DataConfig(source="coco", path=str(tmp_path / "data"), val_split="val")


class Reader:
    """Reads through the index, and counts how often there is anything to read."""

    def __init__(self):
        self.times = 0

    def __call__(self, cfg, labels="boxes", seed=0):
        def read():
            self.times += 1
            return read_data(cfg, seed, Findings(), labels)

        return indexed(cfg, seed, labels, read)


def stored():
    return list(cache_root().glob("dataset-*"))


def same(one, other):
    """Whether two datasets are equal, object for object."""
    assert one.taxonomy == other.taxonomy
    assert [str(f) for f in one.findings] == [str(f) for f in other.findings]
    assert [f.image for f in one.findings] == [f.image for f in other.findings]
    assert one.labels == other.labels
    for mine, theirs in ((one.train, other.train), (one.val, other.val)):
        assert (mine.category_names, mine.dense, mine.stuff) == (
            *(theirs.category_names, theirs.dense),
            theirs.stuff,
        )
        assert len(mine) == len(theirs)
        for place, (record, again) in enumerate(zip(mine.records, theirs.records, strict=True)):
            assert mine.images[place] == theirs.images[place]
            same_record(record, again)


def same_record(one: Record, other: Record):
    for name in ("image_id", "where", "width", "height", "unit", "digest", "unreadable"):
        assert getattr(one, name) == getattr(other, name), name
        assert type(getattr(one, name)) is type(getattr(other, name)), name
    for name in COLUMNS:
        mine, theirs = getattr(one.objects, name), getattr(other.objects, name)
        assert (mine is None) == (theirs is None), name
        if name == "masks" and mine is not None:
            assert [m.key() for m in mine] == [m.key() for m in theirs]
        elif mine is not None:
            assert mine.dtype == theirs.dtype, name
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("labels", ["boxes", "masks"])
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "hub streamed"])
def test_a_second_start_reads_nothing_and_has_the_same(tmp_path, name, labels):
    if labels == "masks" and name in ("voc", "voc folders", "yolo"):
        pytest.skip("has no masks")
    cfg, reader = write_format(tmp_path / "data", name), Reader()
    first, second = reader(cfg, labels), reader(cfg, labels)
    assert reader.times == 1
    same(first, second)
    again = dataclasses.replace(second, known_fingerprint=None)
    assert first.fingerprint() == second.fingerprint() == again.fingerprint()


def test_label_maps_and_findings_come_back(tmp_path):
    cfg, reader = painted.write_folders(tmp_path / "data"), Reader()
    next(Path(cfg.path).rglob("*.jpg")).write_bytes(b"no image")
    one, other = reader(cfg, "regions"), reader(cfg, "regions")
    assert reader.times == 1
    assert len(one.findings)
    same(one, other)


def other_pixels(root):
    """Of the same size in bytes, and of the same time."""
    file = root / "train" / "003.jpg"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def other_box(root):
    file = root / "annotations" / "train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][0] += 1
    file.write_text(json.dumps(content))


CHANGES = {
    "pixels of an image": other_pixels,
    "a box": other_box,
    "an image more": lambda root: Image.new("RGB", (9, 9)).save(root / "train" / "new.jpg"),
    "an image less": lambda root: (root / "val" / "001.jpg").unlink(),
    "an image of another name": lambda root: (root / "val" / "001.jpg").rename(
        root / "val" / "x.jpg"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_changed_is_read_again(dataset, change):
    reader = Reader()
    reader(dataset)
    CHANGES[change](Path(dataset.path))
    data = reader(dataset)
    assert reader.times == 2
    same(data, read_data(dataset, 0, Findings()))
    reader(dataset)
    assert reader.times == 2


def test_an_index_that_nobody_used_for_long_is_removed(dataset):
    reader = Reader()
    reader(dataset)
    (old,) = stored()
    os.utime(old, (1e9, 1e9))
    other_box(Path(dataset.path))
    reader(dataset)
    assert old not in stored()
    assert len(stored()) == 1


def test_links_are_looked_through_and_may_lead_back(dataset, tmp_path):
    root = Path(dataset.path)
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    (root / "back").symlink_to(root)
    reader = Reader()
    reader(dataset)
    reader(dataset)
    assert reader.times == 1
    other_pixels(root)
    reader(dataset)
    assert reader.times == 2


def test_other_rows_of_a_hub_dataset_are_read_again(tmp_path):
    cfg, reader = write_format(tmp_path / "data", "hub", val_split=None, val_fraction=0.3), Reader()
    first = reader(cfg)
    same(first, reader(cfg))
    assert reader.times == 1
    (tmp_path / "other").mkdir()
    write_hub_set(tmp_path / "other", 8, "train", seed=5)
    (tmp_path / "other/hub/data").rename(tmp_path / "gone")
    for file in (tmp_path / "gone").iterdir():
        file.replace(tmp_path / "data/hub/data" / file.name)
    other = reader(cfg)
    assert reader.times == 2
    assert other.fingerprint() != first.fingerprint()
    assert other.train.images[0] != first.train.images[0]


def test_a_link_that_leads_elsewhere_is_seen(dataset):
    root = Path(dataset.path)
    (root / "first").mkdir()
    (root / "train").rename(root / "first" / "train")
    (root / "train").symlink_to("first/train")
    reader = Reader()
    assert len(reader(dataset).train) == 8
    shutil.copytree(root / "first", root / "second")
    (root / "second" / "train" / "003.jpg").unlink()
    reader(dataset)
    before = reader.times
    (root / "train").unlink()
    (root / "train").symlink_to("second/train")
    assert len(reader(dataset).train) == 7
    assert reader.times == before + 1


@pytest.mark.parametrize(
    "change", [{"train_annotations": "../train.json"}, {"val_split": "../data/val"}]
)
def test_what_lies_elsewhere_is_read_each_time(dataset, tmp_path, change):
    for split in ("train", "val"):
        content = (tmp_path / "data/annotations" / f"{split}.json").read_bytes()
        (tmp_path / f"{split}.json").write_bytes(content)
    cfg = dataclasses.replace(dataset, **{"val_annotations": "annotations/val.json", **change})
    reader = Reader()
    reader(cfg)
    reader(cfg)
    assert reader.times == 2
    assert stored() == []


def test_a_file_that_the_system_could_not_give_is_tried_again(dataset, monkeypatch):
    reader, found = Reader(), headers._stat

    def failing(path):
        if path.name == "003.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return found(path)

    with monkeypatch.context() as patch:
        patch.setattr(headers, "_stat", failing)
        assert len(reader(dataset).train) == 7
    assert len(reader(dataset).train) == 8


def test_a_name_that_is_no_name_ends_nothing(dataset):
    file = Path(dataset.path) / "annotations" / "val.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = "a\ud800.jpg"
    file.write_text(json.dumps(content))
    reader = Reader()
    same(reader(dataset), reader(dataset))
    assert reader.times == 2


def test_a_home_is_a_folder_too(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    reader = Reader()
    home = dataclasses.replace(dataset, path="~/data")
    same(reader(home), reader(home))
    assert reader.times == 1


def test_labels_behind_a_link_are_looked_at(tmp_path):
    cfg, reader = write_format(tmp_path / "data", "yolo"), Reader()
    labels = tmp_path / "data" / "labels"
    written = labels.rename(tmp_path / "data" / "written")
    labels.symlink_to(written)
    reader(cfg)
    file = next((written / "train").glob("*.txt"))
    file.write_text(file.read_text() + "0 0.5 0.5 0.1 0.1\n")
    reader(cfg)
    assert reader.times == 2


@pytest.mark.parametrize(
    ("seed", "labels", "change"),
    [
        (1, "boxes", {}),
        (0, "masks", {}),
        (0, "boxes", {"val_split": None}),
        (0, "boxes", {"limit": 3}),
        (0, "boxes", {"labels": ["thing"]}),
    ],
)
def test_another_question_is_another_dataset(dataset, seed, labels, change):
    reader = Reader()
    reader(dataset)
    reader(dataclasses.replace(dataset, **change), labels, seed)
    assert reader.times == 2
    reader(dataclasses.replace(dataset, num_workers=0, augment=[{"HorizontalFlip": {}}]))
    assert reader.times == 2  # keys of what is done with the images


def test_another_code_reads_again(dataset, monkeypatch, tmp_path):
    reader = Reader()
    reader(dataset)
    (tmp_path / "code" / "data").mkdir(parents=True)
    (tmp_path / "code" / "data" / "cleaning.py").write_text("other = 1\n")
    monkeypatch.setattr("data.index.ROOT", tmp_path / "code")
    reader(dataset)
    assert reader.times == 2


@pytest.mark.parametrize("name", ["train.images", "val.objects", "rest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_index_is_made_anew(dataset, name, damage):
    reader = Reader()
    first = reader(dataset)
    file = stored()[0] / name
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\0" * len(content))
    same(first, reader(dataset))
    assert reader.times == 2
    same(first, reader(dataset))
    assert reader.times == 2


def test_what_has_just_changed_may_change_again_unseen(dataset, monkeypatch):
    monkeypatch.setattr("data.index.SETTLED_NS", 10**12)
    reader = Reader()
    reader(dataset)
    assert stored() == []


def test_what_changes_meanwhile_is_not_kept(dataset):
    def read():
        other_box(Path(dataset.path))
        return read_data(dataset, 0, Findings())

    indexed(dataset, 0, "boxes", read)
    assert stored() == []


def _read_slowly(cfg, file):
    def read():
        time.sleep(0.5)
        with file.open("a") as lines:
            lines.write("read\n")
        return read_data(cfg, 0, Findings())

    indexed(cfg, 0, "boxes", read)


def test_of_two_processes_one_reads(dataset, tmp_path):
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=_read_slowly, args=(dataset, tmp_path / "read")) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "read").read_text() == "read\n"


def test_a_cache_that_cannot_be_written_is_done_without(dataset, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    reader = Reader()
    same(reader(dataset), reader(dataset))
    assert reader.times == 2
