"""Runs beside each other: what differs in their configuration, data, software and results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from errors import printable
from evaluation.metrics import TOTALS
from report import page
from report.charts import LINES, Axes, Chart, lines, smoothed
from report.run_charts import known
from report.run_record import RunRecord, flat
from settings.keys import Config
from settings.walk import config_to_dict

PLACES = ("run.output_dir", "run.resume", "run.name", "run.allow_changes")
"""Keys that say where a run is, and nothing about it"""
DATA_FACTS = ("data_sha256", "train_images", "val_images", "labels")
MORE_RESULTS = ("F1", "threshold", "precision", "recall")
SMOOTHED = 25
"""A smoothed curve is the mean over this part of its points, if that is two or more"""
COLUMN = 22
RESULTS = 3
"""Tables of results, before those of what differs"""
ABSENT = "-"


@dataclass(frozen=True)
class Comparison:
    """Tables with one column a run."""

    names: list[str]
    """Of the runs, each another one"""
    best: list[list[str]]
    """Rows of a name and a value for each run, of its best evaluation"""
    last: list[list[str]]
    """Of its last one"""
    trained: list[list[str]]
    """Of its last logged step"""
    config: list[list[str]]
    """Of keys that differ"""
    data: list[list[str]]
    software: list[list[str]]

    def lines(self) -> Iterator[str]:
        """For the console."""
        yield from _columns("", self.names)
        for title, rows, same in self.tables():
            yield ""
            yield title if rows else same
            for name, *values in rows:
                yield from _columns(f"  {name}", values)

    def tables(self) -> Iterator[tuple[str, list[list[str]], str]]:
        """(title, rows, what is said where there are none); of a run alone its results."""
        yield "Best evaluation", self.best, "No evaluation yet"
        yield "Last evaluation", self.last, "No last evaluation"
        yield "Last logged step", self.trained, "No step is logged yet"
        if len(self.names) == 1:
            return
        yield "Configuration, as far as it differs", self.config, "The configuration is the same"
        yield "Data, as far as it differs", self.data, "The data is the same"
        yield (
            "Code and packages, as far as they differ",
            self.software,
            "Code and packages are the same",
        )


def comparison(runs: Sequence[RunRecord]) -> Comparison:
    """Of runs; where it is one alone, nothing differs."""
    data = [{key: run.facts.get(key) for key in DATA_FACTS} for run in runs]
    for facts in data:
        facts["labels"] = ", ".join(map(str, facts["labels"] or []))
    software = [
        {
            **{f"code.{k}": v for k, v in (run.facts.get("code") or {}).items()},
            **(run.facts.get("versions") or {}),
            **{key: run.facts.get(key) for key in ("device", "world_size", "backbone_sha256")},
        }
        for run in runs
    ]
    default = dict(flat(config_to_dict(Config())))
    config = [_by_argument({**default, **run.config}) for run in runs]
    config = [{k: v for k, v in own.items() if k not in PLACES} for own in config]
    return Comparison(
        _names(runs),
        *(_best(runs), _last(runs), _trained(runs)),
        *(_differing(config), _differing(data), _differing(software)),
    )


def _by_argument(config: dict[str, Any]) -> dict[str, Any]:
    """The same with each argument of the head as a key of its own."""
    args = config.pop("model.head_args", None) or {}
    return config | {f"model.head_args.{name}": value for name, value in args.items()}


def _names(runs: Sequence[RunRecord]) -> list[str]:
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.folder)
        for name, run in zip(names, runs, strict=True)
    ]


def _best(runs: Sequence[RunRecord]) -> list[list[str]]:
    best = [run.best or {} for run in runs]
    names = {name: f"eval/{name}" for name in (*TOTALS, *MORE_RESULTS)}
    names["evaluation took, s"] = "eval/seconds"
    rows = _rows(best, {"step": "step", **names})
    return [["by", *(_text(run.metric) for run in runs)], *rows] if rows else []


def _last(runs: Sequence[RunRecord]) -> list[list[str]]:
    last = [run.evaluations[-1] if run.evaluations else {} for run in runs]
    return _rows(last, {"step": "step", **{name: f"eval/{name}" for name in TOTALS}})


def _trained(runs: Sequence[RunRecord]) -> list[list[str]]:
    last = [run.steps[-1] if run.steps else {} for run in runs]
    names = {"training loss": "train/loss", "training images/s": "time/images_per_s"}
    return _rows(last, {"step": "step", **names})


def _rows(found: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> list[list[str]]:
    """Rows of the table for the rows of metrics.jsonl, one a run, as far as one of them has the key.

    Args:
        keys: of metrics.jsonl by what they are called in the table.
    """
    values = {name: [row.get(key) for row in found] for name, key in keys.items()}
    return [
        [name, *map(_text, own)]
        for name, own in values.items()
        if any(value is not None for value in own)
    ]


def _differing(tables: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = [[key, *(table.get(key, ABSENT) for table in tables)] for key in keys]
    return [
        [row[0], *map(_text, row[1:])] for row in rows if any(value != row[1] for value in row[2:])
    ]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ABSENT if value is None else printable(str(value))


def _columns(name: str, values: Sequence[str]) -> Iterator[str]:
    """A row of the console's tables; what is too long stands on lines of its own."""
    if max(map(len, values)) < COLUMN:
        yield f"{name:<34}" + "".join(f"{value:>{COLUMN}}" for value in values)
        return
    yield name
    for number, value in enumerate(values, 1):
        yield f"      {number}: {value}"


