"""A run that gets no better ends early, at the same step wherever it was stopped, and on any number of processes."""

import json
import shutil

import pytest

import run.evaluate
from builders import launch, tiny_run
from runs import losses, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
KEYS = {"train__steps": 9, "train__evaluate_every": 1, "optim__lr": 1e-12}
"""Weights that do not move score the same again and again"""


def stale(folder, step):
    state = folder / f"checkpoints/step-{step:06d}/state/state.json"
    return json.loads(state.read_text())["stale_evaluations"]


def test_run_ends_after_as_many_evaluations_without_a_better_one(tmp_path):
    """Also when it was stopped after the first of them; with more patience it goes on."""
    keys = {**KEYS, "train__patience": 2, "train__keep_checkpoints": 9}
    train(tiny_run(tmp_path, **keys))
    folder = tmp_path / "run"
    for _ in range(2):
        assert len(losses(folder)) == 3  # the first evaluation is the best one
        assert (folder / "DONE").read_text() == "3 steps\n"
        assert stale(folder, 3) == 2
        told = (folder / "train.log").read_text()
        assert "training ends after step 3: 2 evaluation(s) without a better AP" in told
        assert stale(folder, 2) == 1
        shutil.rmtree(folder / "checkpoints/step-000003")
        train(tiny_run(tmp_path, run__resume="auto", **keys))
    train(tiny_run(tmp_path, run__resume="auto", **{**keys, "train__patience": 3}))
    assert len(losses(folder)) == 4


def test_better_evaluations_are_waited_for(tmp_path, monkeypatch):
    """AP rises at steps 1, 2 and 4; after that it falls."""
    values = iter([0.1, 0.2, 0.2, 0.3, 0.1, 0.3, 0.9])
    measure = run.evaluate.measure
    monkeypatch.setattr(
        run.evaluate, "measure", lambda *given: {**measure(*given), "AP": next(values)}
    )
    train(tiny_run(tmp_path, train__patience=2, **KEYS))
    assert len(losses(tmp_path / "run")) == 6
    assert (tmp_path / "run/checkpoints/best").readlink().name == "step-000004"


@pytest.mark.slow
def test_two_processes_end_at_the_same_step(tmp_path):
    done = launch(tiny_run(tmp_path, train__patience=2, **KEYS), 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/DONE").read_text() == "3 steps\n"
