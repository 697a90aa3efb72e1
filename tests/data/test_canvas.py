import numpy as np
import pytest
import torch
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    Dinov2Backbone,
    Dinov2Config,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
)

from builders import TINY_HEAD, save_backbone
from data.canvas import CanvasRule, resized_size, resized_sizes, side_multiple, step_canvas
from data.taxonomy import Taxonomy
from errors import UserError
from model.build import build_model
from settings.keys import ImageSizeConfig, ModelConfig

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("strides", "multiple"),
    [([16], 32), ([4, 8, 16, 32], 32), ([14], 14), ([14, 28], 28), ([8, 16, 32, 64], 64)],
)
def test_multiples_fit_every_stride(strides, multiple):
    assert side_multiple(strides) == multiple


def make(folder, kind, config, head="detr", **arguments):
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    cfg = ModelConfig(
        backbone=str(folder), head=head, head_args={**TINY_HEAD[head], "d_model": 32, **arguments}
    )
    return build_model(cfg, Taxonomy(("a",), (0,)), ImageSizeConfig(100, fit="pad"))


@pytest.mark.parametrize(
    ("kind", "config", "multiple"),
    [
        (Dinov2Backbone, Dinov2Config(**VIT, patch_size=14, image_size=224), 14),
        (DINOv3ViTBackbone, DINOv3ViTConfig(**VIT, patch_size=16), 32),
        (ConvNextBackbone, ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4), 32),
    ],
)
def test_canvas_has_the_multiple_of_the_backbone(tmp_path, kind, config, multiple):
    """So the last patch of a canvas is seen: 96 px would lose 12 of them to patches of 14."""
    detector = make(tmp_path / "b", kind, config)
    assert detector.rule.multiple == multiple
    (stride,) = detector.backbone.strides
    height, width = step_canvas(np.array([(90, 61)]), detector.rule.multiple)
    assert height % multiple == width % multiple == 0
    features = detector.backbone_module(torch.zeros(1, 3, height, width)).feature_maps[0]
    assert (features.shape[2] * stride, features.shape[3] * stride) == (height, width)
    padded = detector.trainable.processor.pad_size
    assert (padded["height"], padded["width"]) == detector.rule.full


def test_further_levels_of_a_head_count(tmp_path):
    save_backbone(tmp_path / "b", hidden_sizes=[8, 8, 16, 16], depths=[1] * 4)
    for levels, multiple in ((1, 32), (3, 64)):  # from two maps: strides 16 and 32, then 64
        arguments = {**TINY_HEAD["deformable_detr"], "num_feature_levels": levels}
        cfg = ModelConfig(backbone=str(tmp_path / "b"), head="deformable_detr", head_args=arguments)
        assert build_model(cfg, Taxonomy(("a",), (0,))).rule.multiple == multiple


@pytest.mark.parametrize(
    "rule",
    [
        CanvasRule.fitted(ImageSizeConfig(192), 32, "pad"),
        CanvasRule.fitted(ImageSizeConfig(100), 14, "pad"),
        CanvasRule.fitted(ImageSizeConfig(1333, 800), 64, "pad"),
        CanvasRule.fitted(ImageSizeConfig(100, 50), 32, "stretch"),
        CanvasRule.fitted(ImageSizeConfig(100, fit="stretch"), 14, "pad"),
    ],
)
def test_rule_comes_back_from_the_exported_processors_settings(rule):
    again = CanvasRule.of_processor(rule.processor_settings())
    assert again.full == rule.full
    assert again.size == rule.size
    assert again.resized(480, 640) == rule.resized(480, 640) == resized_size(480, 640, rule.size)


def test_processor_that_resizes_otherwise_is_refused():
    with pytest.raises(ValueError, match="resizes to .*not supported"):
        CanvasRule.of_processor({"size": {"height": 640, "width": 480}})


def test_mask_heads_have_canvases_of_whole_squares(tmp_path):
    """A stride of 14, as DINOv2 has it, and squares of 4 x 4 pixels."""
    save_backbone(tmp_path / "b")
    cfg = ModelConfig(
        "instance_segmentation",
        str(tmp_path / "b"),
        head="maskformer",
        head_args=TINY_HEAD["maskformer"],
    )
    with pytest.raises(UserError, match=r"data.image_size.shortest 50: images are stretched"):
        build_model(cfg, Taxonomy(("a",), (0,)), ImageSizeConfig(100, 50))
    with pytest.raises(UserError, match=r"data.image_size.fit pad: maskformer takes padding"):
        build_model(cfg, Taxonomy(("a",), (0,)), ImageSizeConfig(100, fit="pad"))
    rule = build_model(cfg, Taxonomy(("a",), (0,)), ImageSizeConfig(100)).rule
    assert rule.full == rule.resized(30, 400) == (128, 128)
    assert side_multiple([14, 14, 4]) == 28


def test_processor_that_stretches_need_not_pad():
    rule = CanvasRule.of_processor({"size": {"height": 640, "width": 640}, "do_pad": False})
    assert rule.resized(100, 300) == (640, 640)
    with pytest.raises(ValueError, match="do_pad false"):
        CanvasRule.of_processor({"size": {"max_height": 64, "max_width": 64}, "do_pad": False})


@pytest.mark.parametrize(
    "size", [ImageSizeConfig(longest=96), ImageSizeConfig(longest=96, fit="stretch")]
)
def test_sizes_of_many_images_are_those_of_each(size):
    sizes = np.random.default_rng(0).integers(20, 40, (300, 2))
    each = [resized_size(height, width, size) for height, width in sizes.tolist()]
    np.testing.assert_array_equal(resized_sizes(sizes, size), each)
    assert resized_sizes(sizes[:0], size).shape == (0, 2)
