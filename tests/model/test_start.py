"""A whole pretrained detector to start from."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForObjectDetection

from builders import REAL_TIME, TINY_HEAD, losses_of, make_batch, save_backbone, tiny_detector
from data.taxonomy import Taxonomy
from donors import (
    DONOR_CLASSES,
    FIRST_PATCHES,
    FIRST_WEIGHT,
    HEADS,
    ON_BACKBONES,
    OTHERS,
    SIDE_PX,
    SOME,
    changed_copy,
    config_of,
    in_file,
    inputs,
    saved,
    start,
    taxonomy,
    whole,
    write_donor,
)
from model.backbone import tensor_digests
from model.build import build_model
from model.heads.held_norm import HeldBatchNorm
from model.start import completed
from settings.keys import Config, ImageSizeConfig, ModelConfig, OptimConfig
from training.optim import build_optimizer

FOCAL = HEADS[1:]
"""Heads whose classes begin at a low score"""


def is_of_classes(name):
    return any(part in name for part in ("class_embed", "class_labels", "enc_score_head"))


@pytest.mark.parametrize("head", HEADS)
def test_all_but_the_layers_of_the_classes_are_the_donors(donors, head):
    detector = start(donors(head), head)
    theirs, ours = saved(donors(head)), detector.model.state_dict()
    assert ours.keys() == theirs.keys()
    of_classes = {name for name in ours if is_of_classes(name)}
    assert of_classes
    for name in ours:
        same = ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name])
        assert same != (name in of_classes), name
    trained = {name for name, _ in detector.model.named_parameters()}
    assert set(detector.fresh) == of_classes & trained
    assert len(detector.fresh) == len(set(detector.fresh))
    in_backbone = {id(p) for p in detector.backbone_module.parameters()}
    of_head = [n for n, p in detector.model.named_parameters() if id(p) not in in_backbone]
    assert detector.taken == len(of_head) - len(detector.fresh) > 50
    assert detector.unused == ()
    assert detector.model.config.id2label == {0: "x", 1: "y"}


@pytest.mark.parametrize("head", HEADS)
def test_new_classes_begin_as_in_a_head_from_nothing(donors, head):
    parameters = dict(start(donors(head), head).model.named_parameters())
    for name, value in parameters.items():
        if not is_of_classes(name):
            continue
        if name.endswith("bias") and head in FOCAL:
            torch.testing.assert_close(value, torch.full_like(value, -math.log(99)))
        if name.endswith("weight"):
            assert value.std() > 0.01, name
        if "denoising" in name:
            assert value[-1].abs().sum() == 0  # of no class


@pytest.mark.parametrize("head", SOME)
def test_as_many_classes_of_other_names_are_new_and_those_of_the_donor_are_taken(donors, head):
    theirs = saved(donors(head))
    renamed = start(donors(head), head, ("a", "b", "z"))
    same = start(donors(head), head, DONOR_CLASSES)
    assert same.fresh == ()
    assert all(torch.equal(v, theirs[n]) for n, v in same.model.state_dict().items())
    changed = [n for n, v in renamed.model.state_dict().items() if not torch.equal(v, theirs[n])]
    assert {n for n in changed if n.endswith("weight")} == {
        n for n in theirs if is_of_classes(n) and n.endswith("weight")
    }
    assert all(is_of_classes(name) for name in (*changed, *renamed.fresh))
    assert len(renamed.fresh) == len(start(donors(head), head).fresh)


@pytest.mark.parametrize("head", SOME)
def test_donor_is_predicted_with_as_transformers_does(donors, head):
    """The same classes, so nothing is new."""
    detector = start(donors(head), head, DONOR_CLASSES)
    model = AutoModelForObjectDetection.from_pretrained(donors(head)).eval()
    batch = make_batch([1, 2])
    with torch.no_grad():
        wanted = model(pixel_values=inputs(detector, batch), pixel_mask=batch.pixel_mask)
    sizes = torch.tensor(batch.orig_sizes)
    process = detector.trainable.processor.post_process_object_detection
    found = detector.trainable.eval().predict(batch)
    for row, result in enumerate(process(wanted, threshold=-1.0, target_sizes=sizes)):
        scores = result["scores"].sort(descending=True).values.double().numpy()
        np.testing.assert_allclose(found.of_image(row).scores, scores, rtol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_frozen_backbone_of_a_donor_gets_no_gradient(donors, head):
    detector = start(donors(head), head)
    before = tensor_digests(detector.backbone_module)
    optimizer = torch.optim.SGD([p for p in detector.model.parameters() if p.requires_grad], lr=1.0)
    losses_of(detector.trainable.train(), make_batch([1, 2], num_classes=2)).total.backward()
    optimizer.step()
    assert all(p.grad is None for p in detector.backbone_module.parameters())
    assert not any(m.training for m in detector.backbone_module.modules())
    assert all(p.grad is not None for p in detector.model.parameters() if p.requires_grad)
    assert tensor_digests(detector.backbone_module) == before


@pytest.mark.parametrize("head", ["detr", "deimv2", "rf_detr"])
def test_backbone_of_a_donor_is_trained_where_asked_for(donors, head):
    detector = start(donors(head), head, freeze="none")
    losses_of(detector.trainable.train(), make_batch([1, 2], num_classes=2)).total.backward()
    still = {n for n, p in detector.backbone_module.named_parameters() if p.grad is None}
    # What DINOv2 puts in place of hidden patches in its pretraining.
    masked = {"embeddings.mask_token"} if head == "rf_detr" else set()
    assert still == masked
    assert {name.removeprefix("model.backbone.backbone.") for name in detector.unused} == masked


@pytest.mark.parametrize("head", SOME)
def test_fingerprint_is_that_of_the_donors_backbone(donors, head, tmp_path):
    backbone = start(donors(head), head).backbone
    assert start(donors(head), head, DONOR_CLASSES).backbone.fingerprint == backbone.fingerprint
    assert backbone.num_tensors == len(tensor_digests(backbone.module)) > 10
    assert backbone.normalization.mean == (0.5,) * 3
    assert (backbone.is_local, backbone.name) == (True, str(donors(head)))
    name = in_file(donors(head), FIRST_PATCHES if head == "rf_detr" else FIRST_WEIGHT)
    other = changed_copy(donors(head), tmp_path / "other", lambda t: t[name].add_(1))
    assert start(other, head).backbone.fingerprint != backbone.fingerprint


@pytest.mark.parametrize("head", REAL_TIME)
def test_batch_norms_keep_the_donors_statistics(donors, head):
    detector = start(donors(head), head)
    theirs = saved(donors(head))
    norms = {n: m for n, m in detector.model.named_modules() if isinstance(m, HeldBatchNorm)}
    assert len(norms) > 10
    assert all(norm.known for norm in norms.values())
    batch = make_batch([1, 2], num_classes=2)
    detector.trainable.prepare([batch])
    optimizer = torch.optim.SGD([p for p in detector.model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        losses_of(detector.trainable.train(), batch).total.backward()
        optimizer.step()
    for name, norm in norms.items():
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(norm, statistic), theirs[f"{name}.{statistic}"]), name
        assert not torch.equal(norm.weight, theirs[f"{name}.weight"])


def test_statistics_of_a_head_from_nothing_are_measured(tmp_path):
    """Those of the same head that is not another's."""
    write_donor(tmp_path / "donor", "d_fine")
    cfg = ModelConfig(backbone=str(save_backbone(tmp_path / "b")), head="d_fine")
    args = json.loads((tmp_path / "donor/config.json").read_text())
    names = ("d_model", "encoder_hidden_dim", "num_queries", "decoder_layers", "encoder_ffn_dim")
    cfg = dataclasses.replace(cfg, head_args={name: args[name] for name in names})
    detector = build_model(cfg, taxonomy(OTHERS))
    norms = [m for m in detector.model.modules() if isinstance(m, HeldBatchNorm)]
    assert not any(norm.known for norm in norms)
    detector.trainable.prepare([make_batch([1, 2], num_classes=2)])
    assert all(norm.known for norm in norms)
    assert all(norm.running_mean.abs().sum() > 0 for norm in norms)


