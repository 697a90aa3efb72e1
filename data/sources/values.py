"""Values of annotation files: each is what it should be, or None."""

from collections.abc import Hashable, Sequence
from typing import Any

from data.findings import Findings
from data.images.headers import MAX_PIXELS

MAX_INT = 2**62


def as_int(value: Any) -> int | None:
    """An integer given as a number or as digits; None for anything else."""
    if type(value) is int:  # nearly always
        return value if -MAX_INT < value < MAX_INT else None
    if isinstance(value, str) and len(value) < 20:
        digits = value.strip()
        value = int(digits) if digits.removeprefix("-").isdecimal() else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INT
    return value if fits else None


def as_flag(value: Any) -> bool | None:
    """Whether, given as 0, 1, 0.0, 1.0 (a table's column with gaps), false or true; None for anything else,
    also for "1"."""
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def as_float(value: Any) -> float | None:
    """A number, which may be infinite or no number (NaN); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def as_floats(values: Any, count: int) -> list[float] | None:
    """`count` numbers; None for anything else."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        return None
    if all(type(value) is float for value in values):  # nearly always
        return list(values)
    floats = [as_float(value) for value in values]
    return None if None in floats else floats  # type: ignore[return-value]


def as_id(value: Any) -> int | str | None:
    """An image id; None for what is none."""
    return value if isinstance(value, str) and value else as_int(value)


def as_size(width: Any, height: Any) -> tuple[int, int] | None:
    """An annotated (width, height), px; None unless it can be an image's."""
    w, h = as_int(width), as_int(height)
    if w is None or h is None or w <= 0 or h <= 0 or w * h > MAX_PIXELS:
        return None
    return w, h


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) differ in scale alone, up to rounding."""
    if min(*one, *other) <= 0:
        return False
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(*one, *other)


def short(value: Any) -> str:
    """What a value is, in a few words; deep or long values are not printed."""
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < MAX_INT else "a huge integer"
    return text if len(text) <= 60 else f"{text[:60]}..."


class Unique:
    """Ids that must not repeat."""

    def __init__(self, kind: str, findings: Findings):
        self.kind = kind
        self.findings = findings
        self.seen: set[Hashable] = set()

    def is_new(self, value: Hashable, where: str) -> bool:
        """Whether `value` comes for the first time; if not, there is a finding at `where`."""
        if value in self.seen:
            self.findings.add(self.kind, where, f"id {short(value)} was used before")
            return False
        self.seen.add(value)
        return True


def numbers_in(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers, however many; None if one is none."""
    return as_floats(list(values), len(values))
