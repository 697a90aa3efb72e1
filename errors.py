"""Errors that the user can mend, and text of others made safe for whom it is shown to."""

import html
import os
import sys
from typing import NoReturn


class UserError(ValueError):
    """Something the user can mend: says what is wrong, where, and what to do instead."""


def process_rank() -> int:
    """This process among those that the launcher started, for messages alone."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def printable(text: str, limit: int | None = None) -> str:
    """Text of others on one line, without control characters (terminals obey them) and lone surrogates.

    Args:
        limit: most characters; default: all.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
    return text if text.isprintable() else "".join(map(_shown, text))


def printable_lines(text: str) -> str:
    """As `printable`, for text with line ends of ours."""
    return "\n".join(printable(line) for line in text.split("\n"))


def csv_cell(text: str) -> str:
    """Text of others in a CSV file, which spreadsheets must not take for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def markdown_text(text: str) -> str:
    """Text of others in Markdown, also in a table: neither markup nor HTML."""
    text = html.escape(printable(text), quote=False)
    return "".join(f"\\{char}" if char in MARKUP else char for char in text)


MARKUP = set("\\`*[]|#!~")


def _shown(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()


def fail(error: UserError) -> NoReturn:
    """What the entry points do with a UserError: one clear message and exit status 2."""
    rank = f" (rank {process_rank()})" if process_rank() else ""
    text = str(error)
    if "Original Traceback" in text:  # raised in a data worker: only the last line is for the user
        text = text.strip().splitlines()[-1].partition("UserError: ")[2]
    print(f"error{rank}: {printable_lines(text)}", file=sys.stderr)
    raise SystemExit(2)
