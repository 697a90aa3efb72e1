"""The check of images range by range: whoever looks at which, the report is that of one process."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time

import numpy as np
import pytest
from PIL import Image

import data.check.doctor
from builders import write_coco
from data.check.ranges import ImageCheck, examine_piece, examined, made_by, piece_of
from data.images.decode import decode
from errors import UserError
from planted import write_planted
from run.on_ray import on_ray
from tools import check_data, check_ranges

RANGE = ("--range-images", "7")


def plant_masks(root):
    """An outline that crosses itself, and an object that was labelled twice."""
    write_coco(root, 24)
    write_coco(root, 8, "val", seed=1)
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    x, y, w, h = first["bbox"]
    first["segmentation"] = [[x, y, x + w, y + h, x + w, y, x, y + h]]
    content["annotations"].append({**content["annotations"][-1], "id": 900})
    file.write_text(json.dumps(content))


class Checked:
    """A dataset, and what one process says of it."""

    def __init__(self, folder, capsys, of_masks=False):
        (plant_masks if of_masks else write_planted)(folder / "data")
        self.folder, self.capsys, self.of_masks = folder, capsys, of_masks
        self.expected = self.report()

    def main(self, *more):
        """Exit status and what is printed."""
        empty = self.folder / "empty.yaml"
        empty.write_text("train: {epochs: 1}\ndata: {image_size: {longest: 192}}\n")
        keys = {"config": empty, "data.source": "coco", "data.path": self.folder / "data"}
        keys |= {"data.val_split": "val"}
        if self.of_masks:
            keys |= {"model.task": "instance_segmentation", "model.head": "maskformer"}
        arguments = [str(part) for name, value in keys.items() for part in (f"--{name}", value)]
        self.capsys.readouterr()
        status = check_data.main([*arguments, "--workers", "2", *map(str, more)])
        return status, self.capsys.readouterr().out

    def report(self, *more):
        """Exit status, what is printed and what is in the JSON."""
        file = self.folder / "found.json"
        told = self.main("--json", file, "--all", *more)
        return *told, file.read_bytes()

    def kept(self, name="kept"):
        return {f.name: f.read_bytes() for f in (self.folder / name).glob("range-*.json")}


@pytest.fixture
def checked(tmp_path, capsys):
    return Checked(tmp_path, capsys)


@pytest.fixture
def looked_at(monkeypatch):
    """Numbers of the ranges that are looked at."""
    numbers = []

    def noting(splits, ranges, *more):
        numbers.extend(part.number for part in ranges)
        return examined(splits, ranges, *more)

    monkeypatch.setattr(check_ranges, "examined", noting)
    return numbers


@pytest.mark.parametrize("of_masks", [False, True])
def test_shares_are_joined_to_the_report_of_one_process(tmp_path, capsys, looked_at, of_masks):
    checked = Checked(tmp_path, capsys, of_masks)
    looked_at.clear()
    shares = tmp_path / "shares"
    for share in ("3/3", "1/3", "2/3"):
        status, out = checked.main("--ranges", shares, *RANGE, "--share", share)
        assert status == 0
        assert f"share {share[0]} of 3: " in out
    num = len(looked_at)
    assert sorted(looked_at) == list(range(num))
    assert checked.report("--ranges", shares, *RANGE) == checked.expected
    assert len(looked_at) == num > 3  # nothing was left to do
    assert checked.report("--ranges", tmp_path / "pool", *RANGE) == checked.expected
    assert checked.kept("pool") == checked.kept("shares")
    assert len(checked.kept("pool")) == num
    assert (b"mask crosses itself" in checked.expected[2]) == of_masks


def slow(source, where):
    time.sleep(0.05)
    return decode(source, where)


def test_a_killed_process_loses_the_ranges_it_was_at(checked, tmp_path, monkeypatch, looked_at):
    monkeypatch.setattr(data.check.doctor, "decode", slow)
    kept, options = tmp_path / "kept", ("--ranges", tmp_path / "kept", "--range-images", "3")
    process = multiprocessing.get_context("fork").Process(target=checked.report, args=options)
    process.start()
    while len(checked.kept()) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = {file: file.stat().st_mtime_ns for file in kept.glob("range-*.json")}
    looked_at.clear()
    assert checked.report(*options) == checked.expected
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(looked_at) == len(checked.kept()) - len(before)
    assert len(before) >= 2
    assert len(looked_at) >= 2


def test_a_killed_worker_of_the_pool_loses_nothing(checked, tmp_path, monkeypatch):
    marker = tmp_path / "killed"

    def once(source, where):
        if source.name == "plain-5.jpg" and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(source, where)

    monkeypatch.setattr(data.check.doctor, "decode", once)
    assert checked.report("--ranges", tmp_path / "kept", *RANGE) == checked.expected
    assert marker.exists()
    assert len(checked.kept()) == 6


def test_an_image_that_ends_every_process_is_named_and_looked_at_again(
    checked, tmp_path, monkeypatch, looked_at
):
    def crash(source, where):
        if source.name == "plain-5.jpg":
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(source, where)

    monkeypatch.setattr(data.check.doctor, "decode", crash)
    options = ("--ranges", tmp_path / "kept", *RANGE)
    _, out, _ = checked.report(*options)
    assert "plain-5.jpg  (the process that decoded it died (SIGKILL))" in out
    assert len(checked.kept()) == 5
    monkeypatch.undo()
    assert checked.report(*options) == checked.expected
    assert len(checked.kept()) == 6


def test_an_image_that_has_changed_is_looked_at_anew_with_its_range(checked, tmp_path, looked_at):
    one, other = (tmp_path / f"data/train/plain-{number}.jpg" for number in (5, 6))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(one, quality=100)
    shutil.copy(one, other)
    options = ("--ranges", tmp_path / "kept", "--range-images", "1")
    assert f"{other.name}  (same pixels as train/{one.name}" in checked.report(*options)[1]
    looked_at.clear()
    whole, times = bytearray(one.read_bytes()), one.stat()
    assert len(whole) > 10_000  # the beginning and the end tell a file from another one elsewhere
    whole[5000:5100] = bytes(100)
    one.write_bytes(whole)
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = checked.report(*options)
    assert f"{other.name}  (same pixels" not in changed[1]
    assert len(looked_at) == 1
    assert changed == checked.report()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"made_from": {}, "images": []}'])
def test_what_is_kept_and_damaged_is_looked_at_anew(checked, tmp_path, looked_at, text):
    options = ("--ranges", tmp_path / "kept", *RANGE)
    checked.report(*options)
    before = checked.kept()
    damaged = tmp_path / "kept" / min(before)
    damaged.write_text(text or before[damaged.name].decode()[:-100])
    looked_at.clear()
    assert checked.report(*options) == checked.expected
    assert looked_at == [0]
    assert checked.kept() == before


def test_other_code_finds_nothing_of_what_is_kept(checked, tmp_path, monkeypatch, looked_at):
    options = ("--ranges", tmp_path / "kept", *RANGE)
    checked.report(*options)
    other = {**made_by(), "packages": {"pillow": "1.0"}}
    monkeypatch.setattr("data.check.ranges.made_by", lambda: other)
    looked_at.clear()
    assert checked.report(*options) == checked.expected
    assert len(looked_at) == 6
    with pytest.raises(UserError, match="has other code or packages"):
        examine_piece(made_by(), None)


def test_a_piece_alone_shows_what_its_range_does(tmp_path):
    from data.build import read_data
    from data.findings import Findings
    from settings.keys import DataConfig

    plant_masks(tmp_path)
    cfg = DataConfig("coco", str(tmp_path), val_split="val")
    images = ImageCheck(read_data(cfg, 0, Findings(), "masks"), 10)
    found = dict(examined(images.splits, images.ranges, workers=2))
    for part in images.ranges:
        piece = piece_of(images.splits[part.split], part)
        assert len(piece.images.paths) == len(part.places)  # and not those of the whole split
        assert examine_piece(made_by(), piece) == found[part]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--share", "1/2"), "--share: needs --ranges"),
        (("--share", "1/2", "--ranges", "x", "--json", "y"), "--json: a share reports nothing"),
        (("--share", "1/2", "--ranges", "x", "--advise", "y"), "--advise: a share reports nothing"),
        (("--share", "1/2", "--ranges", "x", "--engine", "ray"), "Ray shares the images out"),
        (("--ranges", __file__), "is a file"),
        (("--range-images", "0"), "must be 1 or more"),
        (("--engine", "ray"), "--workers: are those of this machine"),
    ],
)
def test_calls_that_cannot_be_are_refused(checked, options, told):
    with pytest.raises(UserError, match=told):
        checked.main(*options)


def test_a_folder_that_cannot_be_written_is_an_error(checked, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.check.ranges.write_whole", full)
    with pytest.raises(UserError, match=r"--ranges .*kept: cannot be written: No space left"):
        checked.main("--ranges", tmp_path / "kept")


def test_without_ray_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install -r requirements-ray.txt"):
        next(on_ray(shutil.rmtree, [("a", "b")]))


def test_a_cluster_that_does_not_answer_is_an_error_at_once(monkeypatch):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"RAY_ADDRESS 127.0.0.1:{port}: nobody answers"):
        next(on_ray(shutil.rmtree, [("a", "b")]))
