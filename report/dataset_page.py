"""The page of `tools.check_data`: verdict, charts, samples and every kind of defect."""

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.dataset import Data
from data.findings import Finding
from data.objects import Objects
from errors import UserError
from report import page
from report.dataset_picture import SAMPLES_TOP_PX, draw_dataset
from report.dataset_text import (
    NO_START,
    Statistics,
    exit_status,
    finding_lines,
    statistics_lines,
    verdict,
)
from report.label_charts import label_charts
from report.palette import colour_of
from settings.keys import DataConfig, ImageSizeConfig

MOST_PLACES = 20
"""Of each kind of defect"""
MOST_COLOURS = 20
"""Classes in the legend; with more of them colours come again"""


def write_dataset_page(
    file: Path,
    cfg: DataConfig,
    data: Data,
    findings: Collection[Finding],
    statistics: Mapping[str, Statistics],
    parts: Mapping[str, Objects] | None = None,
    note: str = "",
) -> None:
    """Write the page of a dataset that was checked.

    Args:
        findings, parts: as for `draw_dataset`. statistics: of each split.
        note: what stands below the name.

    Raises:
        UserError: if it cannot be written.
    """
    found, name = list(findings), cfg.path or cfg.source
    try:
        page.write_page(
            file,
            f"{name} - dataset report",
            _parts(name, data, found, statistics, cfg.image_size, parts, note),
        )
    except OSError as error:
        raise UserError(f"--html {file}: cannot be written: {error.strerror}") from error


def _parts(
    name: str,
    data: Data,
    findings: Sequence[Finding],
    statistics: Mapping[str, Statistics],
    size: ImageSizeConfig,
    parts: Mapping[str, Objects] | None,
    note: str,
) -> Iterator[str]:
    yield page.heading(name, [note] if note else [])
    told = verdict(findings, statistics)
    yield page.notice(
        told, "bad" if told.startswith(NO_START) else "fair" if exit_status(findings) else "good"
    )
    yield page.tiles(dict(_numbers(data)))
    if findings:
        blocks = _blocks(finding_lines(findings, MOST_PLACES, name))
        yield page.section("What was found", *blocks)
    yield page.section("Labels", page.charts(label_charts(data, size)))
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "dataset.png"
        draw_dataset(picture, data, findings, size, parts)
        with Image.open(picture) as image:  # whose charts are above already
            samples = image.convert("RGB").crop((0, SAMPLES_TOP_PX, *image.size))
        figure = page.figure(samples, "random images with what is labelled")
        yield page.section("Samples", page.legend(_colours(data)), figure)
    text = "\n".join(statistics_lines(statistics, size))
    yield page.section("Figures", page.details("all figures", text))


def _colours(data: Data) -> dict[str, tuple[int, int, int]]:
    """Of the classes in drawings, the most frequent first."""
    counts = np.bincount(data.train.objects.classes, minlength=len(data.taxonomy.names))
    order = np.argsort(-counts, kind="stable")[:MOST_COLOURS].tolist()
    return {data.taxonomy.names[kind]: colour_of(kind) for kind in order}


def _numbers(data: Data) -> Iterator[tuple[str, str]]:
    yield "training images", f"{len(data.train):,}"
    yield "validation images", f"{len(data.val):,}"
    yield "classes", f"{len(data.taxonomy.names):,}"
    yield f"{data.labels}, training", f"{int(data.train.table.counts.sum()):,}"
    yield f"{data.labels}, validation", f"{int(data.val.table.counts.sum()):,}"


def _blocks(told: Sequence[str]) -> Iterator[str]:
    """Lines of `finding_lines`, one box for each kind."""
    block: list[str] = []
    for line in [*told, ""]:
        if line:
            block.append(line)
        elif block:
            yield f"<p>{page.text(block[0])}</p><pre>{chr(10).join(map(page.text, block[1:]))}</pre>"
            block = []
