"""RF-DETR, which is taken whole: its groups of queries, its windows, and what is refused."""

import json

import pytest
import torch
from transformers import (
    AutoModelForObjectDetection,
    RfDetrConfig,
    RfDetrForInstanceSegmentation,
)
from transformers.models.rf_detr.modeling_rf_detr import RfDetrAttention

from builders import make_batch, save_backbone
from data.batch import Batch
from donors import (
    DONOR_CLASSES,
    OTHERS,
    TINY_RF_DETR,
    changed_copy,
    config_of,
    inputs,
    saved,
    start,
    taxonomy,
    whole,
    write_donor,
)
from errors import UserError
from export.detector import load_detector
from model.build import build_model
from model.heads.registry import get_family
from model.start import completed
from run.banner import rounding
from settings.keys import Config, DataConfig, ImageSizeConfig, ModelConfig
from settings.load import load_config

HEAD = "rf_detr"
OWN = "model.head rf_detr with model.backbone .*: it has a windowed DINOv2 of its own"


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    return write_donor(tmp_path_factory.mktemp("donor") / HEAD, HEAD)


def found(trainable, batch):
    """Boxes and scores of each image."""
    objects = trainable.eval().predict(batch)
    return [objects.of_image(row) for row in range(len(batch.num_objects))]


def squares(num, side=64, seed=0):
    """Images that fill their canvas."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (num, 3, side, side), generator=generator).byte()
    mask = torch.ones(num, side, side, dtype=torch.bool)
    return Batch(pixels, mask, make_batch([0]).objects, [0] * num, orig_sizes=[(side, side)] * num)


def one_of(batch, row):
    rows = slice(row, row + 1)
    mask = batch.pixel_mask[rows]
    return Batch(
        batch.pixel_values[rows], mask, batch.objects, [0], orig_sizes=batch.orig_sizes[rows]
    )


def test_only_the_first_group_predicts(donor):
    detector = start(donor, HEAD, DONOR_CLASSES)
    batch, num = squares(2), TINY_RF_DETR["num_queries"]
    before = found(detector.trainable, batch)
    base = detector.model.model
    with torch.no_grad():
        for rows in (base.query_feat.weight, base.reference_point_embed.weight):
            rows[num:] += 1.0
        for part in (base.enc_output, base.enc_out_class_embed, base.enc_out_bbox_embed):
            for parameter in part[1:].parameters():
                parameter += 1.0
    for own, other in zip(before, found(detector.trainable, batch), strict=True):
        assert (own.scores == other.scores).all()
        assert (own.boxes == other.boxes).all()
        assert len(own) == num
    with torch.no_grad():
        base.query_feat.weight[:num] += 1.0
    assert (found(detector.trainable, batch)[0].scores != before[0].scores).any()


def test_other_images_of_a_batch_change_nothing(donor):
    trainable = start(donor, HEAD, DONOR_CLASSES).trainable.double()
    batch = squares(3)
    for row, together in enumerate(found(trainable, batch)):
        (alone,) = found(trainable, one_of(batch, row))
        torch.testing.assert_close(*map(torch.from_numpy, (alone.scores, together.scores)))
        torch.testing.assert_close(*map(torch.from_numpy, (alone.boxes, together.boxes)))


def test_padding_is_a_part_of_the_image_to_it(donor):
    """Why every image is stretched: its backbone does not know the mask."""
    model = start(donor, HEAD, DONOR_CLASSES).model.eval()
    torch.manual_seed(0)
    pixels, mask = torch.randn(1, 3, 128, 128), torch.zeros(1, 128, 128, dtype=torch.bool)
    mask[:, :64, :64] = True
    other = torch.where(mask[:, None], pixels, torch.zeros(()))
    with torch.no_grad():
        first, second = (model(pixel_values=p, pixel_mask=mask).logits for p in (pixels, other))
    assert not torch.allclose(first, second, atol=1e-3)
    message = "data.image_size.fit pad: rf_detr takes padding for a part of the image"
    with pytest.raises(UserError, match=message):
        build_model(whole(donor, HEAD), taxonomy(OTHERS), ImageSizeConfig(128, fit="pad"))


@pytest.mark.parametrize(
    ("patch", "windows", "given", "side"),
    [(14, 4, 560, 560), (14, 4, 500, 504), (16, 2, 512, 512), (20, 2, 128, 160), (12, 1, 100, 108)],
)
def test_sides_are_multiples_of_the_windows(tmp_path, patch, windows, given, side):
    """Those of the authors' sizes, 14 px x 4 to 20 px x 2; an odd probe would break the backbone."""
    sizes = {"patch_size": patch, "num_windows": windows, "image_size": 2 * patch * windows}
    donor = write_donor(tmp_path / HEAD, HEAD, windows=sizes)
    detector = build_model(whole(donor, HEAD), taxonomy(OTHERS), ImageSizeConfig(given))
    assert detector.rule.size == ImageSizeConfig(side, None, "stretch")
    assert detector.rule.full == (side, side)
    assert set(detector.backbone.strides) == {patch}
    assert side % (patch * windows) == 0
    said = list(rounding(Config(data=DataConfig(image_size=ImageSizeConfig(given))), detector))
    assert len(said) == (given != side)
    assert all(f"longest {given} is no multiple of {patch * windows}" in line for line in said)
    detector.model.save_pretrained(tmp_path / "export")
    detector.trainable.processor.save_pretrained(tmp_path / "export")
    assert load_detector(str(tmp_path / "export")).rule.full == (side, side)


