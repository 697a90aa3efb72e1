"""Headers are read once, and again when a file has changed."""

import json
import os
from dataclasses import replace

import pytest
from PIL import Image

from builders import write_coco
from data.build import read_data
from data.findings import Findings
from data.images import headers
from data.images.header_cache import cache_file
from settings.keys import DataConfig


def read(cfg):
    return read_data(cfg, 0, Findings())


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_coco(tmp_path / "data", 8)
    write_coco(tmp_path / "data", 4, "val", seed=1)
    return DataConfig(source="coco", path=str(tmp_path / "data"), val_split="val")


@pytest.fixture
def opened(monkeypatch):
    """Paths of the images whose headers were read."""
    paths = []
    inspect = headers.inspect
    monkeypatch.setattr(
        headers, "inspect", lambda source: (paths.append(source), inspect(source))[1]
    )
    return paths


def test_second_start_opens_no_image(dataset, opened):
    first = read(dataset)
    assert len(opened) == 12
    opened.clear()
    second = read(dataset)
    assert opened == []
    assert second.fingerprint() == first.fingerprint()
    assert [str(f) for f in second.findings] == [str(f) for f in first.findings]


def test_changed_and_broken_images_are_read_again(dataset, opened, tmp_path):
    (tmp_path / "data/train/003.jpg").write_bytes(b"no image")
    read(dataset)
    opened.clear()
    Image.new("RGB", (50, 40)).save(tmp_path / "data/train/002.jpg")
    data = read(dataset)
    assert [path.name for path in opened] == ["002.jpg", "003.jpg"]
    assert (data.train.records[2].width, data.train.records[2].height) == (50, 40)
    assert data.findings.counts()["unreadable image"] == 1


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 3}'])
def test_torn_cache_is_made_anew(dataset, content, tmp_path):
    whole = read(dataset)
    file = cache_file(tmp_path / "data")
    file.write_text(content)
    assert read(dataset).fingerprint() == whole.fingerprint()
    assert len(json.loads(file.read_text())) >= 12


def test_headers_of_many_images_are_read_by_several_processes(dataset, monkeypatch, tmp_path):
    alone = read(dataset)
    cache_file(tmp_path / "data").unlink()
    monkeypatch.setattr("data.images.header_cache.MANY", 2)
    monkeypatch.setattr("data.images.header_cache.AT_ONCE", 2)
    monkeypatch.setattr(headers, "inspect", not_here)
    together = read(replace(dataset, num_workers=2))
    assert together.fingerprint() == alone.fingerprint()


HERE, INSPECT = os.getpid(), headers.inspect


def not_here(path):
    assert os.getpid() != HERE
    return INSPECT(path)
