"""A machine that gives little: memory, file descriptors, a home, a locale, or loses a process."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image

import train_accelerate
from builders import ROOT, tiny_run, write_coco
from data.feed.loader import batches_of
from errors import UserError
from model.memory import MemoryWatch, is_out_of_memory
from model.trainable import Trainable
from run.trouble import explain
from runs import ids, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def run_command(command, prefix=(), **environment):
    """The real command, in a process of its own; a variable that is None is not there."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [*prefix, sys.executable, *command],
        cwd=ROOT,
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=300,
    )


def large_images(tmp_path, side=256, num=2):
    """Makes some training images, and with them the canvas of their step, larger than others."""
    for file in sorted((tmp_path / "data/train").glob("*.jpg"))[:num]:
        Image.new("RGB", (side, side)).save(file)


def test_batch_that_the_device_does_not_hold_is_named_with_the_largest_that_fitted(
    tmp_path, monkeypatch
):
    forward = Trainable.forward

    def with_little_memory(self, batch, counts):
        if batch.pixel_mask.shape[0] > 1 and len(seen) == 2:  # a trial of one image, and a step
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.02 GiB.\nMore")
        seen.append(batch.pixel_mask.shape)
        return forward(self, batch, counts)

    seen = []
    monkeypatch.setattr(Trainable, "forward", with_little_memory)
    with pytest.raises(UserError) as error:
        train(tiny_run(tmp_path))
    number, height, width = seen[-1]
    text = str(error.value)
    assert text.startswith(f"out of memory on cpu: {number} image(s) on a canvas of ")
    assert (
        f"the largest that fitted: {number} image(s) on a canvas of {width} x {height} px" in text
    )
    assert "box(es)" in text
    assert "Lower train.micro_batch_size" in text
    assert "Tried to allocate 3.02 GiB." in text
    assert "\n" not in text
    assert not (tmp_path / "run/DONE").exists()


def test_evaluation_that_the_device_does_not_hold_names_its_own_key(tmp_path, monkeypatch):
    def with_little_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Trainable, "predict_with_flat", with_little_memory)
    with pytest.raises(UserError, match=r"\(none has yet\). Lower eval.batch_size"):
        train(tiny_run(tmp_path))


def test_real_shortage_of_memory_ends_with_one_line(tmp_path):
    """The allocator of the CPU has an error of its own; other errors stay what they are."""
    code = (
        "import resource, sys, psutil, train_accelerate\n"
        "from errors import ending_with_one_line\n"
        "def little(*_):\n"
        "    room = psutil.Process().memory_info().vms + 150_000_000\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (room, room))\n"
        "train_accelerate.draw_first_batches = little\n"
        "with ending_with_one_line():\n"
        "    train_accelerate.main(sys.argv[1:])\n"
    )
    arguments = tiny_run(tmp_path, data__image_size__longest=2048)
    large_images(tmp_path, side=2048, num=12)
    result = run_command(["-c", code, *arguments])
    assert result.returncode == 2, result.stderr
    assert "out of memory on cpu: 4 image(s) on a canvas of 2048 x 2048 px" in result.stderr
    assert "Traceback" not in result.stderr
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    with pytest.raises(ZeroDivisionError), MemoryWatch(torch.device("cpu"), "key").holds(None):
        raise ZeroDivisionError


def test_worker_that_is_killed_ends_the_run_with_one_line(tmp_path, capfd, monkeypatch):
    """By the system, say, when memory is short; the run must not wait for its batch for ever."""
    step = train_accelerate.take_step

    def kill_a_worker(*rest):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        workers = [c for c in children if b"resource_tracker" not in command_of(c)]
        assert workers
        for worker in workers:
            os.kill(int(worker), signal.SIGKILL)
        return step(*rest)

    def command_of(process):
        return Path(f"/proc/{process}/cmdline").read_bytes()

    monkeypatch.setattr(train_accelerate, "take_step", kill_a_worker)
    arguments = tiny_run(tmp_path, data__num_workers=2, train__steps=500)
    with pytest.raises(UserError, match=r"a data worker has ended from outside .*num_workers"):
        train(arguments)


def test_queue_that_breaks_before_torch_sees_the_dead_worker(tmp_path):
    """In one of many kills the reset connection is seen first."""

    class Broken(list):
        num_workers = 0

        def __iter__(self):
            raise ConnectionResetError(104, "Connection reset by peer")
            yield

    with pytest.raises(RuntimeError) as caught, batches_of(Broken()) as stream:
        next(stream)
    assert "a data worker has ended from outside" in explain(caught.value)


