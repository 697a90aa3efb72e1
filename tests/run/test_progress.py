"""Nobody waits for minutes without a word."""

import re
import signal
import subprocess
import sys
import time

import pytest

from builders import ROOT, tiny_run
from run import progress
from run.progress import Plan, Progress
from runs import train


def said(num_steps, seconds, first=0.0):
    """(after which step, what) of steps that take so long, the first one longer."""
    plan, now, lines = Plan(num_steps, 100.0), 100.0 + first, []
    for step in range(1, num_steps + 1):
        now += seconds
        if (told := plan.after(step, now)) is not None:
            lines.append((step, told))
    return lines


def test_a_usual_run_is_planned_after_six_steps():
    ((step, told),) = said(50, 0.5, first=3)
    assert step == 6
    assert told.startswith("planned     about 0:22 for 44 more steps of 0.50 s")
    assert not said(20, 0.5)
    assert not said(1, 100)
    assert not said(0, 100)


def test_few_slow_steps_are_planned_by_seconds():
    lines = said(10, 8)
    assert [step for step, _ in lines] == [4]
    assert "about 0:48 for 6 more steps of 8.00 s" in lines[0][1]
    first, second = said(10, 30, first=60)
    assert first == (1, "planned     9 more steps; the first one took 90 s")
    assert second[0] == 2
    assert "about 4:00 for 8 more" in second[1]


def test_a_line_now_and_then_where_there_is_no_bar(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(1000, "features", "images", "stored", shown=True) as bar:
        for _ in range(100):
            now[0] += 1
            bar.update(10)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "features    100 of 1,000 images stored, about 1:30 left"
    assert [line.split()[1] for line in lines] == ["100", "400", "700"]
    with Progress(1000, "features", "images", "stored", shown=False) as bar:
        now[0] += 100
        bar.update(10)
    assert not capsys.readouterr().out


def cached(tmp_path, **keys):
    usual = {"data__cache_features": 2, "data__cache_folder": tmp_path / "cache"}
    return tiny_run(tmp_path, **{**usual, **keys})


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(("steps", "pays"), [(2, False), (6, True)])
def test_storing_features_for_few_epochs_is_told(tmp_path, capsys, steps, pays):
    """Two steps are one epoch."""
    train(cached(tmp_path, train__steps=steps))
    told = capsys.readouterr().out
    assert ("pays from epoch 3 on, and in every later run" in told) == pays
    wasted = "does not pay in this run of 1.0 epochs, but in later ones .*--data.cache_features 0"
    assert bool(re.search(wasted, told)) != pays


@pytest.mark.slow
def test_an_interrupted_build_says_that_its_files_are_used(tmp_path):
    argv = cached(tmp_path, data__cache_features=400, data__num_workers=2)
    words = [sys.executable, "train_accelerate.py", *argv]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not list((tmp_path / "cache").rglob("*.safetensors")):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        told = process.stdout.read()
    assert process.returncode == 75
    assert f"features stored so far stay in {tmp_path / 'cache'}; the next start" in told
