"""What an adversary, a full disk, a stale environment or a careless copy did to a run."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

import run.evaluate
import run.samples
import train_accelerate
from builders import ROOT, metrics_lines, tiny_run, write_coco
from errors import UserError
from runs import train
from training.stopping import EXIT_STOPPED, SIGNALS, leaving_at_signals

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_stale_rank_in_the_environment_does_not_open_a_finished_run(tmp_path, monkeypatch):
    train(tiny_run(tmp_path))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="holds a finished run; choose another folder"):
        train_accelerate.main(tiny_run(tmp_path))
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "abc"), ("RANK", "x"), ("RANK", "-1")])
def test_environment_of_no_launcher_is_named(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name} .*not a number; unset it"):
        train_accelerate.main(tiny_run(tmp_path))


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_evaluation_that_a_full_disk_swallowed_is_made_again(tmp_path, monkeypatch):
    """At the end of the same life, or of a later one: the best weights are there."""
    write = run.evaluate.write_report
    monkeypatch.setattr(
        run.evaluate,
        "write_report",
        lambda *rest: (no_room if multiprocessing.parent_process() else write)(*rest),
    )
    train(tiny_run(tmp_path))
    folder = tmp_path / "run"
    told = (folder / "train.log").read_text()
    assert "step 3 could not be written: [Errno 28] No space left on device; what the" in told
    assert "the evaluation of step 3 was made anew" in told
    logged = [row for row in metrics_lines(folder) if "eval/AP" in row]
    metrics = json.loads((folder / "eval/step-000003/metrics.json").read_text())
    assert metrics["AR_100"] == logged[-1]["eval/AR_100"]
    assert (folder / "DONE").exists()

    other = tiny_run(tmp_path, run__output_dir=tmp_path / "later", run__resume="auto")
    monkeypatch.setattr(run.evaluate, "write_report", no_room)
    with pytest.raises(UserError, match="eval/step-000003: cannot be written.*Make room"):
        train(other)
    assert not (tmp_path / "later/DONE").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(run.evaluate, "write_report", write)
    train(other)
    assert (tmp_path / "later/DONE").exists()
    assert (tmp_path / "later/export/model.safetensors").exists()


@pytest.mark.parametrize("file", ["metrics.jsonl", "train.log"])
def test_lines_that_cannot_be_written_are_not_lost(tmp_path, file):
    """No checkpoint comes after them, so the next life makes them again."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}\n")  # a run has begun here
    (folder / file).symlink_to("/dev/full")
    arguments = tiny_run(tmp_path, run__resume="auto")
    with pytest.raises(UserError, match=r"could not be written.*Make room, then go on"):
        train(arguments)
    assert not (folder / "DONE").exists()
    assert not list((folder / "checkpoints").glob("step-*"))
    AcceleratorState._reset_state(reset_partial_state=True)
    (folder / file).unlink()
    train(arguments)
    assert [row["step"] for row in metrics_lines(folder) if "train/loss" in row] == [1, 2, 3]
    assert (folder / "DONE").exists()


def halves(tmp_path, **keys):
    """Command lines of a run of two steps, and of its continuation to four."""
    keys = {"optim__schedule": "constant", **keys}
    first = tiny_run(tmp_path, train__steps=2, **keys)
    return first, tiny_run(tmp_path, train__steps=4, run__resume="auto", **keys)


def test_a_copy_that_followed_links_goes_on(tmp_path):
    first, second = halves(tmp_path)
    train(first)
    folder = tmp_path / "run"
    shutil.copytree(folder, tmp_path / "copy", symlinks=False)
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    shutil.rmtree(folder / "checkpoints/step-000002")  # the copy of `last` is all that is left
    train(second)
    assert [row["step"] for row in metrics_lines(folder) if "train/loss" in row] == [1, 2, 3, 4]
    assert (folder / "checkpoints/last").is_symlink()
    assert "last is a folder and no link" in (folder / "train.log").read_text()