def test_too_few_descriptors_are_no_broken_image(tmp_path, monkeypatch):
    """What the machine lacks for a moment must not change which images a step has."""
    opened = []
    read = Path.read_bytes

    def without_descriptors(self):
        if self.suffix == ".jpg":
            opened.append(self)
            if len(opened) > 10:
                raise OSError(24, "Too many open files", str(self))
        return read(self)

    arguments = tiny_run(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", without_descriptors)
    with pytest.raises(UserError, match="Too many open files.*ulimit -n"):
        train(arguments)
    assert "another image takes its place" not in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_few_file_descriptors(tmp_path, workers):
    """Enough for a run, or one line that says what to raise."""
    arguments = tiny_run(tmp_path, data__num_workers=workers)
    limited = ["sh", "-c", 'ulimit -n 24 && exec "$@"', "sh"]
    result = run_command(["train_accelerate.py", *arguments], limited)
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == 0, result.stderr
    told = "a process may open 24 files, and batches on their way from 2 worker(s) may need"
    assert (told in result.stdout) == (workers > 0)


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_names_in_any_script_under_the_c_locale(tmp_path, utf8):
    root = tmp_path / "data"
    write_coco(root, 12)
    write_coco(root, 4, "val", seed=1)
    names = root / "annotations/train.json"
    names.write_text(names.read_text().replace("000.jpg", "\\u8eca\\u00e9.jpg"))
    (root / "train/000.jpg").rename(root / "train/車é.jpg")
    arguments = tiny_run(tmp_path, data__path=root)
    result = run_command(
        ["train_accelerate.py", *arguments], LC_ALL="C", PYTHONUTF8=utf8, PYTHONCOERCECLOCALE="0"
    )
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/DONE").exists()


def test_no_home_and_no_name_for_the_user(tmp_path):
    with tempfile.TemporaryDirectory() as name:  # pytest's own are for one user alone
        run_as_nobody(Path(name))


def run_as_nobody(folder):
    arguments = tiny_run(folder)
    (folder / "cache").mkdir()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
    nobody = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    if os.getuid() or subprocess.run([*nobody, "true"], capture_output=True).returncode:
        pytest.skip("another user can be had by root with setpriv alone")
    code = "import sys; sys.path.insert(0, '.'); import train_accelerate"
    if run_command(["-c", code], nobody).returncode:
        pytest.skip("another user cannot read this checkout")
    result = run_command(
        ["train_accelerate.py", *arguments], nobody, HOME=None, XDG_CACHE_HOME=f"{folder}/cache"
    )
    assert result.returncode == 0, result.stderr
    assert (folder / "run/DONE").exists()


def test_files_that_may_not_be_read_are_named_on_one_line():
    nobody = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    if os.getuid() or subprocess.run([*nobody, "true"], capture_output=True).returncode:
        pytest.skip("another user can be had by root with setpriv alone")
    with tempfile.TemporaryDirectory() as name:
        config = Path(name, "mine.yaml")
        config.write_text("run:\n  seed: 1\n")
        result = run_command(["train_accelerate.py", "--config", str(config)], nobody)
        assert result.returncode == 2, result.stderr
        assert "mine.yaml" in result.stderr
        assert "Permission denied" in result.stderr
        assert "Traceback" not in result.stderr


def test_latin_1_name_of_a_yolo_image(tmp_path):
    """Neither a traceback nor another image without a word."""
    for split, num in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for number in range(num):
            name = b"caf\xe9-%d" % number
            image = os.fsencode(tmp_path / "data/images" / split) + b"/" + name + b".jpg"
            with open(image, "wb") as file:
                Image.new("RGB", (64, 48)).save(file, "JPEG")
            label = os.fsencode(tmp_path / "data/labels" / split) + b"/" + name + b".txt"
            Path(os.fsdecode(label)).write_text("0 0.5 0.5 0.4 0.4\n")
    yaml = "path: .\ntrain: images/train\nval: images/val\nnames: [plate]\n"
    (tmp_path / "data/data.yaml").write_text(yaml)
    keys = {"data__source": "yolo", "data__path": tmp_path / "data", "train__steps": 2}
    arguments = tiny_run(tmp_path, **keys)
    train(arguments)
    assert (tmp_path / "run/DONE").exists()
    assert "caf\\xe9-" in "".join(map(str, ids(tmp_path / "run")[0])).encode(
        errors="surrogateescape"
    ).decode(errors="backslashreplace")
    checked = run_command(["-m", "tools.check_data", *arguments, "--out", str(tmp_path / "report")])
    assert "Traceback" not in checked.stderr, checked.stderr
