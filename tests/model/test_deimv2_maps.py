"""deimv2 on a plain vision transformer, and with its lite encoder."""

import pytest
import torch
from transformers import (
    AutoModelForObjectDetection,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
)

from builders import TINY_HEAD, losses_of, make_batch, save_backbone
from donors import OTHERS, SIDE_PX, inputs, start, taxonomy
from errors import UserError
from model.build import build_model
from settings.keys import ImageSizeConfig, ModelConfig

VIT = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4},
    **{"num_attention_heads": 2, "num_register_tokens": 2, "image_size": 64},
}
THREE_MAPS = ["stage2", "stage3", "stage4"]
LITE = {**TINY_HEAD["deimv2"], "encoder_type": "lite"}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    DINOv3ViTBackbone(DINOv3ViTConfig(**VIT)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def convnext(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("convnext") / "backbone")


def build(folder, features=None, args=TINY_HEAD["deimv2"], names=("a", "b", "c"), **changes):
    torch.manual_seed(0)
    cfg = ModelConfig(
        backbone=str(folder), out_features=features, head="deimv2", head_args=args, **changes
    )
    return build_model(cfg, taxonomy(names), ImageSizeConfig(SIDE_PX))


def two_steps(detector):
    trainable, batch = detector.trainable.train(), make_batch([2, 1])
    trainable.prepare([batch])
    parameters = [p for p in detector.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-5)  # little, so that other queries are not chosen
    values = []
    for _ in range(2):
        loss = losses_of(trainable, batch).total
        loss.backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[1] < values[0]


def assert_saved_whole(detector, folder):
    """transformers predicts the same with what is saved, and training can start from it again."""
    detector.model.save_pretrained(folder)
    detector.trainable.processor.save_pretrained(folder)
    model, info = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    batch = make_batch([1, 2])
    with torch.no_grad():
        pixels = inputs(detector, batch)
        first, second = detector.model.eval()(pixel_values=pixels), model.eval()(pixels)
    torch.testing.assert_close(second.logits, first.logits)
    torch.testing.assert_close(second.pred_boxes, first.pred_boxes)
    again = start(folder, "deimv2", OTHERS)
    ours = again.model.state_dict()
    same = [n for n, v in model.state_dict().items() if torch.equal(v, ours[n])]
    assert len(ours) - len(same) < 12
    assert all("class_embed" in n or "enc_score" in n for n in ours if n not in same)


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_on_a_vision_transformer(vit, freeze, tmp_path):
    detector = build(vit, THREE_MAPS, freeze=freeze)
    assert detector.backbone.strides == (16, 16, 16)
    assert list(detector.model.config.feat_strides) == [8, 16, 32]
    two_steps(detector)
    assert_saved_whole(detector, tmp_path / "saved")


def test_last_three_layers_are_read_by_default(vit):
    """Their output norm is that of the backbone."""
    assert list(build(vit).model.config.backbone_config.out_features) == THREE_MAPS


@pytest.mark.parametrize("features", [["stage4"], ["stage3", "stage4"], ["stage1", *THREE_MAPS]])
def test_another_number_of_maps_of_a_vision_transformer_is_refused(vit, features):
    message = (
        rf"model.out_features: deimv2 reads 3 map\(s\) here, and the backbone gives {len(features)}"
    )
    with pytest.raises(UserError, match=message):
        build(vit, features)


def test_lite_encoder_on_one_map(convnext, tmp_path):
    detector = build(convnext, args=LITE)
    stride = detector.backbone.strides[-1]
    assert detector.backbone.strides == (stride,)
    assert list(detector.model.config.feat_strides) == [stride, 2 * stride]
    assert detector.model.config.num_feature_levels == 2
    two_steps(detector)
    assert_saved_whole(detector, tmp_path / "saved")


@pytest.mark.parametrize("features", [["stage2", "stage3"], ["stage1", "stage2", "stage3"]])
def test_lite_encoder_on_several_maps_is_refused(convnext, features):
    message = rf"deimv2 reads 1 map\(s\) here, and the backbone gives {len(features)}"
    with pytest.raises(UserError, match=message):
        build(convnext, features, LITE)


def test_lite_encoder_on_a_vision_transformer_is_refused(vit):
    with pytest.raises(UserError, match=r"model.out_features|model.head_args"):
        build(vit, ["stage4"], LITE)


def test_maps_whose_strides_do_not_double_are_refused(vit, convnext):
    with pytest.raises(UserError, match=r"strides double .* are 4, 16"):
        build(convnext, ["stage1", "stage3"])
    cfg = ModelConfig(
        backbone=str(vit),
        out_features=THREE_MAPS,
        head="d_fine",
        head_args=TINY_HEAD["d_fine"],
    )
    with pytest.raises(UserError, match=r"strides double .* are 16, 16, 16.*deformable_detr"):
        build_model(cfg, taxonomy(OTHERS), ImageSizeConfig(SIDE_PX))
