"""The self-test's questions on this world, asked of code that is broken in known ways: `torchrun ... FILE`.

Rank 0 writes {way: {name of a line: its verdict}} as JSON to FILE.
"""

import inspect
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from random import SystemRandom
from unittest.mock import patch

import torch
from accelerate import Accelerator

import train_accelerate
from data.feed.sampler import StepSampler
from model.trainable import Trainable
from run.build import start_processes
from tools.selftest import steps

forward = Trainable.forward
begin = StepSampler.__init__
AVERAGED = "losses.total * accelerator.num_processes"
"""DDP averages over processes, and the loss is a sum"""


def own_counts(self, batch, step_counts):
    """Each micro-batch's losses are divided by its own counts, as if it were the step."""
    return forward(self, batch, self.counts(batch).alone)


def noise(self, batch, step_counts):
    """Of no generator that the loop seeds."""
    losses = forward(self, batch, step_counts)
    return type(losses)(losses.total * (1 + 3e-5 * SystemRandom().random()), losses.terms)


def changed(function, was, becomes):
    """A function of the loop with other words in its source."""
    source = inspect.getsource(function)
    assert was in source
    space = {**vars(train_accelerate)}
    exec(source.replace(was, becomes), space)
    return space[function.__name__]


def own_order(self, *args, rank=0, world=1, **kwargs):
    begin(self, *args, rank=rank, world=world, **kwargs)
    self.seed += rank


BROKEN = {
    "nothing": nullcontext(),
    "counts": patch.object(Trainable, "forward", own_counts),
    "noise": patch.object(Trainable, "forward", noise),
    "average": patch.object(
        steps, "attempt_step", changed(train_accelerate.attempt_step, AVERAGED, "losses.total")
    ),
    "order": patch.object(StepSampler, "__init__", own_order),
    "no reduction": patch.object(Accelerator, "prepare_model", lambda self, model, **_: model),
}


def main(file: str) -> None:
    torch.set_num_threads(1)
    steps.HEADS = {"deformable_detr": steps.HEADS["deformable_detr"]}
    accelerator = start_processes(steps.configured("deformable_detr", 1))
    found = {}
    for way, broken in BROKEN.items():
        with broken:
            lines = steps.exactness("no", accelerator.num_processes, accelerator.device)
        found[way] = {line.name: line.verdict.value for line in lines}
    if accelerator.is_main_process:
        Path(file).write_text(json.dumps(found))
    accelerator.state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