def test_more_queries_than_patches(tmp_path):
    donor = write_donor(tmp_path / HEAD, HEAD, num_queries=257)
    with pytest.raises(UserError, match=r"num_queries 257: images of 128 px .* 160 has enough"):
        start(donor, HEAD)


@pytest.mark.parametrize("key", ["group_detr", "num_queries", "num_feature_levels"])
def test_arguments_on_which_the_queries_depend_are_refused(donor, key):
    with pytest.raises(UserError, match=f"model.head_args.{key}: "):
        start(donor, HEAD, head_args={key: 1})


def test_losses_can_be_weighed_anew(donor):
    args = {"class_cost": 3.5, "giou_loss_coefficient": 7.0, "dropout": 0.25, "focal_alpha": 0.5}
    detector = start(donor, HEAD, head_args=args)
    assert detector.trainable.criterion.config.class_cost == 3.5
    assert detector.trainable.criterion.weights["loss_giou"] == 7.0
    assert detector.model.model.decoder.layers[0].mlp.dropout == 0.25


def test_backbone_beside_it_is_refused_when_the_configuration_is_read(donor, tmp_path):
    with pytest.raises(UserError, match=f"{OWN}; set model.backbone null and model.init_from"):
        load_config(["--model.head", HEAD])
    backbone = str(save_backbone(tmp_path / "backbone"))
    cfg = completed(config_of(whole(donor, None, backbone=backbone)))
    for model in (cfg.model, ModelConfig(backbone=backbone, head=HEAD)):
        with pytest.raises(UserError, match=OWN):
            build_model(model, taxonomy(OTHERS))
    nothing = ["--model.backbone", "null", "--model.out_features", "null"]
    cfg = load_config(["--model.head", HEAD, "--model.init_from", "x", *nothing])
    assert cfg.model.head == HEAD


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
@pytest.mark.parametrize("end", ["weight", "bias"])
def test_parts_of_a_fused_tensor_are_compared_with_the_file(donor, part, end, monkeypatch):
    """The file has query, key and value of self-attention in one tensor."""
    kind = get_family(HEAD).model_class
    load = kind.from_pretrained

    def careless(*args, **kwargs):
        model, info = load(*args, **kwargs)
        with torch.no_grad():
            getattr(model.model.decoder.layers[1].self_attn, part).get_parameter(end).mul_(1.001)
        return model, info

    monkeypatch.setattr(kind, "from_pretrained", careless)
    message = rf"1 of \d+ tensors do not equal .*layers.1.self_attn.{part}.{end}"
    with pytest.raises(UserError, match=message):
        start(donor, HEAD)


def test_no_tensor_is_lost_shared_or_normalised_by_the_batch(donor, tmp_path):
    detector = start(donor, HEAD)
    state = detector.model.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in detector.model.modules())
    detector.model.save_pretrained(tmp_path / "saved")
    again = saved(tmp_path / "saved")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())
    config = json.loads((tmp_path / "saved/config.json").read_text())
    assert config["id2label"] == {"0": "x", "1": "y"}


def test_proposals_of_every_group_begin_with_the_classes_of_the_queries(donor):
    model = start(donor, HEAD).model
    layers = [model.class_embed, *model.model.enc_out_class_embed]
    assert len(layers) == 1 + TINY_RF_DETR["group_detr"]
    for layer in layers:
        assert torch.equal(layer.weight, model.class_embed.weight)
        assert torch.equal(layer.bias, model.class_embed.bias)


def test_dropout_of_attention_is_of_training_alone(donor):
    detector = start(donor, HEAD, head_args={"attention_dropout": 0.5})
    batch = make_batch([1, 2], num_classes=2)
    trainable = detector.trainable.eval()
    first, second = (trainable(batch, trainable.counts(batch).alone).total for _ in range(2))
    assert torch.equal(first, second)
    attentions = [m for m in detector.model.modules() if isinstance(m, RfDetrAttention)]
    assert {m.attention_dropout for m in attentions} == {0.5}
    trainable.train()
    first, second = (trainable(batch, trainable.counts(batch).alone).total for _ in range(2))
    assert not torch.equal(first, second)


def test_boxes_of_a_segmenter_are_taken_without_its_masks(donor, tmp_path):
    folder = changed_copy(donor, tmp_path / HEAD)
    torch.manual_seed(0)
    RfDetrForInstanceSegmentation(RfDetrConfig.from_pretrained(donor)).save_pretrained(folder)
    detector = start(folder, HEAD, DONOR_CLASSES)
    assert detector.fresh == ()
    assert not any("segmentation" in name for name in detector.model.state_dict())


def test_predictions_are_those_of_its_own_model(donor):
    detector = start(donor, HEAD, DONOR_CLASSES)
    batch = squares(2)
    model = AutoModelForObjectDetection.from_pretrained(donor).eval()
    with torch.no_grad():
        wanted = model(pixel_values=inputs(detector, batch))
    scores = wanted.logits.sigmoid().flatten(1).topk(TINY_RF_DETR["num_queries"]).values
    for own, other in zip(found(detector.trainable, batch), scores, strict=True):
        torch.testing.assert_close(torch.from_numpy(own.scores).float(), other)
