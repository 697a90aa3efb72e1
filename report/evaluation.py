"""What an evaluation leaves in the run folder, and its lines on the console."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from data.coco_format import coco_results
from data.dataset import Data
from data.objects import Objects
from data.taxonomy import Taxonomy
from disk import flush_all, whole_folder
from errors import UserError, csv_cell, printable
from evaluation.metrics import TOTALS
from evaluation.mistakes import Analysis
from evaluation.predictions import Predictions
from report.drawing import beside, draw_objects, legend_of, save_grid, tags_of
from report.mistakes import CONFUSION, CURVES, WORST, WORST_PICTURE, write_mistakes
from report.thumbnails import thumbnail, title_of, true_parts
from settings.keys import EvalConfig
from settings.tasks import EVERY_PIXEL

REPORT_FILES = {
    *("metrics.json", "per_class.csv", "predictions.json", "predictions.png"),
    *(CURVES, CONFUSION, WORST, WORST_PICTURE),
}
COUNTED = ("boxes", "pixels", "segments")
"""Of a class, what there is of it, beside how well it is found"""
TRUTH_AND_FOUND = "(of each pair: labels on the left, predictions on the right)"
NUM_DRAWN = 12
RESULTS_AT_ONCE = 10_000


def write_report(
    folder: Path,
    metrics: dict[str, Any],
    predictions: Predictions,
    data: Data,
    cfg: EvalConfig,
    analysis: Analysis,
) -> None:
    """metrics.json, per_class.csv, predictions.json (COCO results), predictions.png, and what `report.mistakes`
    writes.

    The folder appears when all of them are whole; an older one is replaced then.

    Raises:
        OSError: if they cannot be written.
    """
    with whole_folder(folder) as temporary:
        (temporary / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        with (temporary / "per_class.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            columns = next(iter(metrics["per_class"].values()))
            writer.writerow(["class", *columns])
            for name, row in metrics["per_class"].items():
                writer.writerow([csv_cell(name), *row.values()])
        image_ids = [record.image_id for record in data.val.records]
        with (temporary / "predictions.json").open("w") as file:
            _write_results(file, predictions.objects, image_ids, data.taxonomy)
        threshold = cfg.score_threshold if analysis.threshold is None else analysis.score
        draw_fixed_images(temporary / "predictions.png", predictions, data, threshold)
        write_mistakes(temporary, analysis, predictions, data)
        flush_all(temporary)


def _write_results(
    file: TextIO, objects: Objects, image_ids: Sequence[int | str], taxonomy: Taxonomy
) -> None:
    """A result list, written piece by piece: millions of boxes as dictionaries take gigabytes."""
    file.write("[")
    for start in range(0, len(objects), RESULTS_AT_ONCE):
        part = objects.take(slice(start, start + RESULTS_AT_ONCE))
        text = json.dumps(coco_results(part, image_ids, taxonomy.category_ids))
        file.write((", " if start else "") + text[1:-1])
    file.write("]")


def refuse_foreign(folder: Path) -> None:
    """
    Raises:
        UserError: if something is there that a report would replace, and that is no report.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file")
    foreign = sorted({p.name for p in folder.iterdir()} - REPORT_FILES) if folder.is_dir() else []
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(place, os.W_OK):
        raise UserError(f"{folder}: cannot be written")
    if foreign:
        raise UserError(
            f"{folder}: holds {printable(foreign[0], 100)}, which is no part of an earlier report and would "
            "be lost; choose an empty or absent folder"
        )


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """The metrics of an evaluation whose files are whole; None if there is none."""
    try:
        metrics = json.loads((folder / "metrics.json").read_bytes())
        return metrics if isinstance(metrics["per_class"], dict) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def draw_fixed_images(file: Path, predictions: Predictions, data: Data, threshold: float) -> None:
    """The same images after every evaluation: truth at the left, predictions beside it, a legend of classes."""
    images: list[Image.Image] = []
    titles: list[str] = []
    parts: list[Objects] = []
    split, names = data.val, data.taxonomy.names
    missing = set(predictions.missing.tolist())
    for index in [i for i in range(len(split)) if i not in missing][:NUM_DRAWN]:
        record = split.records[index]
        found = predictions.objects.of_image(index)
        truth = record.objects
        if data.labels in EVERY_PIXEL:
            truth = true_parts(record, data)
        else:
            found = found.take(found.scores >= threshold)
        pixels, x, y = thumbnail(split, index)
        both = [truth.scaled(x, y), found.scaled(x, y)]
        images.append(
            beside([draw_objects(pixels, own, tags_of(own, names, data.labels)) for own in both])
        )
        titles.append(title_of(split, index))
        parts += both
    if images:
        note = TRUTH_AND_FOUND
        if data.labels not in EVERY_PIXEL:
            note = f"{note[:-1]} from a score of {threshold:.2f} on)"
        save_grid(images, file, 3, legend=legend_of(names, parts), note=note, titles=titles)


def metric_lines(metrics: dict[str, Any], max_classes: int = 20) -> Iterator[str]:
    """One line of totals, then one per class (the worst ones, if there are many)."""
    totals = [name for name in TOTALS if name in metrics]
    yield "  ".join(f"{name} {_text(metrics[name])}" for name in totals)
    if "threshold" in metrics:
        several = len(metrics["per_class"]) > 1
        own = " = mean of the classes' own F1" if several else ""  # which may be below both means
        means = ("their mean precision", "mean recall") if several else ("precision", "recall")
        yield (
            f"at IoU 0.5 best F1 {metrics['F1']:.3f}{own} ({means[0]} {metrics['precision']:.3f}, {means[1]} "
            f"{metrics['recall']:.3f}) with scores from {metrics['threshold']:.2f} on"
        )
    for prefix, what in (("box_", "boxes around masks"), ("flat_", "flat map of pipeline()")):
        if f"{prefix}AP" in metrics:
            values = "  ".join(f"{name} {_text(metrics[prefix + name])}" for name in totals)
            yield f"{what}: {values}"
    if metrics["missing_images"]:
        yield (
            f"  {metrics['missing_images']} validation image(s) cannot be read; what is on them counts as "
            "missed"
        )
    first = next(iter(next(iter(metrics["per_class"].values()))))
    rows = sorted(metrics["per_class"].items(), key=lambda row: row[1][first] or 0.0)
    if len(rows) > 1:
        for name, row in rows[:max_classes]:
            values = "  ".join(
                f"{value:,} {key}" if key in COUNTED else f"{key} {_text(value)}"
                for key, value in row.items()
            )
            yield f"  {printable(name, 60):<24} {values}"


def _text(value: float | None) -> str:
    return "  -  " if value is None else f"{value:.3f}"
