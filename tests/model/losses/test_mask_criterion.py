"""The criterion of mask heads against transformers' own, and what it must not depend on."""

import pytest
import torch

from batches import binary
from builders import FOUR_IMAGES, MASK_HEADS, losses_of, make_batch, tiny_detector
from model.losses.mask_criterion import MaskCriterion, MaskOutputs, MaskWeights


def outputs_of(detector, batch):
    pixels = detector.trainable.normalization(batch.pixel_values, batch.pixel_mask)
    pixels = pixels.to(detector.model.dtype)
    return detector.family.outputs(detector.model, pixels, batch, {})


def all_masks(outputs, layer):
    images = range(outputs.logits.shape[1])
    return torch.stack([outputs.masks(layer, image, slice(None)) for image in images])


@pytest.mark.parametrize("head", ["maskformer"])  # the other's takes random points
@pytest.mark.parametrize("targets", ["uneven", "full", "even"])
def test_equals_transformers_on_one_process_and_one_batch(tmp_path, head, targets):
    detector = tiny_detector(tmp_path / "backbone", head)
    detector.trainable.double().train()
    batch = binary(make_batch(FOUR_IMAGES[targets]))
    ours = losses_of(detector.trainable, batch)
    outputs = outputs_of(detector, batch)
    last = len(outputs.logits) - 1
    layers = [(all_masks(outputs, n), outputs.logits[n]) for n in range(last + 1)]
    numbers = list(batch.num_objects)
    wanted = detector.model.get_loss_dict(
        *layers[-1],
        [m.double() / 16 for m in batch.objects.masks.split(numbers)],
        list(batch.objects.classes.split(numbers)),
        [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in layers[:-1]],
    )
    assert ours.total.item() == pytest.approx(
        sum(wanted.values()).item(), rel=1e-7
    )  # their weight of no object is a float32
    names = {"loss_ce": "loss_cross_entropy", "loss_mask": "loss_mask", "loss_dice": "loss_dice"}
    assert len(ours.terms) == len(wanted) == 3 * len(layers)
    for name, value in ours.terms.items():
        term, _, layer = name.removeprefix("loss_").partition("_")
        theirs = names[f"loss_{term}"]
        weight = detector.model.weight_dict[theirs]
        expected = wanted[f"{theirs}_{layer}" if layer else theirs].item() / weight
        assert value.item() == pytest.approx(
            expected, rel=1e-7
        )  # their weight of no object is a float32


@pytest.mark.parametrize("head", MASK_HEADS)
def test_what_gets_a_loss_is_what_the_untouched_model_predicts(tmp_path, head):
    detector = tiny_detector(tmp_path / "backbone", head)
    detector.trainable.eval()
    batch = make_batch([1, 2])
    pixels = detector.trainable.normalization(batch.pixel_values, batch.pixel_mask)
    with torch.no_grad():
        ours = outputs_of(detector, batch)
        theirs = detector.model(pixel_values=pixels)
    torch.testing.assert_close(ours.logits[-1], theirs.class_queries_logits)
    torch.testing.assert_close(all_masks(ours, -1), theirs.masks_queries_logits)
    assert len(ours.logits) == {"maskformer": 2, "mask2former": 3, "pmd": 3}[head]


def test_equals_transformers_where_its_points_are_the_centres_of_all_cells(tmp_path, monkeypatch):
    """Mask2Former's criterion of transformers, with every point in place of random ones."""
    detector = tiny_detector(tmp_path / "backbone", "mask2former")
    detector.trainable.double().train()
    batch = binary(make_batch(FOUR_IMAGES["full"]))
    rows, columns = torch.meshgrid(
        (torch.arange(16) + 0.5) / 16, (torch.arange(24) + 0.5) / 24, indexing="ij"
    )
    centres = torch.stack([columns, rows], -1).reshape(1, -1, 2).double()
    loss = detector.model.criterion
    monkeypatch.setattr(
        loss,
        "sample_points_using_uncertainty",
        lambda logits, *rest: centres.repeat(len(logits), 1, 1),
    )
    monkeypatch.setattr(torch, "rand", lambda *shape, **rest: centres)
    ours = losses_of(detector.trainable, batch)
    outputs = outputs_of(detector, batch)
    last = len(outputs.logits) - 1
    numbers = list(batch.num_objects)
    wanted = loss.loss_masks, loss.matcher
    labels = list(batch.objects.classes.split(numbers))
    goals = [m.double() / 16 for m in batch.objects.masks.split(numbers)]
    masks = torch.nn.functional.interpolate(all_masks(outputs, last), (16, 24), mode="bilinear")
    indices = loss.matcher(masks, outputs.logits[last], goals, labels)
    wanted = loss.loss_masks(masks, goals, indices, sum(numbers))
    for name in ("loss_mask", "loss_dice"):
        assert ours.terms[name].item() == pytest.approx(wanted[name].item(), rel=1e-6)