@pytest.mark.parametrize("head", HEADS)
def test_head_and_image_size_come_from_the_donor(donors, head):
    cfg = completed(config_of(whole(donors(head), None)))
    assert cfg.model.head == head
    fit = "stretch" if head in [*REAL_TIME, "rf_detr"] else "pad"
    assert cfg.data.image_size == ImageSizeConfig(SIDE_PX, None, fit)
    assert completed(cfg) == cfg
    assert completed(config_of(whole(donors(head), None), 96)).data.image_size.longest == 96


def test_shortest_side_comes_from_the_donor_where_it_is_not_given(donors, tmp_path):
    folder = changed_copy(donors("detr"), tmp_path / "donor")
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    settings["size"] = {"shortest_edge": 48, "longest_edge": 80}
    file.write_text(json.dumps(settings))
    assert completed(config_of(whole(folder, None))).data.image_size == ImageSizeConfig(
        80, 48, "pad"
    )
    given = config_of(whole(folder, None), shortest=40)
    assert completed(given).data.image_size == ImageSizeConfig(80, 40, "pad")


def test_configuration_that_says_all_is_left_alone():
    cfg = Config()
    assert completed(cfg) is cfg


@pytest.mark.parametrize("head", SOME)
def test_new_layers_learn_at_their_own_rate(donors, head):
    detector = start(donors(head), head, freeze="none")
    cfg = OptimConfig(lr=1e-4, new_layers_lr=1e-2, backbone_lr=1e-6)
    optimizer = build_optimizer(detector.model, detector.backbone_module, cfg, detector.fresh)
    names = {id(p): n for n, p in detector.model.named_parameters()}
    rates = {names[id(p)]: g["base_lr"] for g in optimizer.param_groups for p in g["params"]}
    assert {n for n, rate in rates.items() if rate == 1e-2} == set(detector.fresh)
    inside = {id(p) for p in detector.backbone_module.parameters()}
    of_backbone = {n for i, n in names.items() if i in inside} - set(detector.unused)
    assert {n for n, rate in rates.items() if rate == 1e-6} == of_backbone
    assert set(rates) == {n for n, p in detector.model.named_parameters() if p.requires_grad}


