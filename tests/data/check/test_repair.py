import dataclasses
import errno
import json

import numpy as np
import pytest

from data.build import build_data, read_data
from data.check.doctor import check_images
from data.check.repair import write_repaired
from data.findings import Findings
from data.images.decode import decode
from errors import UserError
from formats import WRITERS, write_format
from planted import write_clean
from settings.keys import DataConfig


@pytest.fixture(autouse=True)
def _hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub-cache"))


def copied(cfg, folder):
    """The dataset of `cfg` and its repaired copy."""
    data = read_data(cfg, 0, Findings())
    write_repaired(data, list(data.findings), folder)
    own = DataConfig(source="coco", path=str(folder), val_split="val")
    return data, read_data(own, 0, Findings())


def assert_equal(first, second):
    assert first.taxonomy == second.taxonomy
    for ours, theirs in ((first.train, second.train), (first.val, second.val)):
        assert len(ours) == len(theirs)
        for index, (a, b) in enumerate(zip(ours.records, theirs.records, strict=True)):
            assert (a.width, a.height) == (b.width, b.height)
            for key in ("boxes", "classes", "areas", "iscrowd"):
                np.testing.assert_array_equal(getattr(a.objects, key), getattr(b.objects, key))
            np.testing.assert_array_equal(
                decode(ours.images[index], ""), decode(theirs.images[index], "")
            )


@pytest.mark.parametrize("name", WRITERS)
def test_copy_of_a_clean_dataset_is_equal(tmp_path, name):
    data, copy = copied(write_format(tmp_path / "data", name), tmp_path / "copy")
    assert_equal(data, copy)
    assert list(copy.findings) == []
    assert (tmp_path / "copy" / "repairs.jsonl").read_text() == ""


def test_validation_images_that_were_set_aside_stay_so(tmp_path):
    cfg = write_format(tmp_path / "data", "coco", val_split=None, val_fraction=0.3)
    assert_equal(*copied(cfg, tmp_path / "copy"))


def test_groups_and_areas_are_kept(tmp_path):
    cfg = write_format(tmp_path / "data", "coco")
    data = read_data(cfg, 0, Findings())
    records = [
        dataclasses.replace(
            r,
            objects=dataclasses.replace(
                r.objects,
                areas=r.objects.areas * 0.5,
                iscrowd=np.arange(len(r.objects)) == 1,  # the second of two
            ),
        )
        for r in data.train.records
    ]
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, records=records))
    write_repaired(data, [], tmp_path / "copy")
    own = DataConfig(source="coco", path=str(tmp_path / "copy"), val_split="val")
    assert_equal(data, read_data(own, 0, Findings()))


def test_validation_images_that_cannot_be_read_are_left_out(tmp_path):
    write_clean(tmp_path / "data")
    (tmp_path / "data" / "val" / "other-1.jpg").unlink()
    cfg = DataConfig(source="coco", path=str(tmp_path / "data"), val_split="val")
    data, copy = copied(cfg, tmp_path / "copy")
    kept = [r for r in data.val.records if not r.unreadable]
    assert len(copy.val) == len(kept) == len(data.val) - 1
    assert [r.objects.boxes.tolist() for r in copy.val.records] == [
        r.objects.boxes.tolist() for r in kept
    ]
    assert list(copy.findings) == []


def test_copies_are_copies(tmp_path):
    """Who edits the repaired images does not change the originals."""
    write_clean(tmp_path / "data")
    cfg = DataConfig(source="coco", path=str(tmp_path / "data"), val_split="val")
    assert_equal(*copied(cfg, tmp_path / "copy"))
    for original in (tmp_path / "data").rglob("*.*"):
        twin = tmp_path / "copy" / original.relative_to(tmp_path / "data")
        assert not twin.exists() or not original.samefile(twin)
    original, twin = (tmp_path / folder / "train" / "plain-4.jpg" for folder in ("data", "copy"))
    before = original.read_bytes()
    assert twin.read_bytes() == before
    with twin.open("r+b") as stream:
        stream.write(b"edited")
    assert original.read_bytes() == before


def test_image_whose_header_lies_is_left_out_as_in_training(tmp_path, monkeypatch):
    """Its pixels have another size than the header says: training cannot plan for it."""
    write_clean(tmp_path / "data")
    cfg = DataConfig(source="coco", path=str(tmp_path / "data"), val_split="val")
    data = build_data(cfg, seed=0)
    place = next(i for i, r in enumerate(data.train.records) if r.where.endswith("plain-3.jpg"))
    lying = data.train.records[place]
    with pytest.raises(UserError, match="its header said"):
        decode(data.train.images[place], lying.where, expected=(lying.height - 1, lying.width))

    def smaller(source, where):
        return decode(source, where)[: 63 if source.name == "plain-3.jpg" else None]

    monkeypatch.setattr("data.check.doctor.decode", smaller)
    findings = list(check_images(data, 1))
    assert [(f.kind, f.remedy) for f in findings] == [("size differs from header", "left out")]
    write_repaired(data, findings, tmp_path / "copy")
    names = {entry["file_name"] for entry in coco_images(tmp_path / "copy", "train")}
    assert "plain-3.jpg" not in names
    assert len(names) == len(data.train) - 1
    assert not (tmp_path / "copy/train/plain-3.jpg").exists()


def coco_images(root, split):
    return json.loads((root / "annotations" / f"{split}.json").read_text())["images"]


def test_links_are_followed(tmp_path):
    write_clean(tmp_path / "data")
    file = tmp_path / "data" / "train" / "plain-4.jpg"
    file.rename(tmp_path / "data" / "store.jpg")
    file.symlink_to(tmp_path / "data" / "store.jpg")
    cfg = DataConfig(source="coco", path=str(tmp_path / "data"), val_split="val")
    assert_equal(*copied(cfg, tmp_path / "copy"))
    assert not (tmp_path / "copy" / "train" / "plain-4.jpg").is_symlink()


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_clean(tmp_path / "data")
    monkeypatch.setattr("data.check.repair.shutil.copyfile", full)
    cfg = DataConfig(source="coco", path=str(tmp_path / "data"), val_split="val")
    with pytest.raises(UserError, match="--repair .*copy: cannot be written: .*No space left"):
        copied(cfg, tmp_path / "parent" / "copy")
    assert list((tmp_path / "parent").iterdir()) == []


def test_an_empty_folder_is_filled_and_a_full_one_is_not(tmp_path):
    cfg = write_format(tmp_path / "data", "coco")
    (tmp_path / "copy").mkdir()
    copied(cfg, tmp_path / "copy")
    before = sorted((tmp_path / "copy").rglob("*"))
    with pytest.raises(UserError, match="must be an empty or absent folder"):
        copied(cfg, tmp_path / "copy")
    assert sorted((tmp_path / "copy").rglob("*")) == before
