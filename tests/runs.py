"""Runs inside of the test's process, and what they wrote."""

import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate.state import AcceleratorState

import train_accelerate
from builders import metrics_lines


def train(arguments):
    train_accelerate.main(arguments)
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(run):
    return [row["train/loss"] for row in metrics_lines(run) if "train/loss" in row]


def norms(run):
    return [row["train/grad_norm"] for row in metrics_lines(run) if "train/loss" in row]


def ids(run):
    return [sorted(row["train/image_ids"]) for row in metrics_lines(run) if "train/loss" in row]


def stopped_and_resumed(tmp_path: Path, run_of: Callable[..., list[str]]) -> tuple[Path, Path]:
    """Folders of a run of four steps that was stopped after two and resumed, and of one that was not, which are
    held to be bit-equal.

    Args:
        run_of: its command line, given further keys.
    """
    keys = {
        "optim__schedule": "constant",
        "train__checkpoint_every": 2,
        "train__ema_decay": 0.9,
        "train__steps": 4,
        "data__augment": '[{"HorizontalFlip": {"p": 0.5}}]',
    }
    one, never = tmp_path / "run", tmp_path / "never stopped"
    train(run_of(run__output_dir=never, **keys))
    shutil.copytree(never, one, symlinks=True)
    shutil.rmtree(one / "checkpoints/step-000004")  # as if stopped before it
    train(run_of(run__resume="auto", **keys))
    assert "resumed at step 2" in (one / "train.log").read_text()
    assert losses(one) == losses(never)
    assert norms(one) == norms(never)
    for file in ("checkpoints/step-000004/model/trainable.safetensors", "export/model.safetensors"):
        assert (one / file).read_bytes() == (never / file).read_bytes()
    return one, never
