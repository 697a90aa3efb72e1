"""Errors that the user can mend, and text of others made safe for whom it is shown to."""

import difflib
import errno
import html
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class UserError(ValueError):
    """Something the user can mend: says what is wrong, where, and what to do instead."""


class SourceError(Exception):
    """What a run reads from elsewhere cannot be had any more: says what and why. It says nothing of the image that was
    wanted, and no other one must take its place."""


LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
"""What torchrun and accelerate launch put into the environment"""


def own_words(error: Exception) -> str:
    """What an error of ours says, also after it was raised in a data worker, whose whole traceback torch makes of it."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    return text.strip().splitlines()[-1].partition(f"{type(error).__name__}: ")[2]


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


def printable_lines(text: str, limit: int | None = None) -> str:
    """As `printable`, for text with line ends of ours; `limit` is for each line."""
    return "\n".join(printable(line, limit) for line in text.split("\n"))


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


LONGEST_LINE = 3000
"""Characters of a line of an error: it may quote what the user gave"""
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it readable and writable"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise `ulimit -n`, or lower data.num_workers"),
    errno.ENOMEM: "ask for more memory, or lower data.num_workers",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "it is a link to itself; name what it should lead to",
    errno.ENOTDIR: "a part of it is a file; name another place",
    errno.EISDIR: "a folder has the name of a file that is written or read here; move it away",
    errno.ENOENT: "name a place that exists",
    errno.EINVAL: "name another place",
}
"""What to do about errors of the system"""
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Those that say nothing of a file: the machine has no more of something"""


def system_error(error: Exception) -> str | None:
    """What is told of an error of the system that the user can mend; None of any other error."""
    last = (str(error).strip().splitlines() or [""])[-1]
    number = getattr(error, "errno", None)
    if (
        number is None
    ):  # lost on the way from a data worker; torch makes a RuntimeError of shortages
        by_words = ADVICE if isinstance(error, OSError) else SHORTAGES
        known = by_words if isinstance(error, OSError | RuntimeError) else ()
        number = next((n for n in known if os.strerror(n) in last), None)
    return f"{last}; {ADVICE[number]}" if number in ADVICE else None


@contextmanager
def ending_with_one_line() -> Iterator[None]:
    """What entry points do with errors that the user can mend: one clear message, exit status 2."""
    try:
        yield
    except UserError as error:
        fail(error)
    except SourceError as error:
        fail(UserError(own_words(error)))
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:  # nobody reads what is printed: `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        raise  # it was another pipe
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "embedded null" in str(error):
            fail(UserError("a file name holds a null character"))
        told = system_error(error) if isinstance(error, OSError) else None
        if told is None:
            raise
        fail(UserError(told))


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Around code of others that reads what a user brings, and raises whatever it runs into.

    Raises:
        UserError: beginning with `where`; what says nothing of the user's files passes.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's: nothing is wrong with the files
            raise
        text = " ".join(str(error).split())
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{where}: {kind}{text}") from error


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known name that a misspelt one is most like, or an empty text.

    Args:
        cutoff: how alike they must be, 0 to 1, as `difflib` measures it.
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), "")


def fail(error: UserError) -> NoReturn:
    """End the process with an error's message on one line, and exit status 2."""
    rank = f" (rank {process_rank()})" if process_rank() else ""
    print(f"error{rank}: {printable_lines(own_words(error), LONGEST_LINE)}", file=sys.stderr)
    if not rank and any(name in os.environ for name in LAUNCHED):
        print("(a traceback of the launcher may follow; it adds nothing)", file=sys.stderr)
    raise SystemExit(2)
