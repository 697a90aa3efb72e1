"""The losses of rf_detr against those of transformers, and where those go wrong."""

import dataclasses

import pytest
import torch
import transformers.loss.loss_lw_detr as theirs_file
from transformers.loss.loss_lw_detr import LwDetrForObjectDetectionLoss, LwDetrHungarianMatcher

from benchmarks.default_criterion import labels_of
from builders import FOUR_IMAGES, four_images, losses_of, make_batch, part_of, tiny_detector
from donors import TINY_RF_DETR
from model.losses.set_criterion import SetOutputs

GROUPS, QUERIES = TINY_RF_DETR["group_detr"], TINY_RF_DETR["num_queries"]
FEW = {"class_cost": 0.5, "bbox_cost": 1.0, "giou_cost": 4.0, "focal_alpha": 0.6}
FEW |= {"class_loss_coefficient": 3.0, "bbox_loss_coefficient": 0.7, "giou_loss_coefficient": 1.3}


def make(tmp_path, dtype=torch.float64, **config):
    detector = tiny_detector(tmp_path / "backbone", "rf_detr")
    detector.trainable.to(dtype).train()
    for name, value in config.items():
        setattr(detector.model.config, name, value)
    detector.trainable.criterion = detector.family.criterion(detector.model.config)
    return detector


def pixels(detector, batch):
    trainable = detector.trainable
    return trainable.normalization(batch.pixel_values, batch.pixel_mask).to(detector.model.dtype)


def labels(detector, batch):
    boxes = [label["boxes"].to(detector.model.dtype) for label in labels_of(batch)]
    return [{**label, "boxes": own} for label, own in zip(labels_of(batch), boxes, strict=True)]


def theirs(detector, batch):
    """What the untouched transformers model makes of a batch with its own criterion."""
    return detector.model(
        pixel_values=pixels(detector, batch),
        pixel_mask=batch.pixel_mask,
        labels=labels(detector, batch),
    )


def gradient(detector, loss):
    detector.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in detector.model.parameters() if p.requires_grad])


def terms_of(outputs):
    return {n: v.item() for n, v in outputs.loss_dict.items() if "cardinality" not in n}


@pytest.mark.parametrize("config", [{}, FEW, {"auxiliary_loss": False}], ids=["own", "few", "last"])
@pytest.mark.parametrize("images", FOUR_IMAGES)
def test_terms_total_and_gradient_are_those_of_transformers(tmp_path, images, config):
    detector = make(tmp_path, **config)
    batch = four_images(images)
    ours, wanted = losses_of(detector.trainable, batch), theirs(detector, batch)
    assert {n: v.item() for n, v in ours.terms.items()} == pytest.approx(
        terms_of(wanted), rel=1e-10
    )
    assert len(ours.terms) == (6 if config.get("auxiliary_loss") is False else 9)
    assert ours.total.item() == pytest.approx(wanted.loss.item(), rel=1e-10)
    own, other = gradient(detector, ours.total), gradient(detector, wanted.loss)
    assert (own - other).norm() < 1e-10 * other.norm()
    assert other.norm() > 0.01


