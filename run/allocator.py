"""The C library's allocator in training on a CPU."""

import ctypes
import os
from collections.abc import Mapping

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Numbers of the settings in glibc's malloc.h"""
TOP_PAD_BYTES = 64 * 2**20
"""What the heap grows by at once, besides what was asked for"""


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process, and the workers that it forks, keep the memory that tensors leave for the tensors of the
    next step.

    glibc gives large blocks back at once, and each page that comes anew costs a fault. Memory stays at its highest
    level so far. Nothing is changed where the environment has settings of its own, and under another C library.

    Returns: whether it was done.
    """
    tunables = environment.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in environment):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    values = {MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: TOP_PAD_BYTES}
    return all(library.mallopt(name, value) for name, value in values.items())
