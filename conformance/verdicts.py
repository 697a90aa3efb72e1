"""What an experiment says of a framework."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conformance.launch import Seen

State = Literal["holds", "does not hold", "not offered", "not measured"]


@dataclass(frozen=True)
class Verdict:
    state: State
    figure: str
    """What was measured, or why not"""


class NotMeasured(Exception):  # noqa: N818 (nothing is wrong)
    """A run that the experiment builds upon did not come to its end."""


def judged(good: bool, figure: str) -> Verdict:
    return Verdict("holds" if good else "does not hold", figure)


def finished(seen: Seen, num_steps: int | None = None) -> Seen:
    """The run, if it has ended well, or has taken as many steps before something else failed."""
    if not seen.together:
        raise NotMeasured("the processes have not trained one model together")
    if num_steps is not None and len(seen.steps) >= num_steps:
        return seen
    if seen.status != 0:
        raise NotMeasured(f"the run ended with {seen.status}: {seen.says()}")
    if num_steps is not None:
        raise NotMeasured(f"{len(seen.steps)} of {num_steps} steps were seen")
    return seen


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference."""
    pairs = zip(one, other, strict=True)
    return max((abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs), default=0.0)


def column(seen: Seen, name: str, start: int = 0, end: int | None = None) -> list:
    return [step[name] for step in seen.steps[start:end]]
