"""Charts by matplotlib, as PNG files and as SVG inside of a page.

matplotlib is imported where a chart is made, never before: it takes longer than everything else that is imported for
a drawing, and a training process makes none.
"""

import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from disk import write_whole
from errors import printable

Axes = Any
"""Of matplotlib"""
Chart = Callable[[Axes], None]
"""Draws on axes"""
INK, PAPER, FAINT = "#3a3f46", "#ffffff", "#8a9099"
LINES = ("#2f7ed8", "#e8743b", "#1ca67a", "#a05fd0", "#d64f79", "#c79a00", "#13a4b4", "#7d6b5d")
"""That can be told from each other on white and on black"""
CHART_IN = (4.1, 2.9)
DPI = 96
MOST_NAMED = 6
"""Lines of classes that are told apart in a legend"""


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of its cache
    look: dict[Any, Any] = {
        "font.size": 8.5,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.5,
        "legend.frameon": False,
        "legend.fontsize": 7.5,
        "svg.fonttype": "none",
        "figure.constrained_layout.use": True,
        "text.parse_math": False,  # names of classes and files are no formulas
    }
    colours = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    look |= dict.fromkeys((*colours, "grid.color"), INK)
    with mpl.rc_context(look):
        yield


def save_charts(file: Path, charts: Sequence[Chart], columns: int = 3) -> None:
    """Write charts as one PNG, row by row; nothing if there are none.

    Raises:
        OSError: if it cannot be written.
    """
    if not charts:
        return
    with _style():
        from matplotlib.figure import Figure

        columns = min(columns, len(charts))
        rows = -(-len(charts) // columns)
        figure = Figure((CHART_IN[0] * columns, CHART_IN[1] * rows), dpi=DPI, facecolor=PAPER)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for place, own in enumerate(axes):
            if place < len(charts):
                charts[place](own)
            else:
                own.set_axis_off()
        content = io.BytesIO()
        figure.savefig(content, format="png")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content.getvalue())


def svg_of(chart: Chart, name: str) -> str:
    """A chart as an SVG element that takes the colour of the text around it.

    Args:
        name: which no other chart of the page has; what its parts are called begins with it.
    """
    with _style():
        import matplotlib as mpl
        from matplotlib.figure import Figure

        mpl.rcParams["svg.hashsalt"] = name
        mpl.rcParams["svg.id"] = name
        figure = Figure(CHART_IN)
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        chart(axes)
        content = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", metadata=nothing)
    text = content.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(
        r'\bid="((?:figure|axes|patch|line2d|matplotlib|text|xtick|ytick|legend|QuadMesh)[\w.]*)"',
        "",
        text,
    )
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace(INK, "currentColor")


def lines(
    axes: Axes,
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float | None]]],
    *,
    x_name: str = "",
    limits: tuple[float, float] | None = None,
    marks: bool = False,
) -> None:
    """Lines by name, of (x, y); what is None is left out.

    Args:
        limits: of y. marks: show each point as well.
    """
    axes.set_title(printable(title))
    axes.set_xlabel(x_name)
    if x_name == "step":
        axes.xaxis.get_major_locator().set_params(integer=True)
    drawn, highest = 0, 0.0
    for number, (name, (x, y)) in enumerate(series.items()):
        values = np.array([np.nan if v is None else v for v in y], dtype=np.float64)
        if not np.isfinite(values).any():
            continue
        highest = max(highest, float(np.nanmax(np.abs(values))))
        named = drawn < MOST_NAMED or len(series) <= MOST_NAMED
        colour = LINES[number % len(LINES)] if named else FAINT
        dot = "o" if marks or np.isfinite(values).sum() == 1 else None
        label = printable(name, 28) if named else None
        axes.plot(list(x), values, color=colour, label=label, marker=dot, markersize=3.2)
        drawn += 1
    if limits is None and drawn and not highest:
        limits = (0, 1)  # zeros alone have no scale, and would stand on one from -0.04 to 0.04
    if limits is not None:
        axes.set_ylim(*limits)
    if drawn > 1 or (drawn and len(series) > 1):
        axes.legend(loc="best")
    if not drawn:
        axes.text(0.5, 0.5, "no numbers yet", ha="center", va="center", transform=axes.transAxes)


def smoothed(values: Sequence[float], width: int) -> np.ndarray:
    """Mean over `width` values around each, fewer at the ends."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return array
    width = max(1, min(width, len(array)))
    kernel = np.ones(width)
    known = np.convolve(np.ones(len(array)), kernel, mode="same")
    return np.convolve(array, kernel, mode="same") / known


def matrix(axes: Axes, title: str, counts: np.ndarray, names: Sequence[str]) -> None:
    """A confusion matrix: shares as shades, of what is true in a row, and in the last one, which may be nothing, of what is
    predicted; with the counts where there is room."""
    total = np.repeat(counts.sum(1, keepdims=True), len(names), axis=1)
    total[-1] = np.maximum(counts.sum(0), 1)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    num = len(names)
    cells = np.zeros((num, num, 4))
    cells[..., :3] = np.array([0x2F, 0x7E, 0xD8]) / 255
    cells[..., 3] = 0.85 * shares
    axes.pcolormesh(np.arange(num + 1), np.arange(num + 1), cells)
    axes.set_title(title)
    axes.grid(visible=False)
    axes.invert_yaxis()
    small = 8 if num <= 6 else 6 if num <= 12 else 5
    told = [printable(name, 16) for name in names]
    axes.set_xticks(np.arange(num) + 0.5, told, rotation=0 if num <= 3 else 90, fontsize=small)
    axes.set_yticks(np.arange(num) + 0.5, told, fontsize=small)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in zip(*np.nonzero(counts), strict=True) if num <= 12 else ():
        text = short_number(int(counts[row, column]))
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=small)


def short_number(number: int) -> str:
    """`7`, `12k`, `3.4M`."""
    for unit, name in ((1_000_000, "M"), (10_000, "k")):
        if number >= unit:
            value = number / (1000 if name == "k" else unit)
            return f"{value:.0f}{name}" if value >= 10 else f"{value:.1f}{name}"
    return str(number)
