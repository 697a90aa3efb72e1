"""Runs inside of the test's process, and what they wrote."""

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
