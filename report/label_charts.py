"""Charts of what is labelled: how much of each class, how large, of which shape, and where."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from data.check.statistics import LARGE_PX2, SMALL_PX2, resized_boxes
from data.dataset import Data
from data.schema import Split
from errors import printable
from report.charts import FAINT, LINES, Axes, Chart, save_charts
from settings.keys import ImageSizeConfig
from settings.tasks import EVERY_PIXEL

LABELS_PICTURE = "labels.png"
MOST_CLASSES = 14
CENTRE_CELLS = 32
HEADROOM = 1.12
"""Above bars, for words"""


def draw_labels(file: Path, data: Data, size: ImageSizeConfig) -> None:
    """Write the charts as one PNG.

    Raises:
        OSError: if it cannot be written.
    """
    save_charts(file, [chart for _, chart in label_charts(data, size)])


def label_charts(data: Data, size: ImageSizeConfig) -> Iterator[tuple[str, Chart]]:
    """(name, chart) for the training and validation split.

    Args:
        size: of images as the model gets them.
    """
    splits = (
        {"train": data.train} if data.train is data.val else {"train": data.train, "val": data.val}
    )
    whole = data.labels in EVERY_PIXEL
    names = data.taxonomy.names
    counts = {name: _counts(split, len(names), whole) for name, split in splits.items()}
    title = "Images with the class" if whole else "Objects by class"
    yield "classes", partial(_class_chart, title=title, counts=counts, names=names)
    boxes = {name: resized_boxes(split, size)[:, :2].clip(1e-6) for name, split in splits.items()}
    sides = {name: np.sqrt(own.prod(1)) for name, own in boxes.items()}
    yield "sides", partial(_side_chart, sides=sides, longest=size.longest_px)
    shapes = {name: np.log2(own[:, 0] / own[:, 1]) for name, own in boxes.items()}
    yield "shapes", partial(_shape_chart, shapes=shapes)
    yield "centres", partial(_centre_chart, split=data.train)
    yield "widths", partial(_width_chart, boxes=boxes["train"])
    numbers = {name: split.table.counts for name, split in splits.items()}
    yield "numbers", partial(_number_chart, numbers=numbers)


def _counts(split: Split, num: int, images: bool) -> np.ndarray:
    """int64 [C]: objects of each class, or images with it."""
    objects = split.objects
    if not images:
        return np.bincount(objects.classes, minlength=num)
    pairs = np.unique(np.column_stack([objects.image, objects.classes]), axis=0)
    return np.bincount(pairs[:, 1], minlength=num)


def _class_chart(
    axes: Axes, title: str, counts: Mapping[str, np.ndarray], names: tuple[str, ...]
) -> None:
    order = np.argsort(-counts["train"], kind="stable")[:MOST_CLASSES]
    few = f", {len(order)} of {len(names)}" if len(names) > len(order) else ""
    axes.set_title(f"{title}{few}")
    thick = 0.8 / len(counts)
    for place, (name, own) in enumerate(counts.items()):
        at = np.arange(len(order)) + place * thick
        bars = axes.barh(at, own[order], thick, color=LINES[place], label=name)
        axes.bar_label(bars, [f"{n:,}" for n in own[order]], fontsize=6.5, padding=2)
    axes.set_yticks(
        np.arange(len(order)) + 0.4 - thick / 2, [printable(names[c], 22) for c in order]
    )
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
    _legend(axes, counts)


def _side_chart(axes: Axes, sides: Mapping[str, np.ndarray], longest: int) -> None:
    axes.set_title(f"Side of an object, px, after the resize to {longest}")
    edges = np.exp2(np.arange(0, np.log2(longest) + 0.51, 0.5))
    _shares(axes, sides, edges)
    axes.set_xscale("log", base=2)
    ticks = [int(edge) for edge in edges[::2]]
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    axes.set_ylim(0, HEADROOM * axes.get_ylim()[1])
    for area, text in ((SMALL_PX2, "small "), (LARGE_PX2, "medium ")):
        if np.sqrt(area) < edges[-1]:
            axes.axvline(np.sqrt(area), color=FAINT, linestyle="--", linewidth=1)
            axes.text(
                np.sqrt(area),
                0.985,
                text,
                ha="right",
                va="top",
                fontsize=7,
                transform=axes.get_xaxis_transform(),
            )
    _legend(axes, sides)


def _shape_chart(axes: Axes, shapes: Mapping[str, np.ndarray]) -> None:
    axes.set_title("Width : height")
    _shares(axes, shapes, np.arange(-4, 4.01, 0.25))
    ticks = [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    axes.set_xticks(ticks, [f"1:{2**-t}" if t < 0 else f"{2**t}:1" for t in ticks])
    _legend(axes, shapes)


def _centre_chart(axes: Axes, split: Split) -> None:
    axes.set_title("Centres of objects in their images, train")
    objects, sizes = split.objects, split.table.sizes
    if len(objects):
        extent = sizes[objects.image][:, ::-1]
        centres = (objects.boxes[:, :2] + objects.boxes[:, 2:] / 2) / extent
        column, row = (centres.clip(0, 1 - 1e-9) * CENTRE_CELLS).astype(np.int64).T
        cells = np.bincount(row * CENTRE_CELLS + column, minlength=CENTRE_CELLS**2)
        cells = cells.reshape(CENTRE_CELLS, CENTRE_CELLS)
        colours = np.zeros((CENTRE_CELLS, CENTRE_CELLS, 4))
        colours[..., :3] = np.array([0x2F, 0x7E, 0xD8]) / 255
        colours[..., 3] = np.sqrt(cells / cells.max())
        edges = np.linspace(0, 1, CENTRE_CELLS + 1)
        axes.pcolormesh(edges, edges, colours)
    axes.set(
        xlim=(0, 1), ylim=(1, 0), xlabel="from the left", ylabel="from the top", aspect="equal"
    )
    axes.grid(visible=False)


def _width_chart(axes: Axes, boxes: np.ndarray) -> None:
    """Of at most some thousand objects, always the same ones."""
    axes.set_title("Width and height, px after the resize, train")
    if len(boxes) > 3000:
        boxes = boxes[np.random.default_rng(0).permutation(len(boxes))[:3000]]
    if len(boxes):
        axes.plot(
            boxes[:, 0], boxes[:, 1], ".", color=LINES[0], markersize=3, alpha=0.4, rasterized=True
        )
    axes.set(xlabel="width", ylabel="height", xlim=(0, None), ylim=(0, None))


def _number_chart(axes: Axes, numbers: Mapping[str, np.ndarray]) -> None:
    axes.set_title("Objects in an image")
    most = max((int(own.max(initial=0)) for own in numbers.values()), default=0)
    step = max(1, -(-(most + 1) // 30))
    _shares(axes, numbers, np.arange(0, most + 2 * step, step) - 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(axes, numbers)


def _shares(axes: Axes, values: Mapping[str, np.ndarray], edges: np.ndarray) -> None:
    """Part of the values of each split between each two edges; what lies beyond counts to the last."""
    for place, own in enumerate(values.values()):
        inside = own.clip(edges[0], np.nextafter(edges[-1], edges[0]))
        heights = np.histogram(inside, edges)[0] / max(1, len(own))
        axes.stairs(
            100 * heights, edges, color=LINES[place], fill=place == 0, alpha=1 - 0.4 * (place == 0)
        )
    axes.set_ylabel("%")


def _legend(axes: Axes, splits: Mapping[str, np.ndarray]) -> None:
    if len(splits) > 1:
        from matplotlib.patches import Patch

        axes.legend(handles=[Patch(color=LINES[n], label=name) for n, name in enumerate(splits)])