def test_file_systems_without_links_folder_flushes_and_sizes_do(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    fsync = os.fsync

    def only_files(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    nothing = shutil.disk_usage(tmp_path)._replace(total=0, used=0, free=0)
    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    monkeypatch.setattr(os, "fsync", only_files)
    monkeypatch.setattr("training.checkpoint.shutil.disk_usage", lambda _: nothing)
    first, second = halves(tmp_path)
    train(first)
    train(second)
    names = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert names == {"step-000002", "step-000004"}
    assert (tmp_path / "run/export/model.safetensors").exists()


def test_bytes_that_are_no_text_in_the_metrics_are_dropped(tmp_path):
    first, second = halves(tmp_path)
    train(first)
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\x00 torn\n")
    train(second)
    assert [row["step"] for row in metrics_lines(tmp_path / "run") if "train/loss" in row] == [
        1,
        2,
        3,
        4,
    ]


def test_other_pixels_of_the_same_size_are_another_dataset(tmp_path):
    first, second = halves(tmp_path)
    train(first)
    file = tmp_path / "data/train/000.jpg"
    with Image.open(file) as image:
        Image.fromarray(255 - np.asarray(image)).save(file, quality=95)
    with pytest.raises(UserError, match="another dataset"):
        train_accelerate.main(second)


def test_run_and_card_say_which_code_it_was(tmp_path):
    train(tiny_run(tmp_path))
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert set(facts["code"]) == {"commit", "dirty", "sha256"}
    assert facts["threads"] == torch.get_num_threads()
    if (ROOT / ".git").exists():
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
        assert facts["code"]["commit"] == head.stdout.strip()
        assert head.stdout[:12] in (tmp_path / "run/export/README.md").read_text()


def test_class_names_command_neither_terminals_nor_readers(tmp_path):
    """Escape codes, line ends, markup, formulas, lone surrogates: shown, and not obeyed."""
    names = ["\x1b[2Jred", "a\nb|<b>`x`", "=HYPERLINK(1)", "\ud800lone"]
    write_coco(tmp_path / "odd", 8, ids=(1, 2, 3, 4))
    file = tmp_path / "odd/annotations/train.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": i, "name": n} for i, n in enumerate(names, 1)]
    file.write_text(json.dumps(content))
    train(tiny_run(tmp_path, data__path=tmp_path / "odd", data__val_split="null"))
    folder = tmp_path / "run"
    for shown in ("train.log", "export/README.md", "eval/step-000003/per_class.csv"):
        text = (folder / shown).read_bytes().decode()
        assert "\x1b" not in text, shown
        assert all(line.isprintable() for line in text.splitlines()), shown
    assert "<b>" not in (folder / "export/README.md").read_text().partition("## Training")[0]
    labels = json.loads((folder / "export/config.json").read_text())["id2label"]
    assert list(labels.values()) == names


def test_files_of_a_run_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        train(tiny_run(tmp_path))
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        wanted = 0o755 if path.is_dir() else 0o644
        assert path.is_symlink() or stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_samples_that_cannot_be_drawn_do_not_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run.samples, "draw_batch", no_room)
    train(tiny_run(tmp_path))
    assert (tmp_path / "run/DONE").exists()
    assert "could not be drawn" in (tmp_path / "run/train.log").read_text()


def test_a_folder_named_stop_asks_for_nothing(tmp_path):
    (tmp_path / "run/STOP").mkdir(parents=True)
    train(tiny_run(tmp_path, run__resume="auto"))
    assert (tmp_path / "run/DONE").exists()


@pytest.fixture
def default_signals():
    """As a run in the foreground has them, however the tests were started."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_under_nohup_does_not_hear_the_hangup(default_signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with leaving_at_signals():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_signal_before_the_first_step_leaves_with_one_line(name, capfd, default_signals):
    with pytest.raises(SystemExit) as left, leaving_at_signals():
        os.kill(os.getpid(), getattr(signal, name))
    assert left.value.code == EXIT_STOPPED
    assert f"stopped by {name} before the first step" in capfd.readouterr().err


def test_large_photos_are_drawn_small(tmp_path):
    folder = tmp_path / "data/train"
    write_coco(tmp_path / "data", 8)
    write_coco(tmp_path / "data", 5, "val", seed=1)
    for name in ("000.jpg", "001.jpg"):
        Image.new("RGB", (3000, 2000), "grey").save(folder.parent / "val" / name)
    train(tiny_run(tmp_path))
    with Image.open(tmp_path / "run/eval/step-000003/predictions.png") as drawn:
        assert max(drawn.size) < 4000


def in_container(size, command):
    """Run in a mount namespace whose /dev/shm has `size`, as containers have it."""
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("size", "instead"), [("64m", "through pipes"), ("64k", "the main process")]
)
def test_little_shared_memory_is_told_and_done_without(tmp_path, size, instead):
    """Docker gives 64 MB; batches of workers then ended in a wait that no signal broke."""
    longest = {"data__image_size__longest": 1024, "data__num_workers": 2, "train__steps": 2}
    arguments = tiny_run(tmp_path, **longest)
    for split in ("train", "val"):
        for file in (tmp_path / "data" / split).glob("*.jpg"):
            Image.new("RGB", (1024, 1024)).save(file)
    result = in_container(size, [sys.executable, "train_accelerate.py", *arguments])
    assert result.returncode == 0, result.stderr[-2000:]
    assert "batches on their way from 2 worker(s)" in result.stdout
    assert instead in result.stdout
