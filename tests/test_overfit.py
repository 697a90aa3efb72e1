"""Each head learns eight images by heart: data, loss, matching, boxes, masks and metric fit together."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState

import train_accelerate
from builders import REAL_TIME, some
from runs import train

STEPS = {"deformable_detr": 100, "detr": 200, "rt_detr_v2": 160, "d_fine": 80, "deimv2": 150}


MASK_STEPS = {"maskformer": 120, "mask2former": 200, "pmd": 200}
REGION_STEPS = 200
MASK_SIZES = {
    "maskformer": {
        **{"num_queries": 12, "decoder_layers": 3, "d_model": 64, "decoder_ffn_dim": 256},
        **{"decoder_attention_heads": 4, "fpn_feature_size": 64, "mask_feature_size": 64},
        "dropout": 0.0,
    },
    "mask2former": {
        **{"num_queries": 12, "decoder_layers": 4, "hidden_dim": 64, "feature_size": 64},
        **{"mask_feature_size": 64, "encoder_layers": 1, "encoder_feedforward_dim": 128},
        **{"dim_feedforward": 256, "num_attention_heads": 4},
    },
    "pmd": {"num_queries": 12, "hidden_size": 64, "num_layers": 3, "num_heads": 4, "mlp_ratio": 2},
}


def train_on_eight(tmp_path, head, steps, side_px, **more):
    """Metrics of a run of `configs/synthetic_masks.yaml` on eight scenes."""
    keys = {"run.output_dir": tmp_path / "run", "data.path": tmp_path / "scenes", **more}
    keys |= {"model.head": head, "train.steps": steps, "train.evaluate_every": "null"}
    keys |= {"data.image_size.longest": side_px}
    keys |= {"data.limit": 8, "data.val_on_train": "true", "data.synthetic_train": 8}
    keys |= {"data.synthetic_val": 2, "data.augment": "[]", "run.draw_batches": 0}
    keys |= {"run.pictures": "false"}
    keys |= {"model.head_args": json.dumps(MASK_SIZES[head]), "data.num_workers": 0}
    keys |= {"data.source": "synthetic"}
    arguments = ["--config", "configs/synthetic_masks.yaml", "--run.tracker", "none"]
    for key, value in keys.items():
        arguments += [f"--{key}", str(value)]
    train(arguments)
    return json.loads((tmp_path / f"run/eval/step-{steps:06d}/metrics.json").read_text())


HEADS = some(MASK_STEPS, [])


@pytest.mark.parametrize("head", HEADS)
def test_masks_of_eight_images_are_learnt(tmp_path, head):
    metrics = train_on_eight(tmp_path, head, MASK_STEPS[head], 128)
    assert metrics["AP50"] >= 0.9
    assert metrics["box_AP50"] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("head", ["maskformer", "pmd"])
def test_regions_of_eight_images_are_learnt(tmp_path, head):
    task = {"model.task": "semantic_segmentation"}
    metrics = train_on_eight(tmp_path, head, REGION_STEPS, 160, **task)
    assert metrics["mIoU"] >= 0.9


@pytest.mark.slow
def test_segments_of_eight_images_are_learnt(tmp_path):
    """They differ from regions in data and metric alone."""
    task = {"model.task": "panoptic_segmentation", "data.stuff": "[building]"}
    metrics = train_on_eight(tmp_path, "mask2former", REGION_STEPS, 160, **task)
    assert metrics["PQ"] >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("head", ["deformable_detr", "detr", *REAL_TIME])
def test_eight_images_are_learnt(tmp_path, head):
    arguments = ["--config", "configs/debug.yaml", "--run.output_dir", str(tmp_path / "run")]
    arguments += [
        "--run.draw_batches",
        "0",
        "--run.pictures",
        "false",
        "--data.source",
        "synthetic",
        "--data.path",
        str(tmp_path / "scenes"),
    ]
    arguments += ["--model.head", head, "--train.steps", str(STEPS[head])]
    arguments += ["--train.evaluate_every", "null"]
    if head != "deimv2":  # of which it is the recipe as it is
        arguments += ["--data.image_size.longest", "192", "--model.out_features", "[stage3]"]
    if head == "deformable_detr":
        size = {"num_feature_levels": 1, "num_queries": 30, "encoder_layers": 0}
        size |= {"decoder_layers": 3, "d_model": 128, "decoder_ffn_dim": 256, "dropout": 0.0}
        size |= {"class_cost": 4, "bbox_loss_coefficient": 2, "giou_loss_coefficient": 1}
        arguments += ["--model.head_args", json.dumps(size)]
    if head == "detr":
        size = {"encoder_layers": 1, "encoder_ffn_dim": 256, "decoder_layers": 3}
        size |= {"d_model": 128, "decoder_ffn_dim": 256, "dropout": 0.0, "num_queries": 8}
        arguments += ["--model.head_args", json.dumps(size)]
    if head in ("rt_detr_v2", "d_fine"):
        size = {"d_model": 64, "encoder_hidden_dim": 64, "encoder_ffn_dim": 128}
        size |= {"decoder_ffn_dim": 128, "decoder_layers": 3, "num_queries": 30}
        size |= {"num_denoising": 20, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        size |= {} if head == "rt_detr_v2" else {"depth_mult": 0.34}
        arguments += ["--model.head_args", json.dumps(size)]
        arguments += ["--model.out_features", "[stage2, stage3]"]
    try:
        train_accelerate.main(arguments)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.autograd.set_detect_anomaly(False)
    file = tmp_path / "run" / "eval" / f"step-{STEPS[head]:06d}" / "metrics.json"
    assert json.loads(file.read_text())["AP50"] >= 0.9
