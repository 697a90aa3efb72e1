"""How much memory a process takes, and how much it may take."""

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

MARGINS = {"cuda": 0.9, "cpu": 0.8}
"""Part of what is free that may be filled: of a GPU the rest is lost between blocks, of a machine it is for data
workers, the evaluation and others"""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What CLEAR takes for it, proc(5)"""
CGROUPS = Path("/sys/fs/cgroup")


def can_measure(device: torch.device) -> bool:
    """Whether peaks of this device's memory can be had here."""
    if device.type == "cpu":
        return os.access(CLEAR, os.W_OK)
    return device.type == "cuda"


def restart_peak(device: torch.device) -> None:
    """Forget the peak so far, and give back what is not in use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif can_measure(device):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # glibc keeps what was freed
            trim(0)
        CLEAR.write_text(RESET_PEAK)


def peak_bytes(device: torch.device) -> int:
    """Most memory since the last `restart_peak`: of tensors on CUDA, resident in this process on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def limit_bytes(device: torch.device) -> int:
    """What this process may take in all: what it has, and its share of what is free, less a margin."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(MARGINS["cuda"] * (free + torch.cuda.memory_reserved(device)))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    now = psutil.Process().memory_info()
    room = min([psutil.virtual_memory().available, *cgroup_rooms()]) / ranks
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:  # ulimit -v
        room = min(room, max(0, own - now.vms))
    return now.rss + int(MARGINS["cpu"] * room)


def cgroup_rooms(root: Path = CGROUPS, own: str | None = None) -> Iterator[int]:
    """Bytes that each limit on this process's control groups (container, SLURM job) leaves free.

    Args:
        own: the group's path; default: what the kernel says.
    """
    if own is None:
        lines = Path("/proc/self/cgroup").read_text().splitlines() if STATUS.exists() else []
        for line in lines:
            _, kinds, path = line.split(":", 2)
            if not kinds:
                yield from cgroup_rooms(root, path)
            elif "memory" in kinds.split(","):
                yield from cgroup_rooms(root / "memory", path)
        return
    folder = root / own.strip("/")
    for place in (folder, *folder.parents):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            values = [_number(place / name) for name in (limit, used)]
            if None not in values:
                yield max(0, values[0] - values[1] + _cached(place))  # type: ignore[operator]
        if place == root:
            break


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such limit, or "max"
        return None


def _cached(place: Path) -> int:
    """Bytes of files that the kernel gives up when memory is needed."""
    try:
        lines = dict(
            line.split(" ", 1) for line in (place / "memory.stat").read_text().splitlines()
        )
        return int(lines.get("total_inactive_file", lines.get("inactive_file", "0")))
    except (OSError, ValueError):
        return 0
