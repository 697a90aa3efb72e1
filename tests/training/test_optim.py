import math

import pytest
import torch

from builders import TINY_HEAD, save_backbone, tiny_run
from data.taxonomy import Taxonomy
from model.build import build_model
from model.stages import stage_numbers
from run.build import build_run, start_processes
from settings.keys import ModelConfig, OptimConfig
from settings.load import load_config
from training.optim import build_optimizer, can_be_fused, lr_factor, set_lr


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


def take_steps(optimizer, steps):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        set_lr(optimizer, 1.0 - step / 6)
        optimizer.step()


def test_fused_steps_equal_the_others_and_go_on_from_their_state(tmp_path):
    ends = []
    for ways in ((False, False), (True, True), (False, True)):
        detector = make(tmp_path, "all")
        first, second = (
            build_optimizer(
                detector.model, detector.backbone_module, OptimConfig(lr=1e-2), fused=fused
            )
            for fused in ways
        )
        assert [bool(o.param_groups[0]["fused"]) for o in (first, second)] == list(ways)
        take_steps(first, range(3))
        groups = second.state_dict()["param_groups"]
        second.load_state_dict({"state": first.state_dict()["state"], "param_groups": groups})
        take_steps(second, range(3, 6))
        assert {float(slots["step"]) for slots in second.state.values()} == {6.0}
        ends.append(detector.model.state_dict())
    for end in ends[1:]:
        for name, value in end.items():
            torch.testing.assert_close(value, ends[0][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("device", "precision", "fused"),
    [("cpu", "no", True), ("cuda", "bf16", True), ("cuda", "fp16", False), ("mps", "no", False)],
)
def test_adamw_is_fused_where_that_is_known_to_work(device, precision, fused):
    assert can_be_fused(device, precision) == fused


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


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_run_fuses_it(tmp_path):
    cfg = load_config(tiny_run(tmp_path))
    (tmp_path / "run").mkdir()
    accelerator = start_processes(cfg)
    groups = build_run(cfg, accelerator).optimizer.param_groups
    wanted = can_be_fused(accelerator.device.type, "no")
    assert [bool(group["fused"]) for group in groups] == [wanted] * len(groups)
