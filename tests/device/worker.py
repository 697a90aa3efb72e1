"""Real runs on the device of fake_device.py: what each step waited for, and what came of them.

Arguments: a folder, and runs as JSON: (name, device, variant, changes of the code as (file:function, text, what stands
there instead)). Writes found.json: how often each line waited in all steps together, the loss at the end, or the error.
"""

import contextlib
import importlib
import inspect
import json
import os
import sys
import textwrap
from pathlib import Path

from accelerate.state import AcceleratorState

import fake_device
import run.build
import train_accelerate
from builders import BOXES, metrics_lines, tiny_run, write_coco

KEYS = {
    "train__steps": 2,
    "run__log_every": 1000,
    "train__micro_batch_size": 2,
    "train__ema_decay": 0.9,
    "train__checkpoint_every": 1,
    "train__class_weights": "{class3: 4}",
}
"""Two steps of two micro-batches each, with a checkpoint after each; the last one is logged. Weights of classes are a
path beside the usual one, with everything that this does"""


def one(folder, device, variant, changes):
    """What came of a run."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = device
    replaced = [
        (train_accelerate, "train", counting(train_accelerate.train)),
        (train_accelerate, "evaluate", silently(train_accelerate.evaluate)),
        (run.build.Run, "save", silently(run.build.Run.save)),
        (run.build, "can_be_fused", lambda device, precision: True),  # as on CUDA
    ]
    found = {"waits": {}}
    with contextlib.ExitStack() as undo:
        for change in replaced:
            undo.enter_context(put(*change))
        for change in changes:
            undo.enter_context(changed(*change))
        try:
            for split in ("train", "val"):
                write_coco(folder / "data", 8, split, ids=(1, 3))
            train_accelerate.main(tiny_run(folder, variant, **KEYS))
            found["loss"] = [
                r["train/loss"] for r in metrics_lines(folder / "run") if "train/loss" in r
            ]
        except Exception as failure:
            found["error"] = str(failure)
        AcceleratorState._reset_state(reset_partial_state=True)
    found["waits"] = {f"{where}: {what}": n for (what, where), n in sorted(COUNTED.items())}
    return found


COUNTED = {}
"""In the last training"""


def counting(train):
    def counted(run, *args):
        fake_device.LOG.begin()
        try:
            return train(run, *args)
        finally:
            run.checkpoints.wait_for_copy()
            COUNTED.clear()
            COUNTED.update(fake_device.LOG.waits)

    return counted


def silently(function):
    def silent(*args):
        with fake_device.silence():
            return function(*args)

    return silent


@contextlib.contextmanager
def put(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def changed(place, line, instead):
    """A function of ours with another line in the place of one; `file.py:Class.function`."""
    file, _, name = place.partition(":")
    owner = module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    *classes, name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert source.count(line) == 1, f"{line} is not in {place}"
    space = {}
    code = compile(source.replace(line, instead), module.__file__, "exec")
    exec(code, module.__dict__, space)
    with put(owner, name, space[name]):
        yield


def main(folder, runs):
    fake_device.install()
    BOXES[1] = [[8, 8, 20, 20]]  # an object on every image: as many waits in every micro-batch
    found = {name: one(Path(folder) / name, *rest) for name, *rest in runs}
    (Path(folder) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
