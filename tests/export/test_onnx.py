"""ONNX Runtime against torch, head by head; `linear` goes through the whole command in tests/tools/test_export.py."""

import dataclasses

import pytest
import torch

from builders import tiny_detector
from data.canvas import CanvasRule
from errors import UserError
from export.detector import load_detector
from export.onnx_graph import FILE, call_of, write_onnx

pytestmark = pytest.mark.slow
SIDE_PX = 128
HEADS = ["detr", "deformable_detr", "rt_detr_v2", "d_fine", "deimv2", "mask2former"]
ANY_NUMBER = {"detr", "deformable_detr", "mask2former"}
"""Heads whose graph must take any number of images"""


def exported(folder, variant):
    detector = tiny_detector(folder / "backbone", variant)
    with torch.no_grad():
        for parameter in detector.model.parameters():
            if not parameter.any():  # as some parts begin
                parameter.normal_(std=0.1)
    detector.model.save_pretrained(folder / "export")
    detector.trainable.processor.save_pretrained(folder / "export")
    loaded = load_detector(str(folder / "export"))
    size = dataclasses.replace(loaded.rule.size, longest=SIDE_PX, shortest=None)
    return dataclasses.replace(loaded, rule=CanvasRule(size, SIDE_PX))


def images(detector, num):
    """Random ones, each with its own padding where there can be some."""
    height, width = detector.rule.full
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(num, 3, height, width, generator=generator)
    mask = torch.ones(num, height, width, dtype=torch.bool)
    if detector.rule.size.fit == "pad":
        for place in range(num):
            mask[place, height - 16 * place :] = False
            mask[place, :, width // (place + 1) :] = False
        pixels *= mask[:, None]
    return pixels, mask


@pytest.mark.parametrize("variant", HEADS)
def test_the_runtime_gives_what_torch_gives(tmp_path, variant):
    detector = exported(tmp_path, variant)
    session = write_onnx(detector, tmp_path / FILE)
    assert session.batch == 1 or session.batch is None
    if variant in ANY_NUMBER:
        assert session.batch is None
    for num in (1, 3) if session.batch is None else (1,):
        pixels, mask = images(detector, num)
        with torch.no_grad():
            ours = call_of(detector)(detector.trainable.model, pixels, mask)
        theirs = vars(session.outputs(pixels, mask))
        assert len(theirs) >= 1
        for name, tensor in theirs.items():
            assert tensor.shape == ours[name].shape
            torch.testing.assert_close(tensor, ours[name], atol=1e-4, rtol=1e-4)
            assert tensor.std() > 1e-3


def test_a_head_that_has_no_graph_says_so(tmp_path):
    with pytest.raises(UserError, match=r"cannot be written as ONNX: \w+: .*without --onnx"):
        write_onnx(exported(tmp_path, "pmd"), tmp_path / FILE)
