"""Files of evaluations, which another process writes while training goes on."""

import multiprocessing
import os
import signal
import time
from functools import partial

import pytest
from accelerate.state import AcceleratorState

import run.aside
import run.evaluate
import train_accelerate
import training.checkpoint
from builders import metrics_lines, tiny_run
from report.evaluation import REPORT_FILES
from run.aside import Aside
from runs import losses, train
from training.stopping import EXIT_STOPPED

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
PATIENCE_S = 30


def wait_for(what):
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def writing_after(monkeypatch, before):
    """Let every other process that writes a report call `before` with its folder first."""
    write = run.evaluate.write_report

    def changed(folder, *rest):
        if multiprocessing.parent_process():
            before(folder)
        write(folder, *rest)

    monkeypatch.setattr(run.evaluate, "write_report", changed)


def test_steps_go_on_while_files_are_written(tmp_path, monkeypatch):
    """Those of step 2 appear after step 3 was made; its checkpoint, which says that they are there, after
    them."""
    folder, go = tmp_path / "run", tmp_path / "go"
    files = folder / "eval/step-000002"
    seen, early = [], []
    take_step, write_manifest = train_accelerate.take_step, training.checkpoint.write_manifest
    writing_after(monkeypatch, lambda folder: wait_for(go.exists))

    def step(*arguments):
        taken = take_step(*arguments)
        rows = [row["step"] for row in metrics_lines(folder)] if seen else []
        seen.append((files.exists(), rows.count(2)))
        if len(seen) == 4:
            go.touch()
        return taken

    def manifest(folder):
        early.append(not files.exists())
        write_manifest(folder)

    monkeypatch.setattr(train_accelerate, "take_step", step)
    monkeypatch.setattr(training.checkpoint, "write_manifest", manifest)
    train(tiny_run(tmp_path, train__steps=5, train__evaluate_every=2, train__checkpoint_every=2))
    # In steps 3 and 4 there were no files yet, but the numbers of step 2 (and its losses) were.
    assert seen[2:4] == [(False, 2), (False, 2)]
    assert not any(early)
    for number in (2, 4, 5):
        assert {f.name for f in (folder / f"eval/step-00000{number}").iterdir()} == REPORT_FILES
    told = (folder / "train.log").read_text()
    assert "warning" not in told
    assert [line.split()[1] for line in told.splitlines() if line.startswith("eval ")] == [
        *("2", "4", "5")
    ]


def test_process_that_is_killed_is_told_and_the_best_files_are_made_anew(tmp_path, monkeypatch):
    writing_after(monkeypatch, lambda folder: os.kill(os.getpid(), signal.SIGKILL))
    train(tiny_run(tmp_path, train__evaluate_every=2))
    folder = tmp_path / "run"
    told = (folder / "train.log").read_text()
    for number in (2, 3):
        assert (
            f"evaluation of step {number} could not be written: its process ended with SIGKILL"
            in told
        )
    best = (folder / "checkpoints/best").readlink().name
    assert {f.name for f in (folder / "eval" / best).iterdir()} == REPORT_FILES
    assert (folder / "DONE").exists()


def test_signal_while_files_are_written_leaves_them_whole(tmp_path, monkeypatch):
    """To the whole group, as clusters do; the next life goes on bit by bit."""
    keys = {"train__steps": 4, "train__evaluate_every": 2, "optim__schedule": "constant"}
    train(tiny_run(tmp_path, run__output_dir=tmp_path / "whole", **keys))

    def strike(folder):
        for process in (os.getpid(), os.getppid()):
            os.kill(process, signal.SIGTERM)
        time.sleep(0.3)

    writing_after(monkeypatch, strike)
    assert train_accelerate.main(tiny_run(tmp_path, **keys)) == EXIT_STOPPED
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path / "run"
    assert {f.name for f in (folder / "eval/step-000002").iterdir()} == REPORT_FILES
    monkeypatch.undo()
    train(tiny_run(tmp_path, run__resume="auto", **keys))
    assert "warning" not in (folder / "train.log").read_text()
    assert losses(folder) == losses(tmp_path / "whole")
    for file in ("checkpoints/step-000004/model/trainable.safetensors", "export/model.safetensors"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def write_and_sleep(file):
    file.write_text(str(os.getpid()))
    time.sleep(2 * PATIENCE_S)


def start_and_sleep(file):
    Aside().start(partial(write_and_sleep, file))
    time.sleep(2 * PATIENCE_S)


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as file:
        return file.read().split()[2] == "Z"


def test_it_ends_with_the_run(tmp_path):
    """Or it would write where the next life writes."""
    file = tmp_path / "pid"
    main = multiprocessing.get_context("fork").Process(target=start_and_sleep, args=(file,))
    main.start()
    wait_for(lambda: file.exists() and file.read_text())
    main.kill()
    main.join()
    wait_for(partial(is_gone, int(file.read_text())))


def test_work_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(run.aside, "LONGEST_S", 1)
    aside = Aside()
    aside.start(partial(time.sleep, PATIENCE_S))
    assert aside.finish() == "its process ended with SIGALRM"
    assert aside.finish() is None


def test_without_room_for_a_process_the_work_is_done_at_once(tmp_path, monkeypatch):
    def refuse(self):
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(run.aside.FORK.Process, "start", refuse)
    aside = Aside()
    aside.start((tmp_path / "done").touch)
    assert (tmp_path / "done").exists()
    assert aside.finish() is None
