"""The charts of a run: losses, learning rate, metrics, and what the best evaluation says about thresholds and classes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from report.charts import (
    FAINT,
    LINES,
    MOST_NAMED,
    Axes,
    Chart,
    lines,
    matrix,
    save_charts,
    smoothed,
)
from report.run_record import RunRecord

RESULTS = "results.png"
METRIC_GROUPS = (
    ("Average precision", ("AP", "AP50", "AP75")),
    ("Segmentation", ("mIoU", "pixel_accuracy", "mean_accuracy")),
    ("Panoptic quality", ("PQ", "SQ", "RQ")),
)
MOST_IN_MATRIX = 20


def draw_results(run: RunRecord) -> None:
    """Write results.png into the run folder.

    Raises:
        OSError: if it cannot be written.
    """
    save_charts(run.folder / RESULTS, [chart for _, chart in run_charts(run)])


def run_charts(run: RunRecord) -> Iterator[tuple[str, Chart]]:
    """(name, chart) of everything that the folder has numbers for."""
    if run.steps:
        yield "loss", partial(loss_chart, run=run)
        if len(terms := _terms(run)) > 1:
            yield "terms", partial(_term_chart, run=run, terms=terms)
        rate = {"lr": run.series("train/lr")}
        yield "lr", partial(lines, title="Learning rate", series=rate, x_name="step")
    for title, names in METRIC_GROUPS:
        found = {n: run.series(f"eval/{n}", True) for n in names if run.has(f"eval/{n}")}
        if found:
            yield (
                title.split()[0].lower(),
                partial(lines, title=title, series=found, x_name="step", limits=(0, 1), marks=True),
            )
    shown = run.shown_evaluation()
    if shown is None:
        return
    row, curves = shown
    yield from evaluation_charts(curves, f"step {row['step']}")


def evaluation_charts(curves: Mapping[str, Any], when: str) -> Iterator[tuple[str, Chart]]:
    """Of one evaluation's curves.json."""
    if "thresholds" in curves:
        yield "pr", partial(pr_chart, curves=curves, when=when)
        yield "thresholds", partial(threshold_chart, curves=curves)
    yield "confusion", partial(confusion_chart, curves=curves)


def loss_chart(axes: Axes, run: RunRecord) -> None:
    """The loss of every logged step, faint, and smoothed."""
    x, y = known(run, "train/loss")
    width = max(1, len(y) // 25)
    lines(axes, "Training loss", {"loss": (x, smoothed(y, width).tolist())})
    if width > 1:
        axes.plot(x, y, color=LINES[0], alpha=0.3, linewidth=0.8, zorder=1)
    axes.set_xlabel("step")


def known(run: RunRecord, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a number of steps, without those that had none (which was not finite), and without a last one
    that is the mean of fewer steps than the others: it jumps where nothing has."""
    rows = zip(*run.series(key), strict=True)
    numbers = [
        (step, float(value))
        for step, value in rows
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    steps = [step for step, _ in numbers]
    if len(steps) > 2 and steps[-1] - steps[-2] < steps[-2] - steps[-3]:
        del steps[-1], numbers[-1]
    return steps, [value for _, value in numbers]


def _terms(run: RunRecord) -> list[str]:
    """Keys of the loss's terms at the last layer; those of denoising and the like after what they are made of."""
    keys = {key for row in run.steps for key in row if key.startswith("train/loss_")}
    last = sorted(key for key in keys if not key.rsplit("_", 1)[-1].isdigit())
    parts = {key for key in last if any(key.startswith(f"{other}_") for other in last)}
    return sorted(last, key=lambda key: (key in parts, key))[:MOST_NAMED]


def _term_chart(axes: Axes, run: RunRecord, terms: Sequence[str]) -> None:
    found: dict[str, tuple[Sequence[float], Sequence[float | None]]] = {}
    for key in terms:
        x, y = known(run, key)
        found[key.removeprefix("train/loss_")] = (x, smoothed(y, len(y) // 25).tolist())
    lines(axes, "Terms of the loss, last layer", found, x_name="step")


def pr_chart(axes: Axes, curves: Mapping[str, Any], when: str) -> None:
    """Precision by recall: of all classes thin, their mean thick."""
    recalls = curves["recalls"]
    classes = {name: rows["precision_at_recall"] for name, rows in curves["per_class"].items()}
    average = curves["mean"]["precision_at_recall"]
    axes.set_title(f"Precision and recall, IoU 0.5, {when}")
    if len(classes) > 1:
        for place, (name, row) in enumerate(classes.items()):
            few = len(classes) <= len(LINES) - 1
            colour = LINES[1 + place] if few else FAINT
            axes.plot(
                recalls, row, color=colour, linewidth=0.9, alpha=0.8, label=name if few else None
            )
    area = float(np.mean(average))
    axes.plot(recalls, average, color=LINES[0], linewidth=2.2, label=f"mean, AP50 {area:.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.legend(loc="lower left")


def threshold_chart(axes: Axes, curves: Mapping[str, Any]) -> None:
    """Precision, recall and F1 by threshold, means over classes, with the recommended one."""
    found = {n: (curves["thresholds"], curves["mean"][n]) for n in ("precision", "recall", "F1")}
    best = (
        f", best F1 {curves['F1']:.2f} at {curves['threshold']:.2f}"
        if "threshold" in curves
        else ""
    )
    lines(axes, f"By threshold{best}", found, x_name="lowest score, IoU 0.5", limits=(0, 1.02))
    axes.set_xlim(0, 1)
    if best:
        axes.axvline(curves["threshold"], color=FAINT, linestyle="--", linewidth=1)


def confusion_chart(axes: Axes, curves: Mapping[str, Any]) -> None:
    """Of many classes those with most mistakes, the others together."""
    counts, names = np.array(curves["confusion"]), list(curves["classes"])
    if (
        not counts[-1].any() and not counts[:, -1].any() and len(names) > 1
    ):  # where every pixel has a class
        counts, names = counts[:-1, :-1], names[:-1]
    if len(names) > MOST_IN_MATRIX:
        counts, names = _most_confused(counts, names)
    title = "Confusion of pixels" if "thresholds" not in curves else "Confusion"
    matrix(axes, title, counts, names)


def _most_confused(counts: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Rows and columns of the classes with most mistakes, of all others together, and of nothing."""
    last = len(names) - 1
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    mistakes = (wrong.sum(0) + wrong.sum(1))[:last]
    kept = np.sort(np.argsort(-mistakes, kind="stable")[: MOST_IN_MATRIX - 2])
    group = np.full(len(names), len(kept))
    group[kept] = np.arange(len(kept))
    group[last] = len(kept) + 1
    table = np.zeros((len(kept) + 2, len(kept) + 2), counts.dtype)
    np.add.at(table, (group[:, None], group[None]), counts)
    return table, [*(names[c] for c in kept), f"{last - len(kept)} others", names[last]]
