"""Every head on every kind of backbone: from the checkpoint to an export that others load."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from backbones import FLAT, KINDS, write_backbone
from builders import OWN_CODE, REAL_TIME, TINY_HEAD, tiny_run
from disk import ROOT
from elsewhere import Elsewhere
from errors import UserError
from export.detector import load_detector
from runs import losses, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

REFUSED = {("swin", "maskformer"): "a class of its own in the place of a Swin backbone"}
"""Why a pair cannot work"""
NECKED = {(kind, head) for kind in FLAT for head in (*REAL_TIME, "mask2former", "maskformer")}
NECKED -= {("dinov3_vit", "deimv2")}
"""Pairs that get a pyramid between them, whose code is in the export"""
FAST = [
    ("dinov2", "detr"),
    ("vit", "deformable_detr"),
    ("swin", "mask2former"),
    ("resnet", "deimv2"),
]
PAIRS = [(kind, head) for kind in KINDS for head in TINY_HEAD]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    process = Elsewhere(tmp_path_factory.mktemp("elsewhere"))
    yield process
    process.close()


@pytest.mark.parametrize(
    ("kind", "head"),
    [pair if pair in FAST else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS],
)
def test_from_a_checkpoint_to_an_export_that_others_load(tmp_path, elsewhere, kind, head):
    backbone = write_backbone(tmp_path / "backbone", kind)
    keys = {"train__steps": 2, "train__checkpoint_every": 1, "optim__schedule": "constant"}
    run = tmp_path / "run"
    arguments = tiny_run(tmp_path, head, **keys)
    if (kind, head) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[kind, head]):
            train(arguments)
        return
    train(arguments)
    metrics = json.loads((run / "eval/step-000002/metrics.json").read_text())
    assert metrics["mIoU" if head == "linear" else "AP"] >= 0
    exported = load_file(run / "export/model.safetensors")
    every_tensor_is_in(load_file(backbone / "model.safetensors"), exported)

    whole = shutil.copytree(run, tmp_path / "whole", symlinks=True)
    shutil.rmtree(run / "checkpoints/step-000002")  # as if killed before it
    train([*arguments, "--run.resume", "auto"])
    assert "resumed at step 1" in (run / "train.log").read_text()
    assert losses(run) == losses(whole)
    assert_equal(load_file(run / "export/model.safetensors"), exported)

    loaded = load_detector(str(run / "export"))
    ours, side = loaded.trainable, loaded.rule.full[0]
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, side, side, dtype=torch.int64)
    with torch.no_grad():
        expected = ours.family.call(ours.model, pixels, mask)
    inputs = {"pixel_values": pixels}
    if head not in (*REAL_TIME, *OWN_CODE):
        inputs["pixel_mask"] = mask
    trusted = head in OWN_CODE or (kind, head) in NECKED
    assert bool(list((run / "export").glob("*.py"))) == trusted
    found = elsewhere.outputs(run / "export", inputs, trusted)
    tensors = {n: v for n, v in expected.items() if isinstance(v, torch.Tensor)}
    assert tensors.keys() == found.keys() != set()
    for name, value in tensors.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


def every_tensor_is_in(file, exported):
    """All that the backbone's checkpoint holds, but what no backbone has a use for, is in the export."""
    contents = {tuple(value.flatten().tolist()) for value in exported.values()}
    lost = [name for name, value in file.items() if tuple(value.flatten().tolist()) not in contents]
    assert not [n for n in lost if "pooler" not in n and "num_batches_tracked" not in n], lost
    assert len(file) - len(lost) > 40


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_the_readme_says_which_pairs_work():
    text = (ROOT / "docs" / "backbones.md").read_text()
    table = text[text.index("| `model_type` of the backbone |") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    columns = [cell.replace("`", "").split() for cell in rows[0]]
    said = {
        (kind, head): row[number].partition(":")[0]
        for row in rows[2:]
        for kind in row[0].replace("`", "").split()
        for number in range(1, len(columns) - 1)
        for head in columns[number]
    }
    true = {
        pair: "no" if pair in REFUSED else "neck" if pair in NECKED else "yes" for pair in PAIRS
    }
    assert said == true
