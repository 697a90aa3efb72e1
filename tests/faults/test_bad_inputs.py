"""Configurations, places, consoles and environments that something is wrong with: one line each."""

import os
import subprocess
import sys

import pytest

from builders import ROOT, tiny_run
from errors import UserError
from runs import train
from settings.load import load_config

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


BAD_YAML = {
    "train: {steps: 3, steps: 4}": "the key 'steps' stands twice",
    "optim: {lr: 010}": "YAML reads 010 as another number",
    "run: {seed: 1:30}": "YAML reads 1:30 as another number",
    "? [a, b]\n: 1": "not valid YAML|no key",
    'run: {output_dir: "a\\0b"}': "null character",
    "run: {output_dir: ''}": "run.output_dir: is empty",
    "eval: {score_threshold: 2}": "eval.score_threshold 2.0: must lie between 0 and 1",
    "data: {num_workers: 100000}": "data.num_workers 100000: must lie in 0",
    "data: {image_size: {longest: 1000000}}": "data.image_size.longest 1000000: at most",
    "data: {source: coco, path: x, val_split: train}": "is the training split",
    "data: {num_workers: null}": "data.num_workers: null",
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_surprises_of_a_configuration_are_refused(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text + "\n")
    steps = [] if "steps" in text else ["--train.steps", "40"]
    with pytest.raises(UserError, match=BAD_YAML[text]):
        load_config(["--config", str(file), *steps, "--optim.warmup_steps", "1"])


def command(arguments, shell=""):
    line = f'"$0" "$@" {shell}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_run_whose_console_goes_away_goes_on(tmp_path):
    result = command(["train_accelerate.py", *tiny_run(tmp_path)], "| head -1")
    assert "Traceback" not in result.stderr, result.stderr
    assert (tmp_path / "run/DONE").exists()
    assert "exported to" in (tmp_path / "run/train.log").read_text()


BAD_CALLS = [
    ["-m", "tools.random_backbone", "--backbone", "/etc", "--out", "x"],
    ["-m", "tools.random_backbone", "--backbone", "street/backbone", "--out", "/proc/x"],
    ["-m", "tools.predict", "--model", "m", "a" * 300, "--out", "o"],
    ["train_accelerate.py", "--run.output_dir", "/proc/x"],
    ["train_accelerate.py", "--run.output_dir", "b" * 300],
]


@pytest.mark.parametrize("arguments", BAD_CALLS, ids=lambda a: " ".join(a)[:40])
def test_bad_places_are_told_on_one_line(arguments):
    result = command(arguments)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("variable", ["SLURM_GPUS_ON_NODE", "SLURM_NNODES", "SLURM_STEP_NUM_NODES"])
def test_environment_of_slurm_may_say_anything(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "abc")
    train(tiny_run(tmp_path))


@pytest.mark.parametrize(
    "variable", ["ACCELERATE_USE_CPU", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"]
)
def test_environment_that_accelerate_cannot_read_is_told(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "maybe")
    with pytest.raises(UserError, match="accelerate"):
        train(tiny_run(tmp_path))
