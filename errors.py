"""Errors that the user can mend, and how entry points end on them."""

import os
import sys
from typing import NoReturn


class UserError(ValueError):
    """Something the user can mend: says what is wrong, where, and what to do instead."""


def process_rank() -> int:
    """This process among those that the launcher started, for messages alone."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def fail(error: UserError) -> NoReturn:
    """What the entry points do with a UserError: one clear message and exit status 2."""
    rank = f" (rank {process_rank()})" if process_rank() else ""
    text = str(error)
    if "Original Traceback" in text:  # raised in a data worker: only the last line is for the user
        text = text.strip().splitlines()[-1].partition("UserError: ")[2]
    print(f"error{rank}: {text}", file=sys.stderr)
    raise SystemExit(2)
