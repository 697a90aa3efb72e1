"""Whole runs of rf_detr_seg through the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForInstanceSegmentation

import tools.evaluate
from builders import tiny_run
from data.images.decode import decode
from donors import write_donor
from export.detector import load_detector
from runs import stopped_and_resumed, train
from tools.predict import detect

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
HEAD = "rf_detr_seg"


def test_export_finds_elsewhere_what_was_evaluated(tmp_path, capsys):
    """And the program on its card runs as it stands there."""
    train(tiny_run(tmp_path, HEAD, model__head="null", eval__score_threshold=0.0))
    run = tmp_path / "run"
    metrics = json.loads((run / "eval/step-000003/metrics.json").read_text())
    assert {"AP", "AP50", "box_AP"} <= set(metrics)
    assert not any(name.startswith("flat_") for name in metrics)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {
        f"train/loss_{n}" for n in ("ce", "bbox", "giou", "mask", "dice", "mask_enc", "dice_0")
    }
    assert names <= set(rows[0])

    export = str(run / "export")
    model = AutoModelForInstanceSegmentation.from_pretrained(export).eval()
    processor = AutoImageProcessor.from_pretrained(export, backend="pil")
    ours = load_detector(export)
    assert ours.trainable.task == "instance_segmentation"
    content = json.loads((tmp_path / "data/annotations/val.json").read_text())
    evaluated = json.loads((run / "eval/step-000003/predictions.json").read_text())
    compared = 0
    for image in content["images"]:
        file = tmp_path / "data/val" / image["file_name"]
        with torch.no_grad():
            outputs = model(**processor(Image.open(file).convert("RGB"), return_tensors="pt"))
        size = (image["height"], image["width"])
        masks = torch.nn.functional.interpolate(outputs.pred_masks, size=size, mode="bilinear")[0]
        filled = (masks > 0).flatten(1).any(1)
        scores = outputs.logits[0].sigmoid().max(-1).values[filled].sort(descending=True).values
        own = detect(ours, decode(file, str(file)), -1.0, torch.device("cpu"))
        logged = [p["score"] for p in evaluated if p["image_id"] == image["id"]]
        np.testing.assert_allclose(own.scores, scores, atol=1e-5)
        np.testing.assert_allclose(logged, scores, atol=1e-5)
        compared += len(own)
    assert compared > 5

    card = (run / "export/README.md").read_text()
    program = card.split("```python\n")[1].split("```")[0]
    Image.new("RGB", (64, 48)).save(tmp_path / "image.jpg")
    program = program.replace("path/or/repo_id", export)
    exec(program.replace("image.jpg", str(tmp_path / "image.jpg")), {})
    assert "px" in capsys.readouterr().out


def test_resumed_run_is_bit_equal_to_one_that_was_not_stopped(tmp_path):
    stopped_and_resumed(tmp_path, lambda **keys: tiny_run(tmp_path, HEAD, **keys))


@pytest.mark.slow
def test_random_weights_learn_the_masks_of_eight_images(tmp_path):
    """There is no head of it to begin with nothing: donor and backbone are random, and all of it trains."""
    windows = {"hidden_size": 32, "num_attention_heads": 4, "mlp_ratio": 2}
    sizes = {"d_model": 64, "decoder_ffn_dim": 128, "num_queries": 12, "decoder_n_points": 4}
    write_donor(tmp_path / "donor", HEAD, windows=windows, noise=0.0, **sizes)
    keys = {
        "data__val_split": "null",
        "data__val_on_train": "true",
        "data__image_size__longest": 96,
        "model__init_from": tmp_path / "donor",
        "model__freeze": "none",
        "optim__lr": 1e-3,
        "optim__backbone_lr": 1e-3,
        "optim__new_layers_lr": 1e-3,
        "optim__max_grad_norm": 1.0,
        "optim__warmup_steps": 10,
        "train__steps": 400,
        "train__global_batch_size": 8,
        "run__draw_batches": 0,
    }
    train(tiny_run(tmp_path, HEAD, **keys))
    run = tmp_path / "run"
    metrics = json.loads((run / "eval/step-000400/metrics.json").read_text())
    assert metrics["AP50"] >= 0.9
    again = tools.evaluate.main(
        ["--model", str(run / "export"), "--config", str(run / "config.yaml")]
    )
    assert again["AP"] == pytest.approx(metrics["AP"], abs=1e-4)
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("donor", "run/export"))
    moved = [
        n
        for n in after
        if after[n].shape == before[n].shape and not torch.equal(after[n], before[n])
    ]
    assert any("segmentation_head" in name for name in moved)
