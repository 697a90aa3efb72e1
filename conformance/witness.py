"""Runs a script unchanged and writes down what its training does: `python witness.py SCRIPT ARGUMENTS`.

Only hooks that torch and Python offer for it are used, so that every framework is asked the same:

- images: a digest of each image that the first convolution sees, which is what the model is given;
- backward: the number whose gradient is taken; dropped: gradients are forgotten;
- step: learning rate, gradient norm and a digest of the weights that it left;
- moment: something begins or is half done while a checkpoint is written.

The environment says where to write (WITNESS, a folder) and what to do besides (WITNESS_ASKS, JSON):
`plain`: augmentation by albumentations is left out, where a script has no key for that;
`kill_at_step`: SIGKILL when this step would be taken, a moment later, since steps here are shorter than what is written
beside them;
`kill_at_moment`: SIGKILL at this moment of saving, after step `saving_after`, below `folder`.
"""

import hashlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

MOMENT_S = 2.0
ASKS = json.loads(os.environ.get("WITNESS_ASKS", "{}"))
LOGS = (".jsonl", ".log", ".csv", ".md", ".png")
"""Files that grow or are drawn beside checkpoints"""


class Witness:
    """What one process has done so far."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.rank = int(os.environ.get("RANK", 0))
        self.file = (folder / f"{self.rank}-{os.getpid()}.jsonl").open("w")
        self.pid = os.getpid()
        self.steps = 0
        self.moments = 0

    def write(self, kind: str, **values: object) -> None:
        if os.getpid() == self.pid:  # not in a data worker that was forked
            self.file.write(json.dumps({"kind": kind, **values}) + "\n")
            self.file.flush()

    def forward(self, module: torch.nn.Module, arguments: tuple) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            images = [digest(image) for image in arguments[0]]
            self.write("images", images=images, learning=torch.is_grad_enabled())

    def before_step(self, *_: object) -> None:
        if ASKS.get("kill_at_step") == self.steps + 1:
            time.sleep(MOMENT_S)
            os.kill(os.getpid(), signal.SIGKILL)

    def after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """The gradients are read now, since a step may have made them itself (a closure)."""
        self.steps += 1
        told, norms = hashlib.sha256(), [torch.zeros((), dtype=torch.double)]
        for parameter in parameters(optimizer):
            told.update(parameter.detach().contiguous().numpy().tobytes())
            if parameter.grad is not None:
                norms.append(parameter.grad.detach().double().norm())
        norm, lr = torch.stack(norms).norm().item(), optimizer.param_groups[0]["lr"]
        self.write("step", step=self.steps, norm=norm, lr=lr, weights=told.hexdigest()[:16])

    def moment(self, what: str, place: object, half: Path | None = None) -> None:
        """One moment of saving; `half`: a file that is left half written if this is the last one."""
        after = ASKS.get("saving_after")
        if os.getpid() != self.pid or after is None or self.steps not in (after, after + 1):
            return  # a checkpoint may be written while the next step is taken
        self.moments += 1
        self.write("moment", number=self.moments, what=what, place=str(place))
        if self.moments == ASKS.get("kill_at_moment"):
            if half is not None:
                os.truncate(half, half.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR) and watched(path):
                self.moment(event, path)
        elif event in ("os.rename", "os.mkdir", "os.remove", "shutil.rmtree") and watched(
            arguments[1 if event == "os.rename" else 0]
        ):
            self.moment(event, arguments[0])


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def digest(image: torch.Tensor) -> str:
    return hashlib.sha256(image.detach().float().contiguous().numpy().tobytes()).hexdigest()[:12]


def watched(path: object) -> bool:
    folder = ASKS.get("folder")
    if folder is None or not isinstance(path, str | bytes | os.PathLike):
        return False
    name = os.path.abspath(os.fsdecode(path))
    return name.startswith(folder) and not name.endswith(LOGS) and "tfevents" not in name


def telling_of_saves(witness: Witness) -> None:
    """Writers of native code are seen by Python's audit neither when they begin nor when they end."""
    import safetensors.torch

    for module, name in ((torch, "save"), (safetensors.torch, "serialize_file")):
        write = getattr(module, name)

        def telling(content, file, *arguments, write=write, name=name, **keys):
            written = write(content, file, *arguments, **keys)
            if isinstance(file, str | os.PathLike) and watched(file):
                witness.moment(f"{name}, half written", file, half=Path(file))
            return written

        setattr(module, name, telling)


def leave_out_augmentation() -> None:
    """Compositions give back what they are given."""
    import albumentations

    def nothing(self, *arguments, **data):
        return data

    albumentations.Compose.__call__ = nothing


def telling_of_losses(witness: Witness) -> None:
    backward = torch.Tensor.backward

    def telling(loss, *arguments, **keys):
        witness.write("backward", loss=loss.item())
        return backward(loss, *arguments, **keys)

    torch.Tensor.backward = telling  # type: ignore[method-assign,assignment]
    for cls in (torch.nn.Module, torch.optim.Optimizer):
        forget(cls, witness)


def forget(cls: Any, witness: Witness) -> None:
    """Gradients that are dropped are no part of a step: a trial before the first one."""
    drop = cls.zero_grad

    def telling(self, *arguments, **keys):
        witness.write("dropped")
        return drop(self, *arguments, **keys)

    cls.zero_grad = telling


def main() -> None:
    witness = Witness(Path(os.environ["WITNESS"]))
    register_module_forward_pre_hook(witness.forward)
    register_optimizer_step_pre_hook(witness.before_step)
    register_optimizer_step_post_hook(witness.after_step)
    telling_of_losses(witness)
    telling_of_saves(witness)
    sys.addaudithook(witness.audit)
    if ASKS.get("plain"):
        leave_out_augmentation()
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
