"""Each head learns eight images by heart: data, loss, matching, boxes and metric fit together."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

import train_accelerate

STEPS = {"deformable_detr": 100, "detr": 200}


@pytest.mark.parametrize("head", STEPS)
def test_eight_images_are_learnt(tmp_path, head):
    arguments = ["--config", "configs/debug.yaml", "--run.output_dir", str(tmp_path / "run")]
    arguments += ["--run.draw_batches", "0", "--data.path", str(tmp_path / "scenes")]
    arguments += ["--model.head", head, "--train.steps", str(STEPS[head])]
    arguments += ["--train.evaluate_every", "null"]
    if head == "detr":
        size = {"encoder_layers": 1, "encoder_ffn_dim": 256, "decoder_layers": 3}
        size |= {"d_model": 128, "decoder_ffn_dim": 256, "dropout": 0.0, "num_queries": 8}
        arguments += ["--model.head_args", json.dumps(size)]
    try:
        train_accelerate.main(arguments)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.autograd.set_detect_anomaly(False)
    file = tmp_path / "run" / "eval" / f"step-{STEPS[head]:06d}" / "metrics.json"
    assert json.loads(file.read_text())["AP50"] >= 0.9
