"""The C library's allocator: of a process that trains on a CPU, and of its data workers."""

import ctypes
import os
from collections.abc import Mapping

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
"""Numbers of the settings in glibc's malloc.h"""
TOP_PAD_BYTES = 64 * 2**20
"""What the heap grows by at once, besides what was asked for"""
LARGE_BYTES = 32 * 2**20
"""The largest that glibc takes for a threshold, and comes to by itself"""
MOST_MAPPED = 65_536
"""glibc's own limit of blocks that are given back one by one"""


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep the memory that tensors leave for the tensors of the next step.

    glibc gives large blocks back at once, and each page that comes anew costs a fault. Memory stays at its highest
    level so far. Nothing is changed where the environment has settings of its own, and under another C library.

    Returns: whether it was done.
    """
    return _set({MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: TOP_PAD_BYTES}, environment)


def give_back_large_blocks(environment: Mapping[str, str] = os.environ) -> bool:
    """Undo the above in a forked process whose blocks differ in size: a photo of a hundred megapixels would leave
    gaps that no other fills. Blocks of ordinary photos are kept all the same.

    Returns: whether it was done.
    """
    values = {MMAP_MAX: MOST_MAPPED, MMAP_THRESHOLD: LARGE_BYTES, TRIM_THRESHOLD: 2 * LARGE_BYTES}
    return _set({**values, TOP_PAD: 0}, environment)


def _set(values: Mapping[int, int], environment: Mapping[str, str]) -> bool:
    tunables = environment.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in environment):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(name, value) for name, value in values.items())
