"""What an evaluation leaves in the run folder, and its lines on the console."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from data.canvas import resized_size
from data.coco_format import coco_results
from data.dataset import Data
from data.images.decode import decode
from data.objects import Objects
from data.record import Record
from data.regions import label_map, regions_of, segment_map, segments_of
from data.taxonomy import Taxonomy
from disk import flush_all, whole_folder
from errors import UserError, csv_cell, printable
from evaluation.metrics import TOTALS
from evaluation.predictions import Predictions
from report.drawing import beside, draw_objects, legend_of, save_grid
from settings.keys import EvalConfig, ImageSizeConfig
from settings.tasks import EVERY_PIXEL

REPORT_FILES = {"metrics.json", "per_class.csv", "predictions.json", "predictions.png"}
COUNTED = ("boxes", "pixels", "segments")
"""Of a class, what there is of it, beside how well it is found"""
TRUTH_AND_FOUND = "(of each pair: labels on the left, predictions on the right)"
NUM_DRAWN = 8
THUMBNAIL_PX = 800
RESULTS_AT_ONCE = 10_000


def write_report(
    folder: Path,
    metrics: dict[str, Any],
    predictions: Predictions,
    data: Data,
    cfg: EvalConfig,
) -> None:
    """metrics.json, per_class.csv, predictions.json (COCO results) and predictions.png.

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
        draw_fixed_images(temporary / "predictions.png", predictions, data, cfg.score_threshold)
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
    """The same images after every evaluation: truth thin and green, predictions with scores; of regions and
    segments truth at the left, predictions beside it, and a legend of classes."""
    images: list[Image.Image] = []
    parts: list[Objects] = []
    split, taxonomy = data.val, data.taxonomy
    missing = set(predictions.missing.tolist())
    for index in [i for i in range(len(split)) if i not in missing][:NUM_DRAWN]:
        record = split.records[index]
        found = predictions.objects.of_image(index)
        if data.labels not in EVERY_PIXEL:
            found = found.take(found.scores >= threshold)
        # Photos are drawn small: eight of 12 megapixels would take seconds, and tens of megabytes.
        small = resized_size(record.height, record.width, ImageSizeConfig(THUMBNAIL_PX))
        wanted = small if max(small) < max(record.height, record.width) else None
        pixels = decode(split.images[index], record.where, wanted, draft=wanted is not None)
        y, x = pixels.shape[0] / record.height, pixels.shape[1] / record.width
        found = found.scaled(x, y)
        if data.labels in EVERY_PIXEL:
            both = [_true_parts(record, data).scaled(x, y), found]
            images.append(beside([draw_objects(pixels, objects) for objects in both]))
            parts += both
        else:
            tags = [
                f"{taxonomy.names[c]} {score:.2f}"
                for c, score in zip(found.classes, found.scores, strict=True)
            ]
            images.append(draw_objects(pixels, found, tags, record.objects.scaled(x, y)))
    if images:
        legend = legend_of(taxonomy.names, parts)
        save_grid(images, file, legend=legend, note=TRUTH_AND_FOUND if legend else "")


def _true_parts(record: Record, data: Data) -> Objects:
    """The true regions or segments of an image."""
    size, taxonomy = (record.height, record.width), data.taxonomy
    if data.labels == "regions":
        return regions_of(label_map(record.objects, size, taxonomy.background))
    return segments_of(*segment_map(record.objects, size, taxonomy.stuff, taxonomy.background))


def metric_lines(metrics: dict[str, Any], max_classes: int = 20) -> Iterator[str]:
    """One line of totals, then one per class (the worst ones, if there are many)."""
    totals = [name for name in TOTALS if name in metrics]
    yield "  ".join(f"{name} {_text(metrics[name])}" for name in totals)
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
