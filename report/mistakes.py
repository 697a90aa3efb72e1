"""What an evaluation leaves about its mistakes: curves, confusion matrix, and the worst images."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.dataset import Data
from data.objects import Objects
from errors import csv_cell
from evaluation.curves import RECALLS, THRESHOLDS, Curves, mean
from evaluation.matching import CONFUSED, FALSE_ALARM, LOOSE, SAME_IOU
from evaluation.mistakes import MISSED, Analysis, BadImage, row_text, words
from evaluation.predictions import Predictions
from report.drawing import MOST_TAGS, beside, draw_objects, draw_outlines, legend_of, save_grid
from report.thumbnails import thumbnail, title_of, true_parts
from settings.tasks import EVERY_PIXEL

CURVES, CONFUSION, WORST, WORST_PICTURE = "curves.json", "confusion.csv", "worst.json", "worst.png"
NOTHING = "(nothing)"
"""Row and column of the confusion matrix for what is not there, and what is not found"""
NUM_WORST_DRAWN = 12
KINDS: dict[int, tuple[str, tuple[int, int, int]]] = {
    MISSED: ("missed", (255, 60, 60)),
    FALSE_ALARM: ("false alarm", (255, 170, 0)),
    LOOSE: ("loose", (80, 160, 255)),
    CONFUSED: ("wrong class", (225, 90, 255)),
}
"""What mistakes are called in drawings, and their colours"""
RIGHT = (120, 200, 120)
"""Of what was found"""


def write_mistakes(folder: Path, analysis: Analysis, predictions: Predictions, data: Data) -> None:
    """curves.json, confusion.csv, worst.json and worst.png, as far as there is something to say.

    Raises:
        OSError: if they cannot be written.
    """
    names = data.taxonomy.names
    (folder / CURVES).write_text(json.dumps(curves_json(analysis, names)) + "\n")
    with (folder / CONFUSION).open("w", newline="") as file:
        writer = csv.writer(file)
        own = [*map(csv_cell, names), NOTHING]
        writer.writerow(["true class / predicted class", *own])
        for name, row in zip(own, analysis.confusion.tolist(), strict=True):
            writer.writerow([name, *row])
    pixels, found, truth = data.labels in EVERY_PIXEL, predictions.objects, data.val.objects
    rows = [
        {
            "image": data.val.records[bad.place].where,
            "image_id": data.val.records[bad.place].image_id,
            "mistakes": round(bad.mistakes, 4),
            "what": words(bad, found, truth, names, pixels),
        }
        for bad in analysis.worst
    ]
    (folder / WORST).write_text(json.dumps(rows, indent=1) + "\n")
    draw_worst(folder / WORST_PICTURE, analysis, predictions, data)


def curves_json(analysis: Analysis, names: Sequence[str]) -> dict[str, Any]:
    """What charts are drawn from."""
    content: dict[str, Any] = {
        "classes": [*names, NOTHING],
        "confusion": analysis.confusion.tolist(),
    }
    found = analysis.curves
    if found is None:
        return content
    tables = _tables(found)
    content |= {"iou": SAME_IOU, **analysis.totals(), "thresholds": THRESHOLDS.tolist()}
    content["recalls"] = RECALLS.round(2).tolist()
    averaged = {**tables, "precision": found.counted_precision}
    content["mean"] = {name: _numbers(mean(rows)) for name, rows in averaged.items()}
    content["per_class"] = {
        name: {what: _numbers(rows[c]) for what, rows in tables.items()}
        for c, name in enumerate(names)
        if found.objects[c]
    }
    return content


def _tables(found: Curves) -> dict[str, np.ndarray]:
    return {
        "precision": found.precision,
        "recall": found.recall,
        "F1": found.f1,
        "precision_at_recall": found.precision_at_recall,
    }


def _numbers(row: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(value, 4) for value in row.tolist()]


def draw_worst(file: Path, analysis: Analysis, predictions: Predictions, data: Data) -> None:
    """The images with most mistakes, each mistake with a tag; nothing if there are none that can be read."""
    missing = set(predictions.missing.tolist())
    chosen = [bad for bad in analysis.worst if bad.place not in missing][:NUM_WORST_DRAWN]
    if not chosen:
        return
    if data.labels not in EVERY_PIXEL:
        images = [_with_mistakes(bad, analysis, predictions.objects, data) for bad in chosen]
        titles = [f"{bad.mistakes:.0f} wrong: {title_of(data.val, bad.place)}" for bad in chosen]
        colours = {number: colour for number, (_, colour) in enumerate(KINDS.values())}
        legend = {number: name for number, (name, _) in enumerate(KINDS.values())}
        note = f"found: thin and green. Of scores from {analysis.score:.2f} on"
        save_grid(
            images, file, titles=titles, legend=legend, note=note, colours=colours.__getitem__
        )
        return
    images, parts = [], []
    for bad in chosen:
        pixels, x, y = thumbnail(data.val, bad.place)
        both = [
            true_parts(data.val.records[bad.place], data).scaled(x, y),
            predictions.objects.of_image(bad.place).scaled(x, y),
        ]
        images.append(beside([draw_objects(pixels, objects) for objects in both]))
        parts += both
    titles = [f"{bad.mistakes:.0%} wrong: {title_of(data.val, bad.place)}" for bad in chosen]
    legend = legend_of(data.taxonomy.names, parts)
    save_grid(images, file, 2, titles=titles, legend=legend, note="(labels left, found right)")


def _with_mistakes(bad: BadImage, analysis: Analysis, found: Objects, data: Data) -> Image.Image:
    """An image with its mistakes; what is right is thin. Where there are many, frequent kinds have their colour only."""
    truth, names = data.val.objects, data.taxonomy.names
    pixels, x, y = thumbnail(data.val, bad.place)
    seen = analysis.outcome
    assert seen is not None
    right = seen.found[(found.image[seen.found] == bad.place) & (seen.kind == 0)]
    outlines = [(found.take(right), [RIGHT] * len(right), [""] * len(right))]
    for kind, (_, colour) in KINDS.items():
        rows = bad.rows[bad.rows[:, 0] == kind]
        table, column = (truth, 2) if kind == MISSED else (found, 1)
        told = len(bad.rows) <= MOST_TAGS or len(rows) <= MOST_TAGS // 2
        texts = [row_text(row, found, truth, names) if told else "" for row in rows]
        outlines.append((table.take(rows[:, column]), [colour] * len(rows), texts))
    scaled = [(objects.scaled(x, y), colours, texts) for objects, colours, texts in outlines]
    return draw_outlines(pixels, scaled)
