"""What a run folder says about its run: configuration, facts, numbers of every step and evaluation."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UserError
from settings.plain_yaml import load_plain
from settings.tasks import METRICS


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder has it."""

    folder: Path
    config: Mapping[str, Any]
    """Values by dotted key"""
    facts: Mapping[str, Any]
    """As in run.json"""
    steps: list[dict[str, Any]]
    """Rows of metrics.jsonl with losses, by step"""
    evaluations: list[dict[str, Any]]
    """Those with metrics"""

    @property
    def name(self) -> str:
        """Of the run, for people."""
        return str(self.config.get("run.name") or self.folder.resolve().name)

    @property
    def metric(self) -> str:
        """That decides which evaluation is the best."""
        return str(self.config.get("eval.metric") or METRICS["detection"][0])

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best evaluation; of equal ones the first."""
        key = f"eval/{self.metric}"
        known = [row for row in self.evaluations if isinstance(row.get(key), int | float)]
        return max(known, key=lambda row: float(row[key])) if known else None

    def evaluation_folder(self, row: Mapping[str, Any]) -> Path:
        """With the files of an evaluation."""
        return self.folder / "eval" / f"step-{row['step']:06d}"

    def shown_evaluation(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Row and curves of the best evaluation whose files are there, else of the last one with files."""
        rows = [self.best, *reversed(self.evaluations)]
        for row in [row for row in rows if row is not None]:
            curves = _json(self.evaluation_folder(row) / "curves.json")
            if isinstance(curves, dict):
                return row, curves
        return None

    def series(self, key: str, evaluations: bool = False) -> tuple[list[int], list[float | None]]:
        """Steps and values of a number."""
        rows = self.evaluations if evaluations else self.steps
        rows = [row for row in rows if key in row]
        return [row["step"] for row in rows], [row[key] for row in rows]

    def has(self, key: str) -> bool:
        """Whether a number was ever there."""
        return any(row.get(key) is not None for row in (*self.steps, *self.evaluations))


class NoResultsError(UserError):
    """A run folder in which no number is written yet."""


def read_run(folder: Path) -> RunRecord:
    """
    Raises:
        NoResultsError: if it is the folder of a run that has not got to its first numbers.
        UserError: if it is no run folder.
    """
    try:
        config = load_plain(folder / "config.yaml")
        facts = json.loads((folder / "run.json").read_bytes())
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except FileNotFoundError as error:
        begun = any((folder / name).is_file() for name in ("run.json", "config.yaml"))
        missing = Path(str(error.filename)).name
        if begun:
            raise NoResultsError(f"{folder}: has no results yet ({missing} is missing)") from error
        raise UserError(
            f"{folder}: is no run folder with results ({missing} is missing)"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: cannot be read as a run folder: {error}") from error
    if not isinstance(config, dict) or not isinstance(facts, dict):
        raise UserError(f"{folder}: config.yaml or run.json is not what a run writes")
    rows = [row for row in map(_row, lines) if row is not None]
    return RunRecord(
        folder,
        dict(flat(config)),
        facts,
        [row for row in rows if "train/loss" in row],
        [row for row in rows if any(key.startswith("eval/") for key in row)],
    )


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for what a kill has torn."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and type(values.get("step")) is int else None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a configuration by dotted key."""
    for key, value in values.items():
        if isinstance(value, dict) and key != "head_args":
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
