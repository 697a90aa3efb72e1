"""A run that has found next to nothing says so, why, and how to go on."""

import json
import re
import shlex
from types import SimpleNamespace

import pytest

from builders import tiny_run
from run import outcome as outcome_of
from run.outcome import outcome
from runs import train
from settings.load import load_config

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_a_run_without_result_gives_the_command_that_goes_on(tmp_path):
    length = {"train__epochs": 1.0, "train__steps": "null"}
    train(tiny_run(tmp_path, optim__lr=1e-6, **length))
    log = (tmp_path / "run/train.log").read_text()
    (line,) = re.findall(r"^AP 0\.0.*", log, re.MULTILINE)
    assert "2 steps are few for a head from scratch" in line
    (advised,) = re.findall(r"WARNING +a deformable_detr head.* set train.steps (\d+)", log)
    command = re.findall(r"with: python (.*) - or start", line)[0]
    assert f"--train.steps {advised}" in command
    shorter = ["--train.steps", "3", "--run.pictures", "true"]
    script, *given = shlex.split(command)
    assert script == "train_accelerate.py"
    train([*given, *shorter])
    log = (tmp_path / "run/train.log").read_text()
    assert "resumed at step 2" in log
    assert "eval 3 " in log
    page = (tmp_path / "run/report.html").read_text()
    assert re.search(r'class="notice bad">AP 0\.0\d\d: next to nothing is found yet. 3 steps', page)
    card = (tmp_path / "run/export/README.md").read_text()
    assert "**These weights find next to nothing yet: AP 0.0" in card


def a_run(tmp_path, monkeypatch, losses):
    """What of a run decides, one that was long enough."""
    monkeypatch.setattr(outcome_of, "advise", lambda *_: [])
    monkeypatch.setattr(outcome_of, "head_facts", lambda *_: None)
    rows = [{"step": 9 * place, "train/loss": loss} for place, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text("{}\n")
    (tmp_path / "run.json").write_text("{}\n")
    return SimpleNamespace(
        cfg=load_config(tiny_run(tmp_path, eval__metric="AP")),
        **dict.fromkeys(("data", "detector")),
        folder=tmp_path,
        state=SimpleNamespace(step=5000),
    )


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([5.0, 5.2, 4.9, 5.1, 5.0, None, 5.0], "has not fallen (5.1 at first, 5 at last)"),
        ([5.0, 4.0, 3.0, 2.0, 1.0], "AP stays at 0"),
        ([5.0], "AP stays at 0"),
        ([], "AP stays at 0"),
    ],
)
def test_a_long_run_without_result_says_whether_its_loss_has_fallen(
    tmp_path, monkeypatch, losses, told
):
    run = a_run(tmp_path, monkeypatch, losses)
    said = outcome(run, 0.004)
    assert said.startswith("AP 0.004: next to nothing is found yet. ")
    assert told in said
    assert outcome(run, 0.02) is None
    assert outcome(run, None) is None
