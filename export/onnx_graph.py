"""The model as an ONNX graph, and what ONNX Runtime makes of it."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from errors import UserError
from export.detector import LoadedDetector
from model.heads.family import call_with_mask

FILE = "onnx/model.onnx"
"""Where it lies in an exported folder"""
OPSET = 18
OUTPUTS = ("logits", "pred_boxes", "pred_masks", "class_queries_logits", "masks_queries_logits")
"""What of a model's outputs the image processors read"""
PIXELS, MASK = "pixel_values", "pixel_mask"
LARGEST_BYTES = 1_800_000_000
"""A file of Protocol Buffers holds two gigabytes; larger weights lie beside it"""
UNCHECKED = "TRANSFORMERS_DISABLE_TORCH_CHECK"
"""Environment variable by which transformers leaves checks out of graphs, which ONNX has no operator for"""


class Graph(nn.Module):
    """A model whose outputs are a tuple."""

    def __init__(self, detector: LoadedDetector, names: Sequence[str]):
        """
        Args:
            names: of the outputs.
        """
        super().__init__()
        self.model = detector.trainable.model
        self._names = names
        self._call = call_of(detector)

    def forward(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            pixel_values: float [B, 3, H, W], normalised.
            pixel_mask: int64 [B, H, W], 1 on the image; default: no padding.
        """
        if pixel_mask is None:
            batch, _, height, width = pixel_values.shape
            mask = torch.ones(batch, height, width, dtype=torch.bool)
        else:
            mask = pixel_mask.bool()
        outputs = self._call(self.model, pixel_values, mask)
        return tuple(getattr(outputs, name) for name in self._names)


def call_of(detector: LoadedDetector) -> Any:
    """(model, pixel_values, pixel_mask) -> outputs, as the head's family has it."""
    family = detector.trainable.family
    return call_with_mask if family is None else family.call


def require_packages() -> None:
    """
    Raises:
        UserError: if one of them is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs a package that is not installed ({error.name}): pip install -r requirements-onnx.txt"
        ) from error


def write_onnx(detector: LoadedDetector, file: Path) -> "Session":
    """Write the graph for the canvas of the image processor, for any number of images where the head allows it
    and else for one, and run it once.

    Raises:
        UserError: if the head cannot be written, or gives other outputs than torch.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    examples = _examples(detector)
    with torch.no_grad():
        outputs = call_of(detector)(detector.trainable.model, examples[0], _mask(examples))
    names = [name for name in OUTPUTS if getattr(outputs, name, None) is not None]
    graph = Graph(detector, names).eval()
    last: Exception | None = None
    for images in (len(examples[0]), 1):
        try:
            given = tuple(tensor[:images] for tensor in examples)
            _write(graph, given, names, file)
            session = Session(file)
            if images > 1 and session.batch is not None:
                continue  # something in the head has taken the number of images for a constant
            _check(detector, session, given)
            return session
        except UserError:
            raise
        except Exception as error:  # what the exporter and the runtime run into has no common type
            last = error
    raise UserError(
        f"{type(detector.trainable.model).__name__} cannot be written as ONNX: {_first_line(last)}. The folder for "
        "transformers can be exported without --onnx"
    ) from last


def _first_line(error: BaseException | None) -> str:
    """What the innermost error begins with: exporters wrap it into advice to their developers."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200].rstrip('. ')}"


def _examples(detector: LoadedDetector) -> tuple[torch.Tensor, ...]:
    """Two images of noise, one of them padded where the model gets to know of padding."""
    height, width = detector.rule.full
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, height, width, generator=generator)
    if detector.rule.size.fit == "stretch":
        return (pixels,)
    mask = torch.ones(2, height, width, dtype=torch.int64)
    mask[1, height // 2 :] = 0
    pixels[1, :, height // 2 :] = 0
    return pixels, mask


def _mask(examples: Sequence[torch.Tensor]) -> torch.Tensor:
    if len(examples) > 1:
        return examples[1].bool()
    return torch.ones(len(examples[0]), *examples[0].shape[2:], dtype=torch.bool)


def _write(
    graph: Graph, examples: Sequence[torch.Tensor], names: Sequence[str], file: Path
) -> None:
    inputs = [PIXELS, MASK][: len(examples)]
    shapes = None
    if len(examples[0]) > 1:
        shapes = {name: {0: torch.export.Dim("batch")} for name in inputs}
    size = sum(parameter.nbytes for parameter in graph.parameters())
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            graph,
            tuple(examples),
            file,
            dynamo=True,
            verbose=False,
            input_names=inputs,
            output_names=list(names),
            dynamic_shapes=shapes,
            external_data=size > LARGEST_BYTES,
            opset_version=OPSET,
            optimize=False,  # it drops inputs of clamps in deformable attention; the runtime optimises anyhow
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without checks of transformers, and what torch says about operators that are not installed."""
    before, logger = os.environ.get(UNCHECKED), logging.getLogger("torch.onnx")
    level = logger.level
    os.environ[UNCHECKED] = "1"
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ[UNCHECKED]
        else:
            os.environ[UNCHECKED] = before


class Session:
    """An ONNX file in ONNX Runtime, on the CPU."""

    def __init__(self, file: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]
        self.inputs = [own.name for own in self._session.get_inputs()]
        first = self._session.get_inputs()[0].shape[0]
        self.batch: int | None = first if isinstance(first, int) else None
        """Images that it takes; None: any number"""

    def outputs(self, pixels: torch.Tensor, mask: torch.Tensor) -> SimpleNamespace:
        """As the model's own.

        Args:
            pixels: float [B, 3, H, W], normalised. mask: [B, H, W], true on the image.
        """
        given = {PIXELS: pixels.numpy(), MASK: mask.to(torch.int64).numpy()}
        found = self._session.run(self._names, {name: given[name] for name in self.inputs})
        tensors = {name: torch.from_numpy(v) for name, v in zip(self._names, found, strict=True)}
        return SimpleNamespace(**tensors)


SCORE_TOLERANCE, BOX_TOLERANCE_PX = 1e-3, 1.0


def _check(detector: LoadedDetector, session: Session, examples: Sequence[torch.Tensor]) -> None:
    """
    Raises:
        UserError: if it finds something else on the examples than torch.
    """
    pixels, mask = examples[0], _mask(examples)
    sizes = torch.tensor([detector.rule.full] * len(pixels))
    trainable = detector.trainable
    with torch.no_grad():
        outputs = call_of(detector)(trainable.model, pixels, mask)
    ours, theirs = (
        trainable.found(each, sizes, None, 0.0) for each in (outputs, session.outputs(pixels, mask))
    )
    same = len(ours) == len(theirs) and np.allclose(
        np.sort(ours.scores), np.sort(theirs.scores), atol=SCORE_TOLERANCE
    )
    if same and len(ours):  # rounding may swap two of nearly equal scores
        same = np.allclose(ours.boxes.mean(0), theirs.boxes.mean(0), atol=BOX_TOLERANCE_PX)
    if not same:
        raise UserError(
            "ONNX Runtime finds something else than torch on an image of noise; nothing was exported"
        )
