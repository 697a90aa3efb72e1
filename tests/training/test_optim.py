import math

import pytest
import torch

from builders import TINY_HEAD, save_backbone
from data.taxonomy import Taxonomy
from model.build import build_model
from model.stages import stage_numbers
from settings.keys import ModelConfig, OptimConfig
from training.optim import build_optimizer, lr_factor, set_lr


def make(tmp_path, freeze):
    cfg = ModelConfig(
        backbone=str(save_backbone(tmp_path)),
        head="deformable_detr",
        head_args=TINY_HEAD["deformable_detr"],
        freeze=freeze,
    )
    return build_model(cfg, Taxonomy(("a",), (0,)))


@pytest.mark.parametrize("freeze", ["all", "stages:1", "none"])
def test_every_trainable_parameter_is_in_one_group(tmp_path, freeze):
    detector = make(tmp_path, freeze)
    optimizer = build_optimizer(detector.model, detector.backbone_module, OptimConfig(lr=1e-3))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = [id(p) for p in detector.model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    names = {group["name"] for group in optimizer.param_groups}
    parts = ("head",) if freeze == "all" else ("backbone", "head")
    assert names == {f"{part}, {kind}" for part in parts for kind in ("decay", "no decay")}


def test_norms_biases_and_embeddings_do_not_decay_and_rates_are_per_group(tmp_path):
    detector = make(tmp_path, "none")
    cfg = OptimConfig(lr=1e-3, backbone_lr=1e-5, weight_decay=0.1)
    optimizer = build_optimizer(detector.model, detector.backbone_module, cfg)
    names = {id(p): n for n, p in detector.model.named_parameters()}
    for group in optimizer.param_groups:
        assert group["base_lr"] == (1e-5 if group["name"].startswith("backbone") else 1e-3)
        for parameter in group["params"]:
            name = names[id(parameter)]
            plain = parameter.ndim == 1 or "query_position" in name or "level_embed" in name
            assert group["weight_decay"] == (0.0 if plain else 0.1), name
    set_lr(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {5e-4, 5e-6}


def test_layers_near_the_pixels_learn_more_slowly(tmp_path):
    detector = make(tmp_path, "none")
    backbone = detector.backbone_module
    cfg = OptimConfig(lr=1e-3, backbone_lr=1e-4, layer_decay=0.5)
    optimizer = build_optimizer(detector.model, backbone, cfg, stages=stage_numbers(backbone))
    rates = {id(p): g["base_lr"] for g in optimizer.param_groups for p in g["params"]}
    names = {n: rates[id(p)] for n, p in backbone.named_parameters()}
    for number, rate in enumerate((0.25e-4, 0.5e-4, 1e-4)):
        stage = [names[name] for name in names if f"stages.{number}." in name]
        assert stage == [pytest.approx(rate)] * len(stage)
        assert stage
    inside = {id(p) for p in backbone.parameters()}
    assert {rate for p, rate in rates.items() if p not in inside} == {1e-3}
    groups = {group["name"].partition(",")[0] for group in optimizer.param_groups}
    assert groups == {"backbone stage 1", "backbone stage 2", "backbone stage 3", "head"}


def test_backbone_rate_is_a_tenth_by_default(tmp_path):
    detector = make(tmp_path, "none")
    optimizer = build_optimizer(detector.model, detector.backbone_module, OptimConfig(lr=1e-3))
    rates = {g["name"].split(",")[0]: g["base_lr"] for g in optimizer.param_groups}
    assert rates == {"backbone": pytest.approx(1e-4), "head": 1e-3}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedule(schedule):
    cfg = OptimConfig(warmup_steps=10, schedule=schedule)
    factors = [lr_factor(step, 110, cfg) for step in range(110)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    middle = {"linear": 0.5, "cosine": 0.5, "constant": 1.0}[schedule]
    assert factors[60] == pytest.approx(middle)
    end = {"linear": 0.01, "cosine": 0.5 * (1 + math.cos(math.pi * 0.99)), "constant": 1.0}
    assert factors[-1] == pytest.approx(end[schedule])


def test_canary_adamw_keeps_unknown_group_keys():
    """Groups carry their name and full rate; torch must not drop them."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    group = torch.optim.AdamW([{"params": [parameter], "name": "x", "base_lr": 1.0}]).param_groups[
        0
    ]
    assert (group["name"], group["base_lr"]) == ("x", 1.0)
