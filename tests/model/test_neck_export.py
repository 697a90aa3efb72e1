"""Exports of detectors with a neck, loaded by us and, with their code, by anyone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from builders import some
from model.neck import as_saved
from necked import RUN, necked, necked_run
from runs import train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ELSEWHERE = """
import json, sys
from transformers import pipeline
folder, file, task = sys.argv[1:]
found = pipeline(task, folder, trust_remote_code=True)
if task == "object-detection":
    boxes = sorted(found(file, threshold=-1.0), key=lambda box: -box["score"])
    print(json.dumps([[box["score"], *box["box"].values()] for box in boxes]))
else:
    model, processor = found.model, found.image_processor
    import torch
    from PIL import Image
    pixels = processor(images=Image.open(file).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(pixel_values=pixels)
    print(json.dumps([out.class_queries_logits.tolist(), out.masks_queries_logits.tolist()]))
"""


def elsewhere(export, root, script, *arguments):
    """A process that knows nothing of this repository."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf")}
    empty = root / "empty"
    empty.mkdir()
    command = [sys.executable, "-c", script, str(export), *arguments]
    return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)


def found_elsewhere(export, root, file, task):
    """What the pipeline of a task finds there."""
    result = elsewhere(export, root, ELSEWHERE, str(file), task)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", some(RUN, ["deformable_detr-cnn_branch"]))
def test_export_predicts_the_same_with_its_code_alone(tmp_path, case):
    train(necked_run(case, tmp_path))
    export = tmp_path / "run/export"
    assert (export / "necked_backbone.py").is_file()
    assert "trust_remote_code=True" in (export / "README.md").read_text()
    for file in filter(Path.is_file, export.rglob("*")):
        assert str(tmp_path).encode() not in file.read_bytes(), file
    file = sorted((tmp_path / "data/val").iterdir())[0]
    if case.split("-")[0].startswith("mask"):
        ours = masks_of(export, file)
        theirs = found_elsewhere(export, tmp_path, file, "image-segmentation")
        for own, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(np.array(other), own, atol=1e-4)
        return
    theirs = found_elsewhere(export, tmp_path, file, "object-detection")
    evaluated = json.loads((tmp_path / "run/eval/step-000003/predictions.json").read_text())
    ours = [box for box in evaluated if box["image_id"] == 10]
    assert len(ours) == len(theirs) > 0
    for own, (score, *corners) in zip(ours, theirs, strict=True):
        x, y, w, h = own["bbox"]
        assert score == pytest.approx(own["score"], abs=1e-5)
        assert corners == pytest.approx([x, y, x + w, y + h], abs=1.01)  # whole pixels there


def masks_of(export, file):
    """The outputs of the export's model in our own classes."""
    import torch
    from PIL import Image

    from export.detector import load_detector

    trainable = load_detector(str(export)).trainable
    image = Image.open(file).convert("RGB")
    pixels = trainable.processor(images=image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = trainable.model(pixel_values=pixels)
    return out.class_queries_logits.numpy(), out.masks_queries_logits.numpy()


WITHOUT_TRUST = """
import sys
from transformers import AutoModelForObjectDetection
AutoModelForObjectDetection.from_pretrained(sys.argv[1])
"""


def test_who_does_not_trust_the_code_is_told_what_is_missing(tmp_path):
    detector = necked("rt_detr_v2-pyramid", tmp_path)
    as_saved(detector.model).save_pretrained(tmp_path / "saved")
    result = elsewhere(tmp_path / "saved", tmp_path, WITHOUT_TRUST)
    assert result.returncode != 0
    assert "trust_remote_code=True" in result.stderr


def test_without_a_neck_an_export_has_no_code(tmp_path):
    train(necked_run("deformable_detr-fpn", tmp_path, model__neck="none"))
    export = tmp_path / "run/export"
    assert not list(export.glob("*.py"))
    assert "auto_map" not in json.loads((export / "config.json").read_text())
    assert "trust_remote_code" not in (export / "README.md").read_text()
