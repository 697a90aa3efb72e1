import contextlib
import io
import json
import shutil
import subprocess
import sys

import pytest

from builders import tiny_run
from disk import ROOT
from errors import UserError
from run.log import LOCK, claim_run_folder, leaving_no_folder
from run.tracker import project_of
from runs import losses, train
from settings.keys import Config, DataConfig, RunConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_tracker_that_fails_does_not_stop_training(tmp_path, monkeypatch):
    import trackio

    def explode(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(trackio, "init", explode)
    with pytest.warns(UserWarning, match="tracker failed .*disk full"):
        train(tiny_run(tmp_path, run__tracker="trackio"))
    assert len(losses(tmp_path / "run")) == 3


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_trackio_writes_its_colours_to_terminals_alone(tmp_path, monkeypatch, kind):
    console = kind()
    monkeypatch.setattr(sys, "stdout", console)
    train(
        tiny_run(
            tmp_path, run__tracker="trackio", run__project=f"a {kind.__name__}", train__steps=1
        )
    )
    told = console.getvalue()
    of_trackio = ("\x1b[1m", "* Trackio project initialized", "* Run finished")
    assert [words in told for words in of_trackio] == [kind is Terminal] * 3
    log = (tmp_path / "run/train.log").read_text()
    for text in (told, log):
        shown = "tracker     trackio show --project 'a StringIO'\n"
        assert (shown in text) == (kind is not Terminal)


def test_trackio_gets_the_numbers(tmp_path, monkeypatch):
    import trackio

    logged = []
    original = trackio.Run.log

    def spy(self, metrics, step=None, **rest):
        logged.append((step, metrics))
        return original(self, metrics, step=step, **rest)

    monkeypatch.setattr(trackio.Run, "log", spy)
    train(tiny_run(tmp_path, run__tracker="trackio"))
    assert [step for step, _ in logged] == [1, 2, 3, 3, 3, 3]
    assert logged[0][1]["train/loss"] == losses(tmp_path / "run")[0]
    assert set(logged[-1][1]) == {"pictures/predictions", "pictures/worst"}
    assert all(isinstance(value, trackio.Image) for value in logged[-1][1].values())
    scores = next(values for _, values in logged if "scores/wrong" in values)
    counts = json.loads((tmp_path / "run/eval/step-000003/predictions.json").read_text())
    assert sum(n.histogram.sum() for n in scores.values()) == len(counts) > 0
    # Or trackio would finish the run a second time at the end of the process, and say so.
    assert trackio.context_vars.current_run.get() is None


def test_tracker_that_is_not_installed_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="run.tracker wandb: .*pip install wandb"):
        train(tiny_run(tmp_path, run__tracker="wandb"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "synthetic"),
        ({"source": "coco", "path": "/data/my photos/"}, "my-photos"),
        ({"source": "hub", "path": "merve/license-plates"}, "license-plates"),
    ],
)
def test_each_dataset_has_a_project_of_its_own(keys, expected):
    assert project_of(Config(data=DataConfig(**keys))) == expected
    assert project_of(Config(run=RunConfig(project="mine"), data=DataConfig(**keys))) == "mine"


def test_resume_continues_the_same_run_in_the_tracker(tmp_path, monkeypatch):
    """Also after the folder was moved."""
    import trackio

    names = []
    original = trackio.init
    monkeypatch.setattr(
        trackio,
        "init",
        lambda **rest: (names.append((rest["name"], rest["resume"])), original(**rest))[1],
    )
    keys = {"run__tracker": "trackio", "train__checkpoint_every": 2}
    train(tiny_run(tmp_path, **keys))
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/checkpoints/step-000003")
    train(tiny_run(tmp_path, run__output_dir=tmp_path / "moved", run__resume="auto", **keys))
    assert names == [("run", "allow"), ("run", "allow")]


def test_a_second_start_leaves_the_folder_of_the_first_alone(tmp_path):
    """Also where the folder was not there yet when it began."""
    folder = tmp_path / "runs/mine"
    run = RunConfig(output_dir=str(folder), tracker="none")
    claim = f"""
import sys
from run.log import claim_run_folder
from settings.keys import RunConfig
lock = claim_run_folder(RunConfig(output_dir={str(folder)!r}, tracker="none"))
print("claimed", flush=True)
sys.stdin.read()
"""
    words = [sys.executable, "-c", claim]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

    def second(begin):
        with leaving_no_folder(run):
            begin()
            claim_run_folder(run)
            raise UserError("something else")

    with contextlib.ExitStack() as others:

        def begin():
            first = others.enter_context(subprocess.Popen(words, cwd=ROOT, **pipes))
            assert first.stdout.readline() == "claimed\n"

        with pytest.raises(UserError, match="another process"):
            second(begin)
        assert (folder / LOCK).exists()
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(UserError, match="something else"):
        second(lambda: None)
    assert not (tmp_path / "runs").exists()
