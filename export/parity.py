"""Whether an exported folder is as good as the checkpoint it was made of: the same metric of each artefact."""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from data.boxes import from_corners
from data.images.decode import decode
from data.objects import Objects
from data.schema import Split
from data.taxonomy import Taxonomy
from disk import write_whole
from errors import UserError
from evaluation.metrics import TOTALS, measure
from evaluation.predictions import NOTHING, Predictions
from export.detector import LoadedDetector, load_detector
from export.onnx_graph import Session, call_of
from model.trainable import NO_THRESHOLD
from settings.keys import EvalConfig

FILE = "parity.json"
TOLERANCE = 0.001
"""A tenth of a point: more is another model"""
CHECKPOINT, TRANSFORMERS, ONNX = "checkpoint", "transformers", "onnxruntime"
WHOLE_PIXELS = "pipeline_in_whole_pixels"
WORDS = {
    CHECKPOINT: "the weights of the checkpoint, as training evaluates them",
    TRANSFORMERS: "image processor, model and post-processing of the exported folder, as transformers.pipeline calls them",
    WHOLE_PIXELS: "what the pipeline returns: it cuts boxes off to whole pixels, which costs small objects AP; not compared",
    ONNX: "the same image processor and post-processing around onnx/model.onnx in ONNX Runtime, on the CPU",
}


def parity(
    folder: Path,
    session: Session | None,
    split: Split,
    taxonomy: Taxonomy,
    own: dict[str, Any],
    cfg: EvalConfig,
    ticked: Callable[[Iterator[int]], Iterator[int]] = lambda rows: rows,
) -> dict[str, Any]:
    """Measure an exported folder, and write parity.json into it.

    Args:
        session: of its ONNX file, if there is one. split: validation images.
        own: metrics of the checkpoint on them. ticked: goes through the images, and may show how far it is.

    Returns: what parity.json holds.

    Raises:
        UserError: if an artefact's metric differs by more than TOLERANCE.
    """
    detector = load_detector(str(folder))
    found = _predictions(detector, folder, session, split, cfg, ticked)
    metrics = {CHECKPOINT: own}
    for name, predictions in found.items():
        metrics[name] = measure(detector.labels, split, predictions, taxonomy)
    key = str(cfg.metric)
    report = {
        "metric": key,
        "images": len(split),
        "tolerance": TOLERANCE,
        "artefacts": {
            name: {k: values[k] for k in TOTALS if k in values} for name, values in metrics.items()
        },
        "what": {name: WORDS[name] for name in metrics},
        "versions": {name: version(name) for name in ("torch", "transformers")}
        | ({"onnxruntime": version("onnxruntime")} if session else {}),
    }
    wrong = differences(report)
    report["passed"] = not wrong
    write_whole(folder / FILE, json.dumps(report, indent=2) + "\n")
    if wrong:
        raise UserError(
            f"the export is not what the checkpoint is, on {len(split)} validation images: {'; '.join(wrong)}; at "
            f"most {TOLERANCE} is allowed. Nothing was exported"
        )
    return report


def differences(report: dict[str, Any]) -> list[str]:
    """A line for each compared artefact whose metric is not the checkpoint's."""
    artefacts, key = report["artefacts"], report["metric"]
    ours = artefacts[CHECKPOINT][key]
    lines = []
    for name in (TRANSFORMERS, ONNX):
        theirs = artefacts.get(name, {}).get(key, ours)
        same = (ours is None) == (theirs is None) and abs((ours or 0) - (theirs or 0)) <= TOLERANCE
        if not same:
            lines.append(f"{key} is {_number(theirs)} by {name} and {_number(ours)} here")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _predictions(
    detector: LoadedDetector,
    folder: Path,
    session: Session | None,
    split: Split,
    cfg: EvalConfig,
    ticked: Callable[[Iterator[int]], Iterator[int]],
) -> dict[str, Predictions]:
    """What each artefact finds on the split."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    trainable, most = detector.trainable, cfg.max_detections
    lowest = cfg.panoptic_threshold if trainable.finder.thresholded else NO_THRESHOLD
    rounded = None
    if detector.labels == "boxes":
        rounded = pipeline("object-detection", model=trainable.model, image_processor=processor)
    tables: dict[str, list[Objects]] = {TRANSFORMERS: []}
    tables |= {WHOLE_PIXELS: []} if rounded else {}
    tables |= {ONNX: []} if session else {}
    missing = []
    for place in ticked(iter(range(len(split)))):
        try:
            image = decode(split.images[place], split.records[place].where)
        except UserError:
            missing.append(place)
            continue
        sizes = torch.tensor([image.shape[:2]])
        inputs = processor(images=[Image.fromarray(image)], return_tensors="pt")
        pixels = inputs["pixel_values"]
        mask = inputs.get("pixel_mask")
        mask = torch.ones(1, *pixels.shape[2:]) if mask is None else mask
        with torch.no_grad():
            outputs = call_of(detector)(trainable.model, pixels, mask.bool())
        each = {TRANSFORMERS: outputs}
        if session:
            each[ONNX] = session.outputs(pixels, mask)
        for name, own in each.items():
            found = trainable.found(own, sizes, most, lowest)
            tables[name].append(_at(place, found))
        if rounded:
            whole = type(outputs)({**outputs, "target_size": sizes})
            told = rounded.postprocess(whole, threshold=NO_THRESHOLD)
            tables[WHOLE_PIXELS].append(_at(place, _objects(told, detector.names, most)))
    bad = np.array(missing, np.int64)
    return {
        name: Predictions(Objects.concat(rows) if rows else NOTHING, bad)
        for name, rows in tables.items()
    }


def _at(place: int, found: Objects) -> Objects:
    columns = {**found.columns(), "image": np.full(len(found), place, np.int64)}
    return Objects(**columns)


def _objects(told: Sequence[dict[str, Any]], names: Sequence[str], most: int) -> Objects:
    """What the detection pipeline returns for an image, as a table."""
    told = sorted(told, key=lambda row: -row["score"])[:most]
    corners = [[row["box"][k] for k in ("xmin", "ymin", "xmax", "ymax")] for row in told]
    return Objects(
        boxes=from_corners(np.array(corners, np.float64).reshape(-1, 4)),
        classes=np.array([names.index(row["label"]) for row in told], np.int64),
        scores=np.array([row["score"] for row in told], np.float64),
    )
