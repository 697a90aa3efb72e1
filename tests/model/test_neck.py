"""Necks between backbones and heads: what they give, what trains, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from builders import FOUR_IMAGES, losses_of, make_batch, part_of, save_backbone, some
from errors import UserError
from model.backbone import load_backbone, tensor_digests
from model.build import build_model
from necked import ARGS, CASES, CHANNELS, FAST, TAXONOMY, config, necked, save_vit
from settings.checks import check_config
from settings.keys import Config, ImageSizeConfig, OptimConfig, TrainConfig
from training.optim import build_optimizer
from training.state import trainable_tensors

LITE = {**ARGS["deimv2"], "encoder_type": "lite"}
STRIDES = {3: (8, 16, 32), 4: (4, 8, 16, 32)}
ALL = some(CASES, FAST)


@pytest.mark.parametrize("case", ALL)
def test_maps_have_the_strides_that_are_told(tmp_path, case):
    detector = necked(case, tmp_path)
    head, neck = case.split("-")
    number = 4 if head.startswith("mask") else 3
    strides = (4, 8, 16, 32)[:number] if neck == "fpn" else STRIDES[number]
    assert (detector.neck, detector.strides) == (neck, strides)
    module = detector.family.backbone_of(detector.model)
    pixels = torch.randn(2, 3, 64, 96)
    maps = module(pixels).feature_maps
    wanted = [(2, CHANNELS, 64 // stride, 96 // stride) for stride in strides]
    assert [tuple(own.shape) for own in maps] == wanted
    assert module.channels == [CHANNELS] * number
    assert detector.rule.multiple % max(strides) == 0
    assert not detector.unused


@pytest.mark.parametrize("case", ALL)
def test_backbone_is_the_proven_one_and_gives_the_maps_of_its_checkpoint(tmp_path, case):
    """Also after a forward pass of the whole: transformers collects maps by hooks, and twice as many of them
    would give maps of other layers."""
    detector = necked(case, tmp_path)
    cfg = config(case, tmp_path)
    alone = load_backbone(cfg, len(detector.backbone_module.out_features))
    assert tensor_digests(detector.backbone_module) == tensor_digests(alone.module)
    assert detector.backbone.fingerprint == alone.fingerprint
    assert detector.backbone.num_tensors == alone.num_tensors > 10
    assert detector.backbone.strides == alone.strides
    losses_of(detector.trainable.train(), make_batch([1, 2]))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = alone.module.eval()(pixels).feature_maps
    for own, other in zip(detector.backbone_module(pixels).feature_maps, wanted, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("case", ALL)
def test_a_step_changes_the_neck_and_not_the_frozen_backbone(tmp_path, case):
    detector = necked(case, tmp_path)
    trainable = detector.trainable.train()
    backbone, neck = detector.backbone_module, detector.neck_module
    before, frozen = tensor_digests(neck), tensor_digests(backbone)
    own = OptimConfig(lr=1e-3, neck_lr=1e-2)
    optimizer = build_optimizer(detector.model, backbone, own, detector.fresh, neck=neck)
    rates = {group["name"].split(",")[0]: group["base_lr"] for group in optimizer.param_groups}
    assert rates == {"head": 1e-3, "neck": 1e-2}
    grouped = [p for g in optimizer.param_groups if g["name"][:4] == "neck" for p in g["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in neck.parameters()}
    losses_of(trainable, make_batch([1, 2])).total.backward()
    assert all(p.grad is not None for p in neck.parameters())
    assert all(p.grad is None for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    optimizer.step()
    assert tensor_digests(backbone) == frozen
    assert all(digest != before[name] for name, digest in tensor_digests(neck).items())


@pytest.mark.parametrize("case", some(CASES, ["deformable_detr-cnn_branch"]))
def test_checkpoint_has_the_neck_and_not_the_frozen_backbone(tmp_path, case):
    detector = necked(case, tmp_path)
    saved = {id(tensor) for tensor in trainable_tensors(detector.model).values()}
    assert {id(p) for p in detector.neck_module.parameters()} <= saved
    assert not {id(p) for p in detector.backbone_module.parameters()} & saved


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_add_up_to_the_big_batch(tmp_path, case, size):
    """In fp64: 1 x 4 images against 4 x 1 and 2 x 2."""
    detector = necked(case, tmp_path)
    trainable = detector.trainable.double().train()
    batch = make_batch(FOUR_IMAGES["uneven"])
    counts = trainable.counts(batch).alone
    big = losses_of(trainable, batch, counts).total
    big.backward()
    wanted, of_neck = gradient(trainable), gradient(detector.neck_module)
    trainable.zero_grad()
    total = 0.0
    for first in range(0, 4, size):
        small = losses_of(trainable, part_of(batch, slice(first, first + size)), counts).total
        small.backward()
        total += small.item()
    assert total == pytest.approx(big.item(), rel=1e-10)
    assert of_neck.norm() > 0
    assert (gradient(trainable) - wanted).norm() <= 1e-10 * wanted.norm()
    assert (gradient(detector.neck_module) - of_neck).norm() <= 1e-10 * of_neck.norm()


@pytest.mark.parametrize("case", ALL)
def test_maps_do_not_depend_on_batch_mates(tmp_path, case):
    detector = necked(case, tmp_path)
    module = detector.family.backbone_of(detector.model.double().train())
    pixels = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    together = module(pixels).feature_maps
    for place in range(3):
        alone = module(pixels[place : place + 1]).feature_maps
        for own, other in zip(together, alone, strict=True):
            torch.testing.assert_close(own[place], other[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ALL)
def test_predictions_do_not_depend_on_batch_mates(tmp_path, case):
    trainable = necked(case, tmp_path).trainable.double().eval()
    batch = make_batch([1, 2, 0, 1])
    together = trainable.predict(batch)
    for place in range(4):
        alone, own = (
            trainable.predict(part_of(batch, slice(place, place + 1))),
            together.of_image(place),
        )
        assert len(own) == len(alone)
        np.testing.assert_allclose(own.scores, alone.scores, rtol=1e-9)
        np.testing.assert_allclose(own.boxes, alone.boxes, rtol=1e-9, atol=1e-9)


def test_outputs_that_are_asked_for_change_no_map(tmp_path):
    """transformers then hooks the whole model anew."""
    detector = necked("deformable_detr-fpn", tmp_path)
    module, pixels = detector.family.backbone_of(detector.model), torch.randn(1, 3, 128, 128)
    before = module(pixels).feature_maps
    detector.model.eval()(pixels, output_attentions=True, output_hidden_states=True)
    for own, other in zip(module(pixels).feature_maps, before, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("case", ALL)
def test_loss_and_gradient_are_finite_under_autocast(tmp_path, case):
    detector = necked(case, tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = losses_of(detector.trainable.train(), make_batch([1, 2])).total
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(gradient(detector.neck_module)).all()


@pytest.mark.parametrize("neck", ["pyramid", "cnn_branch"])
def test_patches_of_14_px(tmp_path, neck):
    """Half a stride of 14 px and its doubles, on sides that all of them divide."""
    backbone = str(save_vit(tmp_path / "14", patch_size=14, image_size=56))
    detector = necked(f"rt_detr_v2-{neck}", tmp_path, backbone=backbone)
    assert detector.strides == (7, 14, 28)
    assert detector.rule.multiple == 28
    maps = detector.family.backbone_of(detector.model)(torch.zeros(1, 3, 56, 84)).feature_maps
    assert [tuple(m.shape[-2:]) for m in maps] == [(8, 12), (4, 6), (2, 3)]
    masks = necked(f"mask2former-{neck}", tmp_path, backbone=backbone)
    assert masks.strides == (7, 14, 28, 56)


def test_detail_of_the_pixels_reaches_the_finest_map(tmp_path):
    """Two images whose patches are the same but for one pixel of one 8 x 8 cell."""
    module = necked("rt_detr_v2-cnn_branch", tmp_path)
    module = module.family.backbone_of(module.model)
    pixels = torch.zeros(1, 3, 64, 64)
    changed = pixels.clone()
    changed[..., 3, 3] = 4.0
    module.backbone.forward = lambda _: type("", (), {"feature_maps": [torch.zeros(1, 16, 4, 4)]})
    first, second = (module(values).feature_maps[0] for values in (pixels, changed))
    moved = (first - second).abs().amax(dim=1)[0]
    assert moved[0, 0] > 0
    assert moved[4:, 4:].max() == 0


@pytest.mark.parametrize(
    ("head", "features", "neck"),
    [
        ("rt_detr_v2", None, "pyramid"),
        ("d_fine", None, "pyramid"),
        ("mask2former", None, "pyramid"),
        ("maskformer", None, "pyramid"),
        ("mask2former", ["stage1", "stage2", "stage3", "stage4"], "none"),
        ("deimv2", None, "none"),
        ("deformable_detr", None, "none"),
        ("detr", None, "none"),
        ("pmd", None, "none"),
    ],
)
def test_neck_of_a_vision_transformer_by_default(tmp_path, head, features, neck):
    cfg = config(f"{head}-pyramid", tmp_path, neck=None, out_features=features)
    assert build_model(cfg, TAXONOMY, ImageSizeConfig(128)).neck == neck


@pytest.mark.parametrize("head", ["rt_detr_v2", "mask2former", "deformable_detr"])
def test_backbone_of_several_strides_has_no_neck_by_default(tmp_path, head):
    cfg = config(f"{head}-fpn", tmp_path, neck=None)
    detector = build_model(cfg, TAXONOMY, ImageSizeConfig(128))
    assert (detector.neck, detector.neck_module) == ("none", None)


def test_fpn_on_named_stages_adds_coarser_maps(tmp_path):
    detector = necked("rt_detr_v2-fpn", tmp_path, out_features=["stage1", "stage2"])
    assert detector.strides == (4, 8, 16)
    assert detector.backbone.strides == (4, 8)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("rt_detr_v2-fpn", {"backbone": "vit"}, "joins maps of several strides.*pyramid or cnn_br"),
        ("rt_detr_v2-pyramid", {"backbone": "convnext"}, "has them already.*take model.neck fpn"),
        ("rt_detr_v2-cnn_branch", {"backbone": "convnext"}, "take model.neck fpn, or none"),
        ("detr-pyramid", {}, "reads the backbone's own maps; leave model.neck out"),
        ("deimv2-fpn", {"head_args": LITE}, "reads one map.*leave model.neck out"),
        ("linear-pyramid", {"task": "semantic_segmentation"}, "reads the backbone's own maps"),
        ("pmd-cnn_branch", {}, "reads the backbone's own maps"),
    ],
)
def test_necks_that_do_not_fit_are_refused(tmp_path, case, changes, message):
    folders = {"vit": save_vit(tmp_path / "v"), "convnext": save_backbone(tmp_path / "c")}
    changes = {n: str(folders.get(v, v)) if n == "backbone" else v for n, v in changes.items()}
    with pytest.raises(UserError, match=f"model.neck {case.split('-')[1]}: .*{message}"):
        necked(case, tmp_path, **changes)


@pytest.mark.parametrize(
    ("model", "optim", "message"),
    [
        (
            {"neck": "fpn", "backbone": None, "init_from": "x"},
            {},
            "a whole detector .* leave it out",
        ),
        ({"neck": "fpn", "head": "pmd"}, {}, "pmd reads the backbone's own maps"),
        ({"neck_channels": 0}, {}, "model.neck_channels 0: must be greater than 0"),
        ({"neck": "none"}, {"neck_lr": 1e-4}, "optim.neck_lr 0.0001: has no effect"),
        ({"neck": "fpn"}, {"neck_lr": 0.0}, "optim.neck_lr 0.0: must be greater than 0"),
    ],
)
def test_contradictions_are_told_before_anything_is_loaded(model, optim, message):
    cfg = Config(optim=OptimConfig(warmup_steps=1, **optim), train=TrainConfig(steps=4))
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **model))
    with pytest.raises(UserError, match=message):
        check_config(cfg, world=1)


def test_rate_of_a_neck_that_is_not_there_is_refused(tmp_path):
    detector = necked("deformable_detr-pyramid", tmp_path, neck=None)
    with pytest.raises(UserError, match="optim.neck_lr 0.01: has no effect"):
        build_optimizer(detector.model, detector.backbone_module, OptimConfig(neck_lr=0.01))


def test_backbone_that_trains_has_a_group_beside_the_neck(tmp_path):
    detector = necked("deformable_detr-pyramid", tmp_path, freeze="none")
    parts = (detector.model, detector.backbone_module, OptimConfig())
    optimizer = build_optimizer(*parts, neck=detector.neck_module)
    names = {group["name"].split(",")[0] for group in optimizer.param_groups}
    assert names == {"backbone", "neck", "head"}
    losses_of(detector.trainable.train(), make_batch([1])).total.backward()
    trained = [p for p in detector.model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