def simple(focal, logits, masks):
    """(criterion, outputs) of one layer and fixed predictions: [B, Q, C + 1] and [B, Q, h, w]."""
    criterion = MaskCriterion(MaskWeights(1.0, 20.0, 1.0, 0.1), logits.shape[1], focal)
    return criterion, MaskOutputs(logits[None], lambda layer, image, queries: masks[image, queries])


@pytest.mark.parametrize("focal", [True, False])
def test_padded_and_ignored_cells_take_no_part(focal):
    batch = make_batch([2, 3])
    batch.pixel_mask[:] = True
    batch.pixel_mask[:, 48:] = False
    batch.ignored[:] = 0
    batch.ignored[:, :, :4] = 16
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, generator=generator)
    masks = torch.randn(2, 6, 16, 24, generator=generator)
    criterion, outputs = simple(focal, logits, masks)
    before = criterion(outputs, batch, criterion.counts(batch).alone)
    other = masks.clone()
    other[:, :, 12:] = 50.0
    other[:, :, :, :4] = -50.0
    batch.objects.masks[:, 12:] = 16
    batch.objects.masks[:, :, :4] = 3
    _, outputs = simple(focal, logits, other)
    after = criterion(outputs, batch, criterion.counts(batch).alone)
    for name, value in before.terms.items():
        torch.testing.assert_close(after.terms[name], value)


@pytest.mark.parametrize("focal", [True, False])
def test_perfect_masks_cost_nothing_and_are_matched(focal):
    batch = binary(make_batch([3]))
    goals = batch.objects.masks.float() / 16
    masks = torch.full((1, 6, 16, 24), -60.0)
    masks[0, [4, 0, 2]] = (goals - 0.5) * 120
    logits = torch.zeros(1, 6, 4)
    logits[0, :, 3] = 60.0
    logits[0, [4, 0, 2]] = torch.nn.functional.one_hot(batch.objects.classes, 4) * 60.0
    criterion, outputs = simple(focal, logits, masks)
    losses = criterion(outputs, batch, criterion.counts(batch).alone)
    for name, value in losses.terms.items():
        assert value.item() == pytest.approx(0.0, abs=1e-6), name


def test_coarser_masks_are_compared_in_the_same_cells():
    """A head whose finest map has a stride of 16 is trained on the same targets."""
    batch = make_batch([2, 1])
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(2, 6, 4, 6, generator=generator, requires_grad=True)
    criterion, outputs = simple(True, torch.randn(2, 6, 4, generator=generator), masks)
    losses = criterion(outputs, batch, criterion.counts(batch).alone)
    losses.total.backward()
    assert torch.isfinite(masks.grad).all()
    assert (masks.grad.abs().sum((2, 3)) > 0).sum() == 3


def test_squares_that_are_half_known_are_compared_by_their_known_half():
    """An object that covers all that is known of a square covers it."""
    batch = binary(make_batch([1]))
    batch.objects.masks[:] = 0
    batch.objects.masks[0, 2:6, 2:6] = 8
    batch.ignored = torch.zeros(1, 16, 24, dtype=torch.uint8)
    batch.ignored[0, 2:6, 2:6] = 8
    masks = torch.full((1, 6, 16, 24), -60.0)
    masks[0, 0, 2:6, 2:6] = 60.0
    criterion, outputs = simple(True, torch.zeros(1, 6, 4), masks)
    terms = criterion(outputs, batch, criterion.counts(batch).alone).terms
    assert terms["loss_mask"].item() == pytest.approx(0.0, abs=1e-6)
    assert terms["loss_dice"].item() == pytest.approx(0.0, abs=1e-6)


def test_maps_of_half_precision_do_not_overflow():
    batch = make_batch([1])
    masks = torch.full((1, 6, 128, 128), -5.0).half()
    criterion, outputs = simple(True, torch.zeros(1, 6, 4), masks)
    total = criterion(outputs, batch, criterion.counts(batch).alone).total
    assert torch.isfinite(total)


@pytest.mark.parametrize("head", MASK_HEADS)
def test_masks_in_parts_give_the_same_losses_and_gradient(tmp_path, monkeypatch, head):
    """Many large masks are computed part by part, and again in the backward pass."""
    trainable = tiny_detector(tmp_path / "backbone", head).trainable.double().train()
    batch = make_batch(FOUR_IMAGES["full"])

    def step():
        trainable.zero_grad()
        losses = losses_of(trainable, batch)
        losses.total.backward()
        grads = [p.grad.flatten() for p in trainable.parameters() if p.grad is not None]
        return losses.terms, torch.cat(grads)

    terms, gradient = step()
    monkeypatch.setattr("model.losses.mask_criterion.SQUARES_AT_ONCE", 2 * 16 * 24)
    again, other = step()
    for name, value in terms.items():
        assert again[name].item() == pytest.approx(value.item(), rel=1e-12)
    assert (other - gradient).norm() <= 1e-12 * gradient.norm()
