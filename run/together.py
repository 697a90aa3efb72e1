"""What one process does for all, and how they end together."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T | None:
    """Collective: called on every rank. What `action` gives on the main rank, and None on others.

    Raises:
        Exception: that of `action`, on the main rank; SystemExit then on the others, which have
            nothing to add.
    """
    result: T | None = None
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            result = action()
        except Exception as error:  # whatever it is, the others must not wait for what never comes
            failure = error
    (failed,) = broadcast_object_list([failure is not None])
    if failure is not None:
        raise failure
    if failed:
        raise SystemExit(2)
    return result


def told_by_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Collective: called on every rank. As `on_main`, with its result on all ranks."""
    (result,) = broadcast_object_list([on_main(accelerator, action)])
    return result


@contextlib.contextmanager
def ending_together(accelerator: Accelerator) -> Iterator[None]:
    """Collective: called on every rank. Wait for all; where one fails, all end.

    Raises:
        Exception: its own; SystemExit where another rank has one, or one before it has the same.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # whatever it is, the others must not wait for what never comes
        failure = error
    told: list[str | None] = gather_object([failure and f"{type(failure).__name__} {failure}"])
    rank = accelerator.process_index
    if failure is not None and told[rank] not in told[:rank]:
        raise failure
    if any(told):
        raise SystemExit(2)
