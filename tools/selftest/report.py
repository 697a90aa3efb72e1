"""What the self-test found: lines for people, and the same as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What the answer is."""

    HOLDS = "holds"
    BROKEN = "does not hold"
    UNKNOWN = "cannot be told here"
    MEASURED = "measured"


MARKS = {
    Verdict.HOLDS: "ok  ",
    Verdict.BROKEN: "FAIL",
    Verdict.UNKNOWN: " ?  ",
    Verdict.MEASURED: "    ",
}


@dataclass(frozen=True)
class Line:
    """One question and its answer."""

    name: str
    verdict: Verdict
    found: str
    """By what it is told: figures and their bounds"""
    advice: str = ""
    """What it means and what to set, if it does not hold"""

    @staticmethod
    def of(name: str, holds: bool, found: str, advice: str) -> "Line":
        """The line of a yes or no."""
        return (
            Line(name, Verdict.HOLDS, found) if holds else Line(name, Verdict.BROKEN, found, advice)
        )

    def __str__(self) -> str:
        text = f"{MARKS[self.verdict]} {self.name:<22} {self.found}"
        if self.verdict == Verdict.UNKNOWN:
            text = f"{MARKS[self.verdict]} {self.name:<22} cannot be told here: {self.found}"
        return f"{text}\n     {'':<22} -> {self.advice}" if self.advice else text


@dataclass(frozen=True)
class Report:
    """All lines, and on what they were found."""

    machine: dict[str, Any]
    lines: Sequence[Line]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether nothing was found broken."""
        return all(line.verdict != Verdict.BROKEN for line in self.lines)

    def json(self) -> str:
        """For programs."""
        return json.dumps({**dataclasses.asdict(self), "holds": self.holds}, indent=2) + "\n"

    def summary(self) -> str:
        """The last line."""
        count = {v: sum(line.verdict == v for line in self.lines) for v in MARKS}
        return (
            f"{count[Verdict.HOLDS]} hold, {count[Verdict.BROKEN]} do not hold, {count[Verdict.UNKNOWN]} cannot be told here; "
            f"{self.seconds:.0f} s"
        )
