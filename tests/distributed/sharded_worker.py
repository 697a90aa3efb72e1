"""Steps of tiny detectors, by DDP and with weights in parts: `torchrun ... sharded_worker.py FOLDER MICRO,... CASE ...`.

For each CASE, `head` (on a frozen backbone) or `head backbone freeze`, and each MICRO, the images per pass, rank 0 writes how
the two differ to FOLDER/CASE-MICRO.json.
"""

import json
import math
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from backbones import detector_on
from builders import four_images, part_of, tiny_detector
from model.trainable import PREDICT, Trainable
from run.build import build_accelerator
from settings.keys import Config, OptimConfig, RunConfig
from training.counts import agree
from training.ema import Ema
from training.optim import build_optimizer
from training.sharding import whole, wrapped

STEPS = 3


def main(folder: str, micros: str, *cases: str) -> None:
    torch.set_num_threads(1)
    accelerator = build_accelerator(Config(run=RunConfig(tracker="none")))
    for case in cases:
        for micro in map(int, micros.split(",")):
            by_ddp, by_fsdp2 = (
                trained(accelerator, Path(folder), case, micro, parallel)
                for parallel in ("ddp", "fsdp2")
            )
            told = compared(by_ddp, by_fsdp2)
            if accelerator.is_main_process:
                (Path(folder) / f"{case}-{micro}.json").write_text(json.dumps(told))
    accelerator.state.destroy_process_group()


def build(accelerator: Accelerator, folder: Path, case: str):
    with accelerator.main_process_first():  # it writes the backbone
        if " " not in case:
            return tiny_detector(folder / "backbone", case)
        head, kind, freeze = case.split()
        return detector_on(folder / kind, kind, head, freeze)


def trained(accelerator: Accelerator, folder: Path, case: str, micro: int, parallel: str):
    """Losses, norms of the gradient, weights, average, scores, and elements held, after some steps."""
    detector = build(accelerator, folder, case)
    trainable: Trainable = detector.trainable.double().train()
    optimizer = build_optimizer(
        detector.model, detector.backbone_module, OptimConfig(lr=1e-3, backbone_lr=1e-3)
    )
    average = Ema(detector.model, 0.9)
    model, prepared = wrapped(accelerator, trainable, optimizer, parallel, PREDICT)
    average.start()
    world, rank = accelerator.num_processes, accelerator.process_index
    images = four_images("uneven")
    batches = [
        part_of(images, slice(start, start + micro))
        for start in range(rank * micro, 4, world * micro)
    ]
    losses, norms = [], []
    for step in range(1, STEPS + 1):
        agreed = agree(accelerator, [trainable.counts(batch) for batch in batches])
        total = torch.zeros((), dtype=torch.float64)
        for turn, batch in enumerate(batches):
            last = turn == len(batches) - 1
            if last:
                loss = model(batch, agreed.counts).total
                accelerator.backward(loss * world)
            else:
                with accelerator.no_sync(model):
                    loss = model(batch, agreed.counts).total
                    accelerator.backward(loss * world)
            total += loss.detach()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(
            float(whole(accelerator.clip_grad_norm_(parameters, 0.1 if step > 1 else math.inf)))
        )
        prepared.step()
        prepared.zero_grad()
        average.update(step)
        losses.append(float(accelerator.reduce(total, "sum")))
    trainable.eval()
    with average.applied():
        found = trainable.predict(part_of(images, slice(0, 4)), 20)
    trained = {n: p for n, p in detector.model.named_parameters() if p.requires_grad}
    moments = [s["exp_avg"] for s in optimizer.state.values()]
    result = {
        "loss": torch.tensor(losses, dtype=torch.float64),
        "norm": torch.tensor(norms, dtype=torch.float64),
        "weights": torch.cat([whole(p).detach().flatten() for p in trained.values()]),
        "moments": torch.cat([whole(m).flatten() for m in moments]),
        "average": torch.cat(
            [whole(t).flatten() for t in average.tensors.values() if t.is_floating_point()]
        ),
        "scores": torch.from_numpy(found.scores),
        "held": torch.tensor([held(trained.values()), held(moments)]),
        "all": torch.tensor([p.numel() for p in trained.values()]).sum(),
        "tensors": torch.tensor(len(trained)),
    }
    accelerator.free_memory()
    return result


def held(tensors) -> int:
    """Elements on this rank."""
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() for t in tensors)


def compared(one: dict, other: dict) -> dict:
    """Relative differences by name, and of the second how much it holds."""
    names = ("loss", "norm", "weights", "moments", "average", "scores")
    told = {
        name: float((one[name] - other[name]).norm() / one[name].norm().clamp(min=1e-12))
        for name in names
    }
    return {**told, **{name: other[name].tolist() for name in ("held", "all", "tensors")}}


if __name__ == "__main__":
    main(*sys.argv[1:])
