"""Whether a checkpoint that is written in the background has the weights of its step, though training goes on."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tools.selftest.report import Line
from tools.selftest.steps import Bench
from training.checkpoint import Checkpoints
from training.shelf import step_name
from training.state import OPTIMIZER, WEIGHTS, TrainState, checkpoint_tensors

NAME = "snapshot under load"
SAVES = 4


def snapshot_under_load(bench: Bench, folder: Path) -> list[Line]:
    """Save while steps go on, and compare what was written with copies made before.

    Args:
        bench: of one detector, whose weights will change.
    """
    checkpoints = Checkpoints(folder / "checkpoints", keep=SAVES)
    trainable, optimizer = bench.detector.trainable, bench.optimizer.optimizer
    total = bench.cfg.train.global_batch_size
    (batch,) = bench.batches(total, 0, 1)
    batch = batch.to(bench.accelerator.device)
    counts = trainable.counts(batch).alone
    torn = []
    for save in range(SAVES + 1):
        if save:
            tensors = checkpoint_tensors(trainable.model, optimizer, {}, {})
            before = {
                f: {n: t.detach().cpu().clone() for n, t in tensors[f].items()}
                for f in (WEIGHTS, OPTIMIZER)
            }
            checkpoints.save(tensors, TrainState(step=save), bench.cfg)
        optimizer.zero_grad()
        trainable(batch, counts).total.backward()
        checkpoints.wait_for_copy()
        for _ in range(3):  # as far as weights can get
            optimizer.step()
        if save:
            checkpoints.wait()
            if checkpoints.failure is not None:
                return [Line.of(NAME, False, checkpoints.failure, "see the reason given")]
            torn += [
                name
                for file, own in before.items()
                for name in _other(checkpoints.folder / step_name(save) / file, own)
            ]
    found = (
        f"{SAVES} checkpoints have the weights and optimizer of their step, while training went on"
    )
    if torn:
        found = f"{len(torn)} tensors were changed before they were copied, first {torn[0]}"
    advice = "checkpoints cannot be trusted on this device: report this as a bug, with this output"
    return [Line.of(NAME, not torn, found, advice)]


def _other(file: Path, own: dict[str, torch.Tensor]) -> list[str]:
    written = load_file(file)
    return [name for name, tensor in own.items() if not written[name].equal(tensor)]
