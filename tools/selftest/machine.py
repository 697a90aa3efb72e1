"""What the processes run on, how fast they reach each other, and whether data workers can pass on batches."""

import dataclasses
import os
import platform
import shutil
import statistics
import time
from importlib.metadata import version
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.canvas import ResizedSizes
from data.feed.loader import TrainDataset, batches_of, train_loader
from data.feed.sampler import StepSampler
from data.feed.worker_memory import SHARED_MEMORY, workers_short
from devices import wait_for
from tools.selftest.report import Line, Verdict
from tools.selftest.steps import Bench

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "albumentations", "safetensors")
REDUCED_BYTES = 64 << 20
WORKERS = 2
BATCH = 16


def machine(accelerator: Accelerator) -> dict[str, Any]:
    """Collective: called on every rank. Versions, and the device of every process."""
    device = accelerator.device
    own = f"{platform.node()}: {device}"
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        own += f" {torch.cuda.get_device_name(device)}, {memory / 1e9:.0f} GB"
    facts: dict[str, Any] = {
        "processes": gather_object([own]),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "backend": dist.get_backend() if dist.is_initialized() else None,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        facts["tf32"] = {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "convolutions": torch.backends.cudnn.allow_tf32,
        }
    return facts


def all_reduce(accelerator: Accelerator) -> list[Line]:
    """Collective: called on every rank. How long processes take to add up what they have."""
    name = "all-reduce"
    if accelerator.num_processes == 1:
        return [
            Line(
                name,
                Verdict.UNKNOWN,
                "there is one process; start it with accelerate launch or torchrun",
            )
        ]
    small = _seconds(accelerator, 1, 20)
    large = _seconds(accelerator, REDUCED_BYTES // 4, 5)
    found = (
        f"{1e3 * small:.2f} ms for one number, {1e3 * large:.0f} ms for {REDUCED_BYTES >> 20} MB "
        f"({REDUCED_BYTES / large / 1e9:.2f} GB/s), {accelerator.num_processes} processes, {dist.get_backend()}"
    )
    return [Line(name, Verdict.MEASURED, found)]


def _seconds(accelerator: Accelerator, numbers: int, rounds: int) -> float:
    """Collective: called on every rank. Median time of an all-reduce, after one that connects."""
    values = torch.zeros(numbers, device=accelerator.device)
    seconds = []
    for turn in range(rounds + 1):
        wait_for(accelerator.device)
        begun = time.perf_counter()
        dist.all_reduce(values)
        wait_for(accelerator.device)
        if turn:
            seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def data_workers(bench: Bench) -> list[Line]:
    """Whether worker processes start, and can pass on batches in shared memory."""
    name, rule = "data workers", bench.detector.rule
    short = workers_short(rule.full, BATCH, WORKERS)
    if short is not None:
        return [Line.of(name, False, short, "training goes on so, but waits for its data")]
    cfg = dataclasses.replace(bench.cfg.data, num_workers=WORKERS, image_size=rule.size)
    sampler = StepSampler(ResizedSizes(bench.data.train.table.sizes, rule.size), BATCH, BATCH, 0)
    loader = train_loader(TrainDataset(bench.data.train, cfg, 0), sampler, pin=False)
    begun = time.perf_counter()
    with batches_of(loader) as batches:
        next(batches)
        found = f"{WORKERS} started, first batch after {time.perf_counter() - begun:.1f} s"
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free / 1e6
        found += f", {free:.0f} MB of {SHARED_MEMORY} are free"
    return [Line.of(name, True, found, "")]
