"""What one process does for all, and how they end together."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from errors import UserError

T = TypeVar("T")
LOST_PEERS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
"""Words of torch.distributed where another process of the run is gone"""


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """Collective: called on every rank. What `action` gives on the main rank, and None on others.

    Raises:
        UserError: that of `action`, on the main rank; SystemExit then on the others, which have
            nothing to add.
    """
    result: T | None = None
    failure: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            result = action()
        except UserError as error:
            failure = [error]
    told = [None if failure[0] is None else str(failure[0])]
    broadcast_object_list(told)
    if failure[0] is not None:
        raise failure[0]
    if told[0] is not None:
        raise SystemExit(2)
    return result


def lost_peers(error: RuntimeError) -> bool:
    """Whether a collective failed since another process of the run has ended."""
    return any(words in str(error) for words in LOST_PEERS)
