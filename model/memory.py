"""What a device's memory holds, and what did not fit into it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data.batch import Batch
from errors import UserError

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "Insufficient memory", "ALLOC_FAILED")
"""Words of the allocators of torch and OpenCV, which have errors of their own, and of cuBLAS and cuDNN"""


class MemoryWatch:
    """Tells which micro-batch was too much for the device, and which was the largest that was not."""

    def __init__(self, device: torch.device, key: str, fits: int | None = None):
        """
        Args:
            key: of the configuration, that says how many images a batch has.
            fits: number of images that was found to fit before.
        """
        self.device = device
        self.key = key
        self.fits = fits
        self._largest: tuple[int, str] | None = None

    @contextmanager
    def holds(self, batch: Batch) -> Iterator[None]:
        """Around everything that is computed on a batch.

        Raises:
            UserError: naming the batch, if the memory does not hold it.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[:1]
            raise UserError(self._message(batch, reason[0] if reason else "")) from error
        size = batch.pixel_mask.numel()
        if self._largest is None or size > self._largest[0]:
            self._largest = (size, _describe(batch))

    def _message(self, batch: Batch, reason: str) -> str:
        fitted = f"the largest that fitted: {self._largest[1]}" if self._largest else "none has yet"
        found = (
            "" if self.fits is None else f" (the trial before step 1 found room for {self.fits})"
        )
        return (
            f"out of memory on {self.device}: {_describe(batch)} did not fit ({fitted}). Lower {self.key}{found}, "
            "on which no result depends, or data.image_size, or train less of the model (model.freeze). "
            f"The allocator says: {reason[:300]}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or in main memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)


def _describe(batch: Batch) -> str:
    number, height, width = batch.pixel_mask.shape
    boxes = sum(batch.num_objects)
    return f"{number} image(s) on a canvas of {width} x {height} px with {boxes} box(es)"
