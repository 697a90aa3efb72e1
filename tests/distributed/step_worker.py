"""Steps of tiny detectors on this world: `torchrun ... step_worker.py FOLDER MICRO,... CASE ...`.

For each CASE `head-dtype-boxes`, rank 0 writes the loss terms and the gradient of one step to
FOLDER/MICRO/CASE.safetensors. Its 4 images are dealt to ranks in micro-batches of MICRO, as the sampler
deals them. The dtype is that of the weights, or the train.precision above weights in float32.
"""

import contextlib
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from backbones import PARTLY_FROZEN, detector_on
from builders import four_images, part_of, tiny_detector
from model.trainable import Trainable
from run.build import build_accelerator
from settings.keys import Config, RunConfig, TrainConfig
from training.counts import agree
from training.meter import StepMeter

MIXED = {
    "fp16": TrainConfig(precision="fp16", loss_scale_start=64.0),
    "bf16": TrainConfig(precision="bf16"),
}
"""By dtype of a case; no gradient overflows at this loss scale"""


def main(folder: str, micros: str, *cases: str) -> None:
    torch.set_num_threads(1)
    built: dict[tuple[str, str], tuple[Accelerator, Trainable, torch.nn.Module]] = {}
    for case in cases:
        head, dtype, boxes = case.split("-")
        if (head, dtype) not in built:
            AcceleratorState._reset_state()  # or the precision would be that of the case before
            train = MIXED.get(dtype, TrainConfig())
            accelerator = build_accelerator(Config(run=RunConfig(tracker="none"), train=train))
            weights = torch.float32 if dtype in MIXED else getattr(torch, dtype)
            trainable = build(accelerator, Path(folder), head).to(weights).train()
            built[head, dtype] = accelerator, trainable, accelerator.prepare(trainable)
        for micro in micros.split(","):
            file = Path(folder) / micro / f"{case}.safetensors"
            step(*built[head, dtype], boxes, int(micro), file)
    accelerator.state.destroy_process_group()


def build(accelerator: Accelerator, folder: Path, head: str) -> Trainable:
    with accelerator.main_process_first():  # it writes the backbone
        if head in PARTLY_FROZEN:
            return detector_on(folder / head, PARTLY_FROZEN[head]).trainable
        return tiny_detector(folder / "backbone", head).trainable


def step(
    accelerator: Accelerator,
    trainable: Trainable,
    model: torch.nn.Module,
    boxes: str,
    micro: int,
    file: Path,
) -> None:
    """A step with all gradients, which are not applied; `model` is the trainable as DDP wraps it."""
    trainable.zero_grad()
    images = four_images(boxes)
    world = accelerator.num_processes
    batches = []
    for turn in range(4 // (micro * world)):
        start = (turn * world + accelerator.process_index) * micro
        batches.append(part_of(images, slice(start, start + micro)))
    assert world * len(batches) * micro == 4
    agreed = agree(accelerator, [trainable.counts(batch) for batch in batches])
    meter = StepMeter(accelerator, 4)
    for turn, batch in enumerate(batches):
        last = turn == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            losses = model(batch, agreed.counts)
            accelerator.backward(losses.total * world)
            meter.add(losses.total, losses.terms)
    names = sorted(meter.losses)
    terms = accelerator.reduce(torch.stack([meter.losses[n] for n in names]), reduction="sum")
    if accelerator.is_main_process:
        file.parent.mkdir(exist_ok=True)
        scale = 1 if accelerator.scaler is None else accelerator.scaler.get_scale()
        gradients = [p.grad for p in trainable.model.parameters() if p.grad is not None]
        values = {f"term/{n}": t for n, t in zip(names, terms, strict=True)}
        values |= {"gradient": torch.cat([g.flatten() / scale for g in gradients])}
        values |= {"world": torch.tensor([world])}
        save_file(values, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
