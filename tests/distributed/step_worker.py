"""One step of a tiny detector on this world: `torchrun ... step_worker.py OUT HEAD DTYPE CASE MICRO`.

Rank 0 writes the step's loss terms and gradient to OUT. The 4 images of CASE are dealt to ranks in
micro-batches of MICRO as the sampler deals them.
"""

import contextlib
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from builders import four_images, tiny_detector
from safetensors.torch import save_file

from data.collate import Batch
from training.counts import global_counts
from training.meter import StepMeter


def main(out: str, head: str, dtype: str, case: str, micro: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    with accelerator.main_process_first():  # it writes the backbone
        detector = tiny_detector(Path(out).parent / "backbone", head)
    detector.model.to(getattr(torch, dtype)).train()
    images = four_images(case, getattr(torch, dtype))
    world, size = accelerator.num_processes, int(micro)
    batches = []
    for turn in range(4 // (size * world)):
        start = (turn * world + accelerator.process_index) * size
        rows = slice(start, start + size)
        batches.append(Batch(*(images[k][rows] for k in ("pixel_values", "pixel_mask", "labels"))))
    model = accelerator.prepare(detector.model)
    detector.criterion.step_counts = global_counts(
        accelerator, batches, detector.model.config.num_queries
    )
    meter = StepMeter(accelerator, 4)
    for turn, batch in enumerate(batches):
        last = turn == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            outputs = model(
                pixel_values=batch.pixel_values, pixel_mask=batch.pixel_mask, labels=batch.labels
            )
            accelerator.backward(outputs.loss * world)
            meter.add(outputs.loss.double(), {k: v.double() for k, v in outputs.loss_dict.items()})
    names = sorted(meter.losses)
    terms = accelerator.reduce(torch.stack([meter.losses[n] for n in names]), reduction="sum")
    if accelerator.is_main_process:
        assert accelerator.num_processes * len(batches) * size == 4
        gradient = [p.grad.flatten() for p in detector.model.parameters() if p.grad is not None]
        save_file(
            {
                "gradient": torch.cat(gradient),
                "world": torch.tensor([world]),
                **{f"term/{n}": t for n, t in zip(names, terms, strict=True)},
            },
            out,
        )
    accelerator.wait_for_everyone()
    accelerator.state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
