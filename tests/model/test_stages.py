"""Backbones that train from a stage on, and plain vision transformers."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForObjectDetection, ViTConfig, ViTModel

from backbones import FLAT, KINDS, detector_on, write_backbone
from builders import losses_of, make_batch, tiny_run
from donors import start
from errors import UserError
from model.backbone import load_backbone, tensor_digests
from model.heads.held_norm import HeldBatchNorm
from model.stages import stage_numbers, stages_of
from runs import losses, train
from settings.checks import check_config
from settings.keys import Config, ModelConfig, OptimConfig, TrainConfig


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_before_the_stage_stays_and_all_after_it_learns(tmp_path, kind):
    detector = detector_on(tmp_path / "b", kind, freeze="stages:3")
    backbone = detector.backbone_module
    stages = stages_of(backbone)
    assert len(stages) == 4
    detector.trainable.train()
    early = [m for stage in list(stages)[:3] for m in stage.modules()]
    assert not any(m.training for m in early)
    assert not any(p.requires_grad for stage in list(stages)[:3] for p in stage.parameters())
    for module in backbone.modules():  # of the stem too
        own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        assert any(own) or not own or not module.training
    learning = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    last = {
        n for n, p in backbone.named_parameters() if any(p is q for q in stages[3].parameters())
    }
    assert last & learning.keys()
    assert all("norm" in name for name in learning.keys() - last)  # those of the output
    before = tensor_digests(backbone)
    optimizer = torch.optim.SGD([p for p in detector.model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        losses_of(detector.trainable, make_batch([2, 1])).total.backward()
        assert all(parameter.grad is not None for parameter in learning.values())
        optimizer.step()
    changed = {name for name, digest in tensor_digests(backbone).items() if before[name] != digest}
    assert changed <= learning.keys()
    # Biases of keys and what comes before a norm have a gradient of 0.
    assert len(changed) >= 0.8 * len(learning)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_stages_are_computed_without_a_graph(tmp_path, kind):
    backbone = detector_on(tmp_path / "b", kind, freeze="stages:3").backbone_module.train()
    entered = []
    stages_of(backbone)[3].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    maps = backbone(torch.rand(1, 3, 224, 224)).feature_maps
    assert not entered[0].requires_grad
    assert maps[-1].requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_backbone_gives_the_same_twice_and_alone(tmp_path, kind):
    """No batch norm over the micro-batch, no noise on positions, in training mode as well."""
    backbone = detector_on(tmp_path / "b", kind, freeze="none").backbone_module.train()
    for module in backbone.modules():
        if "DropPath" in type(module).__name__:
            module.drop_prob = 0.0
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    both, alone = backbone(images).feature_maps[-1], backbone(images[1:]).feature_maps[-1]
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_batch_norms_of_a_trained_backbone_keep_their_statistics(tmp_path):
    """Heads that leave a ResNet its own ones; those of DETR replace them."""
    detector = detector_on(tmp_path / "b", "resnet", "mask2former", freeze="none")
    norms = [m for m in detector.backbone_module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 12
    assert all(isinstance(norm, HeldBatchNorm) for norm in norms)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_a_stage(tmp_path, kind):
    backbone = detector_on(tmp_path / "b", kind, freeze="none").backbone_module
    numbers = stage_numbers(backbone)
    for index, stage in enumerate(stages_of(backbone)):
        assert {numbers[id(p)] for p in stage.parameters()} == {index + 1}
    inside = {id(p) for p in stages_of(backbone).parameters()}
    outside = {n: numbers[id(p)] for n, p in backbone.named_parameters() if id(p) not in inside}
    assert set(outside.values()) <= {0, 4}
    assert all(outside[n] == 0 for n in outside if "patch" in n or n.startswith("embedder"))


def test_partly_frozen_run_goes_on_bit_exactly_and_keeps_what_is_frozen(
    tmp_path, fresh_accelerator
):
    write_backbone(tmp_path / "backbone", "resnet")
    keys = {
        **{"model__freeze": "stages:2", "optim__layer_decay": 0.5, "train__checkpoint_every": 1},
        **{"optim__schedule": "constant", "train__ema_decay": 0.9, "optim__lr": 0.01},
    }
    train(tiny_run(tmp_path, train__steps=3, run__output_dir=tmp_path / "whole", **keys))
    shutil.copytree(tmp_path / "whole", tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run/checkpoints/step-000003")  # as if killed before it
    train(tiny_run(tmp_path, train__steps=3, run__resume="auto", **keys))
    assert "resumed at step 2" in (tmp_path / "run/train.log").read_text()
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    ours, theirs = (
        load_file(tmp_path / name / "export/model.safetensors") for name in ("run", "whole")
    )
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    saved = load_file(tmp_path / "run/checkpoints/step-000003/model/trainable.safetensors")
    assert not [name for name in saved if "stages.0." in name or "stages.1." in name]
    assert [name for name in saved if "stages.2." in name]
    weights = {tuple(value.flatten().tolist()) for value in ours.values()}
    for name, value in load_file(tmp_path / "backbone/model.safetensors").items():
        if "num_batches" not in name and value.is_floating_point() and value.ndim > 1:
            early = not any(f"stages.{number}." in name for number in (2, 3))
            assert (tuple(value.flatten().tolist()) in weights) == early, name
    model = AutoModelForObjectDetection.from_pretrained(tmp_path / "run/export")
    assert "frozen up to its stage 2" in (tmp_path / "run/export/README.md").read_text()
    assert model.config.backbone_config.model_type == "resnet"


@pytest.mark.parametrize("freeze", ["stages:4", "stages:40"])
def test_more_stages_than_there_are_to_train_after_are_refused(tmp_path, freeze):
    with pytest.raises(
        UserError, match=rf"{freeze}: the backbone has 4 stages; stages:3 is the most"
    ):
        detector_on(tmp_path / "b", "convnext", freeze=freeze)


@pytest.mark.parametrize("freeze", ["stages:0", "stages:x", "stage:2", "some", "", "stages:-1"])
def test_freeze_that_means_nothing_is_refused(freeze):
    cfg = Config(model=ModelConfig(freeze=freeze), train=TrainConfig(steps=1000))
    with pytest.raises(UserError, match=r"model.freeze .*: must be all, none, or stages:"):
        check_config(cfg, 1)


@pytest.mark.parametrize(
    ("freeze", "decay", "message"),
    [
        ("all", 0.5, "layer_decay 0.5: has no effect with model.freeze all"),
        ("none", 0.0, r"must lie in \(0, 1\]"),
        ("stages:1", 1.5, r"must lie in \(0, 1\]"),
    ],
)
def test_layer_decay_that_means_nothing_is_refused(freeze, decay, message):
    cfg = Config(
        model=ModelConfig(freeze=freeze),
        optim=OptimConfig(layer_decay=decay),
        train=TrainConfig(steps=1000),
    )
    with pytest.raises(UserError, match=message):
        check_config(cfg, 1)


def test_a_plain_vision_transformer_computes_the_same_at_any_size(tmp_path):
    folder = write_backbone(tmp_path, "vit")
    plain = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    backbone = load_backbone(ModelConfig(backbone=str(folder)), 1)
    assert backbone.num_tensors == len(plain.state_dict())
    assert backbone.identity_layers == 8
    for height, width in ((56, 56), (64, 96), (224, 224), (32, 112)):
        pixels = torch.rand(2, 3, height, width)
        if (height, width) == (56, 56):
            pixels = pixels[:, :, :48, :48]
        with torch.no_grad():
            tokens = plain(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
            own = backbone.module.eval()(pixels).feature_maps[0].flatten(2).transpose(1, 2)
        torch.testing.assert_close(own, tokens, rtol=0, atol=1e-6)


def test_broken_plain_vision_transformers_are_refused(tmp_path):
    folder = write_backbone(tmp_path / "a", "vit")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layernorm_after.weight"))
    save_file({n: t for n, t in tensors.items() if n != name}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 tensors .*norm2"):
        load_backbone(ModelConfig(backbone=str(folder)), 1)
    config = ViTConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=40
    )
    ViTModel(config).save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="intermediate_size 40 is no multiple of hidden_size 32"):
        load_backbone(ModelConfig(backbone=str(tmp_path / "b")), 1)


def test_factors_that_dinov2_should_have_are_not_made_up(tmp_path):
    """In a plain vision transformer they are 1, in DINOv2 learnt."""
    folder = write_backbone(tmp_path, "dinov2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layerscale_value": 1.0}))
    file = folder / "model.safetensors"
    tensors = {n: t for n, t in load_file(file).items() if "layer_scale1" not in n}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 4 tensors .*layer_scale1"):
        load_backbone(ModelConfig(backbone=str(folder)), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_canvas_is_cut_off(tmp_path, kind):
    """The last row and column of pixels have a say."""
    detector = detector_on(tmp_path / "b", kind, freeze="all")
    side = detector.rule.full[0]
    assert side % (14 if "dinov2" in kind else 32) == 0
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    for where in ((slice(None), -1), (-1, slice(None))):
        changed = images.clone()
        changed[:, :, where[0], where[1]] += 1
        ours, theirs = (detector.backbone_module(x).feature_maps[-1] for x in (images, changed))
        assert not torch.equal(ours[..., -1, -1], theirs[..., -1, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_stretched_where_padding_would_have_a_say(tmp_path, kind):
    detector = detector_on(tmp_path / "b", kind)
    whole_canvas = kind in (*FLAT, "pvt_v2", "convnextv2")
    assert detector.rule.size.fit == ("stretch" if whole_canvas else "pad")


@pytest.mark.parametrize("head", ["detr", "deimv2", "rf_detr"])
def test_a_whole_detector_trains_from_a_stage_on(donors, head):
    detector = start(donors(head), head, freeze="stages:1")
    backbone = detector.backbone_module
    stages = stages_of(backbone)
    assert len(stages) > 1
    assert not any(p.requires_grad for p in stages[0].parameters())
    assert any(p.requires_grad for p in stages[1].parameters())
    numbers = stage_numbers(backbone, detector.rule.multiple)
    assert {numbers[id(p)] for p in stages[1].parameters()} == {2}
