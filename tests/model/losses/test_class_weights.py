"""What classes weigh in the loss of classes: by hand, and by torch's own weighted cross-entropy."""

import types

import pytest
import torch
import torch.nn.functional as F

from batches import binary
from builders import losses_of, make_batch, tiny_detector
from model.losses.focal import sigmoid_focal_loss
from model.losses.pixel_criterion import PixelCriterion
from model.losses.quality import iou_aware, matchability_aware, pair_losses, varifocal
from model.losses.set_criterion import SetCriterion
from model.losses.terms import class_cross_entropy, object_counts
from weighted import CLASS_WEIGHTS, with_weights

QUERIES, NO_OBJECT = 6, 0.1
WEIGHTS = torch.tensor(CLASS_WEIGHTS)
ONE_OF_EACH = ["detr", "deformable_detr_two_stage", "d_fine", "maskformer", "linear"]


def matched(batch, layers=2):
    """Layer, image, query and object of matches, the last queries of each image first."""
    rows = [
        (layer, image, QUERIES - 1 - number, sum(batch.num_objects[:image]) + number)
        for layer in range(layers)
        for image, num in enumerate(batch.num_objects)
        for number in range(num)
    ]
    return torch.tensor(rows).T


def test_softmax_is_the_weighted_cross_entropy_of_torch():
    batch = with_weights(make_batch([0, 2, 1, 5]))
    logits = torch.randn(2, 4, QUERIES, 4, dtype=torch.float64)
    *place, target = matched(batch)
    classes, weights = batch.objects.classes[target], batch.objects.weights[target]
    counts = object_counts("boxes", batch, QUERIES).alone
    total, count = class_cross_entropy(logits, tuple(place), classes, weights, counts, NO_OBJECT)
    goal = torch.full(logits.shape[:3], 3)
    goal[tuple(place)] = classes
    every = torch.tensor([*CLASS_WEIGHTS, NO_OBJECT], dtype=torch.float64)
    for layer in range(2):
        wanted = F.cross_entropy(logits[layer].flatten(0, 1), goal[layer].flatten(), every)
        assert (total[layer] / count).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_pixels_are_the_weighted_cross_entropy_of_torch():
    batch = with_weights(binary(make_batch([3, 2])))
    covered = batch.objects.masks > 0
    for one in (slice(0, 3), slice(3, 5)):  # of each square one object at most
        covered[one] &= covered[one].cumsum(0) == 1
    batch.objects.masks.copy_(covered.byte() * 16)
    goal = torch.full((2, 16, 24), -100)
    for mask, image, kind in zip(covered, batch.objects.image, batch.objects.classes, strict=True):
        goal[image][mask] = kind
    logits = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    criterion = PixelCriterion()
    found = criterion(logits, batch, criterion.counts(batch).alone).total
    wanted = F.cross_entropy(logits, goal, WEIGHTS.double())
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_sigmoid_weighs_what_is_to_be_found_and_nothing_else():
    batch = with_weights(make_batch([0, 2, 1, 5]))
    logits = torch.randn(2, 4, QUERIES, 3, dtype=torch.float64)
    *place, target = matched(batch)
    classes = batch.objects.classes[target]
    own = (*place, classes)
    config = types.SimpleNamespace(focal_alpha=0.25)
    criterion = SetCriterion(config, focal=True, num_queries=QUERIES)
    total, count = criterion.class_loss(
        logits, tuple(place), classes, WEIGHTS[classes], {"boxes": 8.0}
    )
    goal = torch.zeros_like(logits)
    goal[own] = 1.0
    every = sigmoid_focal_loss(logits, goal, 0.25)
    extra = (every[own] * (WEIGHTS.double()[classes] - 1)).view(2, -1).sum(1)
    assert count == 8.0
    torch.testing.assert_close(total, every.sum((1, 2, 3)) + extra)


@pytest.mark.parametrize(
    "quality", [varifocal(0.75, 2.0), matchability_aware(None, 1.5), iou_aware(0.25)]
)
def test_losses_of_quality_weigh_what_is_to_be_found_and_nothing_else(quality):
    plain = make_batch([0, 2, 1, 5])
    batch = with_weights(plain)
    logits, boxes = torch.randn(2, 4, QUERIES, 3), torch.rand(2, 4, QUERIES, 4) / 2 + 0.2
    *place, target = matched(batch)
    called, good = torch.zeros_like(logits), torch.zeros_like(logits)
    own = (*place, batch.objects.classes[target])
    found = pair_losses(quality, logits, boxes, tuple(place), batch.objects, target)
    before = pair_losses(quality, logits, boxes, tuple(place), plain.objects, target)
    called[own], good[own] = 1.0, before.iou
    every = quality(logits, called, good)
    extra = (every[own] * (batch.objects.weights[target] - 1)).view(2, -1).sum(1)
    torch.testing.assert_close(found.classes, before.classes + extra)
    for name in ("l1", "giou", "iou"):
        assert torch.equal(getattr(found, name), getattr(before, name))


@pytest.mark.parametrize("variant", ONE_OF_EACH)
@pytest.mark.parametrize("numbers", [[0, 0, 1, 8], [0, 0]])
def test_weights_of_one_are_none_to_the_last_bit(tmp_path, variant, numbers):
    trainable = tiny_detector(tmp_path / "backbone", variant).trainable.train()
    batch = make_batch(numbers)
    given = []
    for own in (batch, with_weights(batch, (1.0, 1.0, 1.0))):
        trainable.zero_grad()
        losses_of(trainable, own).total.backward()
        given.append([p.grad.clone() for p in trainable.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*given, strict=True))


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_a_batch_whose_classes_weigh_nothing_has_a_finite_loss_and_gradient(tmp_path, variant):
    trainable = tiny_detector(tmp_path / "backbone", variant).trainable.train()
    losses = losses_of(trainable, with_weights(make_batch([6, 6]), (0.0, 0.0, 0.0)))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    gradients = [p.grad for p in trainable.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_of_more_objects_than_queries_each_counts_for_the_part_that_finds_one():
    batch = make_batch([8, 2])
    counts = object_counts("boxes", with_weights(batch), QUERIES).alone
    own = WEIGHTS[batch.objects.classes]
    wanted = own[:8].sum() * 6 / 8 + own[8:].sum()
    assert counts["matched_weight"] == pytest.approx(wanted.item(), rel=1e-6)
    assert counts["matched"] == 8
