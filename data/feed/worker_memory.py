"""What worker processes need to pass batches on, and whether it is there."""

import os
import resource
import shutil
from pathlib import Path

from data.feed.features import FeatureStore
from data.masks import CELL_PIXELS

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 4
"""Batches that each worker prepares ahead"""
LEAST_BYTES = 2_000_000
"""What workers need for their locks alone"""
FEW_DESCRIPTORS = 256
"""Files that a process has open beside its batches, with room to spare; each batch takes up to
four, and one for each stored map"""
LEAST_DESCRIPTORS = 64
"""What a process and its workers need without any batch"""
BYTES_PER_PX = 4
"""Three of pixels, one of the mask"""


def workers_short(
    canvas: tuple[int, int],
    batch_size: int,
    num_workers: int,
    masks: int = 0,
    features: FeatureStore | None = None,
) -> str | None:
    """What workers lack to pass batches on in shared memory, and what is done instead; None if nothing.

    A worker that runs out of shared memory or of file descriptors dies or waits for ever.

    Args:
        canvas: (height, width) of the largest batch, px. masks: most of an image, if masks are learnt.
        features: stored maps that go along.
    """
    if not num_workers:
        return None
    per_px = BYTES_PER_PX + ((masks + 1) / CELL_PIXELS if masks else 0)
    maps = 0 if features is None else sum(m.nbytes for m in features.maps(0, 0))
    batch_bytes = batch_size * (canvas[0] * canvas[1] * per_px + maps)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = batch_bytes * (PREFETCHED * num_workers + 2) * ranks
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    of_batch = 4 + (0 if features is None else len(features.maps(0, 0)))
    descriptors, wanted = _descriptors(), FEW_DESCRIPTORS + of_batch * PREFETCHED * num_workers
    if needed <= free and wanted <= descriptors:
        return None
    instead = "the main process makes them" if workers_are_out() else "they come through pipes"
    if needed > free:
        lack = (
            f"{SHARED_MEMORY} has {free / 1e6:.1f} MB free, and batches on their way from {num_workers} "
            f"worker(s) may need {needed / 1e6:.0f} MB"
        )
        remedy = "give the container more by --shm-size"
    else:
        lack = (
            f"a process may open {descriptors} files, and batches on their way from {num_workers} "
            f"worker(s) may need {wanted}"
        )
        remedy = "raise `ulimit -n`"
    return f"{lack}: {instead}, which is slower ({remedy}, or lower data.num_workers)"


def workers_are_out() -> bool:
    """Whether there is too little for any worker at all."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else LEAST_BYTES + 1
    return free <= LEAST_BYTES or _descriptors() < LEAST_DESCRIPTORS


def _descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