def test_tensor_of_the_head_that_the_donor_lacks_is_new_on_another_backbone(donors, tmp_path):
    """Taken whole it is refused."""
    name = "model.enc_output.0.weight"
    folder = changed_copy(donors("d_fine"), tmp_path / "donor", lambda t: t.pop(name))
    backbone = save_backbone(tmp_path / "other")
    args = {**TINY_HEAD["d_fine"]}
    detector = start(folder, "d_fine", DONOR_CLASSES, backbone=str(backbone), head_args=args)
    assert name in detector.fresh
    bound = detector.model.config.d_model**-0.5
    assert 0.5 * bound < detector.model.state_dict()[name].abs().max() <= bound  # torch's own


@pytest.mark.parametrize("head", ON_BACKBONES)
def test_head_of_a_donor_on_a_backbone_of_another_width(donors, head, tmp_path):
    """Convolutions that read the backbone's maps have other shapes."""
    backbone = save_backbone(tmp_path / "wide", hidden_sizes=[8, 24, 40])
    args = {**TINY_HEAD[head]}
    detector = start(donors(head), head, DONOR_CLASSES, backbone=str(backbone), head_args=args)
    theirs, ours = saved(donors(head)), detector.model.state_dict()
    other = {n for n, v in ours.items() if v.shape != theirs[n].shape and "stages" not in n}
    assert set(detector.fresh) >= {name for name in other if "norms" not in name} != set()
    assert all("proj" in name for name in detector.fresh)


def test_matching_weights_of_a_donor_can_be_changed(donors):
    args = {"matcher_class_cost": 3.5, "num_denoising": 4, "weight_loss_giou": 7.0}
    detector = start(donors("rt_detr_v2"), "rt_detr_v2", head_args=args)
    assert detector.trainable.criterion.config.matcher_class_cost == 3.5
    assert detector.trainable.criterion.weights["loss_giou"] == 7.0


@pytest.mark.parametrize("whole", [True, False])
def test_a_whole_number_is_a_float_where_one_is_needed(donors, tmp_path, whole):
    args = {**TINY_HEAD["deimv2"], "matcher_class_cost": 4, "weight_loss_mal": 4}
    if whole:
        args = {"matcher_class_cost": 4, "weight_loss_mal": 4}
        detector = start(donors("deimv2"), "deimv2", head_args=args)
    else:
        backbone = save_backbone(tmp_path / "backbone")
        cfg = ModelConfig(backbone=str(backbone), head="deimv2", head_args=args)
        detector = build_model(cfg, Taxonomy(("plate",), (0,)), ImageSizeConfig(64))
    config = detector.model.config
    assert (config.matcher_class_cost, config.weight_loss_mal) == (4.0, 4.0)


def test_image_size_given_for_evaluation_is_not_kept(donors, tmp_path):
    """transformers would leave position embeddings out of evaluation."""
    folder = changed_copy(donors("deimv2"), tmp_path / "donor")
    config = json.loads((folder / "config.json").read_text())
    config |= {"eval_size": [64, 64], "anchor_image_size": [64, 64]}
    (folder / "config.json").write_text(json.dumps(config))
    detector = start(folder, "deimv2", DONOR_CLASSES)
    assert detector.model.config.eval_size is None
    batch = make_batch([1])
    pixels = inputs(detector, batch)
    with torch.no_grad():
        evaluated = detector.model.eval()(pixel_values=pixels).pred_boxes
        trained = detector.model.train()(pixel_values=pixels).pred_boxes
    assert torch.equal(evaluated, trained)


@pytest.mark.parametrize("head", REAL_TIME)
def test_batch_norms_of_a_head_from_nothing_begin_as_torchs(tmp_path, head):
    """transformers draws those of RT-DETR v2 from N(0, 0.01), of either sign."""
    norms = [
        m
        for m in tiny_detector(tmp_path / "backbone", head).model.modules()
        if isinstance(m, HeldBatchNorm)
    ]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


@pytest.mark.parametrize("head", ON_BACKBONES)
def test_what_a_head_from_nothing_does_not_train_a_donors_does_not_either(donors, head, tmp_path):
    """Where the bins of edges are (`up`, `reg_scale`) is no weight; the loss reads it in the config."""
    from_nothing, from_donor = (
        {n for n, p in model.named_parameters() if not p.requires_grad}
        for model in (
            tiny_detector(tmp_path / "backbone", head).model,
            start(donors(head), head).model,
        )
    )
    assert from_donor == from_nothing
