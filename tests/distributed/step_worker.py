"""Steps of tiny detectors on this world: `torchrun ... step_worker.py FOLDER MICRO CASE ...`.

For each CASE `head-dtype-boxes`, rank 0 writes the loss terms and the gradient of one step to
FOLDER/CASE.safetensors. Its 4 images are dealt to ranks in micro-batches of MICRO, as the sampler
deals them.
"""

import contextlib
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from backbones import PARTLY_FROZEN, detector_on
from builders import four_images, part_of, tiny_detector
from training.counts import agree
from training.meter import StepMeter


def main(folder: str, micro: str, *cases: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    for case in cases:
        head, dtype, boxes = case.split("-")
        step(accelerator, Path(folder), case, head, getattr(torch, dtype), boxes, int(micro))
    accelerator.state.destroy_process_group()


def step(
    accelerator: Accelerator,
    folder: Path,
    case: str,
    head: str,
    dtype: torch.dtype,
    boxes: str,
    micro: int,
) -> None:
    with accelerator.main_process_first():  # it writes the backbone
        if head in PARTLY_FROZEN:
            detector = detector_on(folder / head, PARTLY_FROZEN[head])
        else:
            detector = tiny_detector(folder / "backbone", head)
    trainable = detector.trainable.to(dtype).train()
    images = four_images(boxes)
    world = accelerator.num_processes
    batches = []
    for turn in range(4 // (micro * world)):
        start = (turn * world + accelerator.process_index) * micro
        batches.append(part_of(images, slice(start, start + micro)))
    assert world * len(batches) * micro == 4
    model = accelerator.prepare(trainable)
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
        gradient = [p.grad.flatten() for p in detector.model.parameters() if p.grad is not None]
        values = {f"term/{n}": t for n, t in zip(names, terms, strict=True)}
        values |= {"gradient": torch.cat(gradient), "world": torch.tensor([world])}
        save_file(values, folder / f"{case}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