def test_each_group_finds_every_object(tmp_path):
    """As transformers' matcher does it, group by group."""
    detector = make(tmp_path)
    batch = make_batch([2, 3])
    with torch.no_grad():
        outputs = detector.family.outputs(detector.model, pixels(detector, batch), batch, {})
    c = detector.model.config
    matcher = LwDetrHungarianMatcher(c.class_cost, c.bbox_cost, c.giou_cost)
    last = {"logits": outputs.logits[-1], "pred_boxes": outputs.boxes[-1]}
    for (queries, objects), num in zip(
        matcher(last, labels(detector, batch), GROUPS), (2, 3), strict=True
    ):
        assert (queries // QUERIES).tolist() == [g for g in range(GROUPS) for _ in range(num)]
        assert objects.sort().values.tolist() == [n for n in range(num) for _ in range(GROUPS)]
    assert outputs.logits.shape == (2, 2, GROUPS * QUERIES, 3)


def test_loss_outside_of_training_is_the_same(tmp_path):
    detector = make(tmp_path)
    batch = four_images("uneven")
    trained = losses_of(detector.trainable, batch)
    evaluated = losses_of(detector.trainable.eval(), batch)
    for name, value in trained.terms.items():
        assert evaluated.terms[name].item() == pytest.approx(value.item(), rel=1e-10)
    assert not any(module.training for module in detector.model.modules())


def test_transformers_cuts_the_one_group_of_evaluation_into_groups(tmp_path):
    """Why our own loss uses every group always: theirs is no validation loss."""
    detector = make(tmp_path)
    batch = make_batch([4, 4])
    detector.model.eval()
    with torch.no_grad():
        cut = terms_of(theirs(detector, batch))
        detector.model.config.group_detr = 1
        whole = terms_of(theirs(detector, batch))
    assert abs(cut["loss_giou"] - whole["loss_giou"]) > 0.01 * whole["loss_giou"]


def test_transformers_divides_by_the_boxes_of_the_micro_batch(tmp_path):
    detector = make(tmp_path)
    trainable, batch = detector.trainable, make_batch([1, 5])
    counts = trainable.counts(batch).alone
    parts = [part_of(batch, slice(row, row + 1)) for row in (0, 1)]
    with torch.no_grad():
        big = terms_of(theirs(detector, batch))["loss_ce"]
        small = [terms_of(theirs(detector, part))["loss_ce"] for part in parts]
        ours = losses_of(trainable, batch).terms["loss_ce"].item()
        shares = [losses_of(trainable, part, counts).terms["loss_ce"].item() for part in parts]
    assert abs(sum(small) / 2 - big) > 0.01 * big
    assert sum(shares) == pytest.approx(ours, rel=1e-10)
    assert ours == pytest.approx(big, rel=1e-10)


def test_transformers_does_not_divide_by_processes_twice(tmp_path, monkeypatch):
    """Other than in DETR: with the same batch on each of two ranks the loss is that of one."""
    detector = make(tmp_path)
    batch = make_batch([1, 5])
    with torch.no_grad():
        alone = theirs(detector, batch).loss.item()
        monkeypatch.setattr(theirs_file, "_is_torch_distributed_initialized", lambda: True)
        monkeypatch.setattr(theirs_file.dist, "all_reduce", lambda tensor, op: tensor.mul_(2))
        monkeypatch.setattr(theirs_file.dist, "get_world_size", lambda: 2)
        assert theirs(detector, batch).loss.item() == pytest.approx(alone, rel=1e-10)


def test_sure_scores_have_a_finite_loss(tmp_path):
    """transformers takes the logarithm of a score that is 0 or 1 in fp32."""
    detector = make(tmp_path, torch.float32)
    batch = make_batch([1, 2])
    shape = (2, 2, GROUPS * QUERIES, 3)
    torch.manual_seed(0)
    boxes = torch.rand(*shape[:3], 4) * 0.3 + 0.2
    for sure in (-120.0, 30.0):
        logits = torch.full(shape, sure, requires_grad=True)
        outputs = SetOutputs(logits, boxes, (logits[0], boxes[0]))
        counts = detector.trainable.counts(batch).alone
        total = detector.trainable.criterion(outputs, batch, counts).total
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(logits.grad).all()
        loss, _, _ = LwDetrForObjectDetectionLoss(
            *(logits[-1], labels(detector, batch), "cpu", boxes[-1], detector.model.config),
            *(logits, boxes, logits[0], boxes[0]),
        )
        assert not torch.isfinite(loss)


def test_cost_of_a_match_is_in_the_precision_of_the_boxes(tmp_path):
    """transformers takes distances of boxes in fp32, where these are equally near."""
    detector = make(tmp_path)
    batch = make_batch([1])
    goal = batch.objects.boxes.double()[0]
    batch.objects = dataclasses.replace(batch.objects, boxes=goal[None])
    boxes = goal.repeat(1, GROUPS * QUERIES, 1)
    boxes[..., 0] += 0.1
    boxes[:, 1::QUERIES, 0] -= 1e-12  # the nearest one of each group
    logits = torch.zeros(1, GROUPS * QUERIES, 3, dtype=torch.float64, requires_grad=True)
    detector.model.config.giou_cost = 0
    outputs = SetOutputs(logits[None], boxes[None], None)
    counts = detector.trainable.counts(batch).alone
    detector.trainable.criterion(outputs, batch, counts).total.backward()
    chosen = logits.grad[0].min(-1).values.argsort()[:GROUPS]
    assert sorted(chosen.tolist()) == [1 + QUERIES * group for group in range(GROUPS)]
    c = detector.model.config
    matcher = LwDetrHungarianMatcher(c.class_cost, c.bbox_cost, c.giou_cost)
    last = {"logits": logits.detach(), "pred_boxes": boxes}
    (queries, _), *_ = matcher(last, labels(detector, batch), GROUPS)
    assert queries.tolist() == [QUERIES * group for group in range(GROUPS)]