def write_comparison(file: Path, runs: Sequence[RunRecord]) -> None:
    """Write a page with the tables, and curves over each other.

    Raises:
        OSError: if it cannot be written.
    """
    found = comparison(runs)
    parts = [page.heading("Runs compared", [", ".join(found.names)])]
    tables = [
        page.section(title, page.table(["", *found.names], rows) or f"<p>{same}.</p>")
        for title, rows, same in found.tables()
    ]
    curves = page.section("Curves", page.charts(_charts(runs, found.names)))
    parts += [*tables[:RESULTS], curves, *tables[RESULTS:]]
    page.write_page(file, "Runs compared", parts)


def _charts(runs: Sequence[RunRecord], names: Sequence[str]) -> Iterator[tuple[str, Chart]]:
    losses = {}
    for name, run in zip(names, runs, strict=True):
        x, y = known(run, "train/loss")
        losses[name] = (x, smoothed(y, len(y) // SMOOTHED).tolist())
    smooth = [len(x) >= 2 * SMOOTHED for x, _ in losses.values()]
    how = ", smoothed" if all(smooth) else ", that of long runs smoothed" if any(smooth) else ""
    yield "loss", partial(lines, title=f"Training loss{how}", series=losses, x_name="step")
    rates = {name: run.series("train/lr") for name, run in zip(names, runs, strict=True)}
    yield "lr", partial(lines, title="Learning rate", series=rates, x_name="step")
    for metric in TOTALS:
        found = {
            name: run.series(f"eval/{metric}", True)
            for name, run in zip(names, runs, strict=True)
            if any(row.get(f"eval/{metric}") is not None for row in run.evaluations)
        }
        if found:
            chart = partial(lines, title=metric, series=found, x_name="step", marks=True)
            yield metric, chart
    curves = {}
    for name, run in zip(names, runs, strict=True):
        shown = run.shown_evaluation()
        if shown is not None and "mean" in shown[1]:
            curves[name] = shown[1]
    if curves:
        yield "pr", partial(_pr_chart, curves=curves, names=names)


def _pr_chart(axes: Axes, curves: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> None:
    axes.set_title("Precision and recall, IoU 0.5, mean of classes")
    for name, own in curves.items():
        colour = LINES[names.index(name) % len(LINES)]
        axes.plot(
            own["recalls"],
            own["mean"]["precision_at_recall"],
            color=colour,
            label=printable(name, 28),
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.legend(loc="lower left")
