"""The losses of rf_detr_seg against those of transformers, whose random points are made the centres of all
squares."""

import pytest
import torch
import transformers.loss.loss_rf_detr as theirs_file

from batches import binary
from benchmarks.default_criterion import labels_of
from builders import FOUR_IMAGES, four_images, losses_of, make_batch, tiny_detector
from donors import TINY_RF_DETR

GROUPS, QUERIES = TINY_RF_DETR["group_detr"], TINY_RF_DETR["num_queries"]
ROWS, COLUMNS = 16, 24
FEW = {"mask_class_loss_coefficient": 0.3, "mask_dice_loss_coefficient": 9.0, "class_cost": 0.5}
NAMES = {"loss_mask_ce": "loss_mask", "loss_mask_dice": "loss_dice"}


def make(tmp_path, **config):
    detector = tiny_detector(tmp_path / "backbone", "rf_detr_seg")
    detector.trainable.double().train()
    for name, value in config.items():
        setattr(detector.model.config, name, value)
    detector.trainable.criterion = detector.family.criterion(detector.model.config)
    return detector


def pixels(detector, batch):
    trainable = detector.trainable
    return trainable.normalization(batch.pixel_values, batch.pixel_mask).to(detector.model.dtype)


def labels(batch):
    masks = batch.objects.masks.split(list(batch.num_objects))
    return [
        {**label, "boxes": label["boxes"].double(), "masks": own.double() / 16}
        for label, own in zip(labels_of(batch), masks, strict=True)
    ]


def theirs(detector, batch):
    """What the untouched transformers model makes of a batch with its own criterion."""
    return detector.model(
        pixel_values=pixels(detector, batch), pixel_mask=batch.pixel_mask, labels=labels(batch)
    )


def terms_of(outputs):
    found = {n: v for n, v in outputs.loss_dict.items() if "cardinality" not in n}
    for old, new in NAMES.items():
        found = {name.replace(old, new): value for name, value in found.items()}
    return {name: value.sum().item() for name, value in found.items()}


def gradient(detector, loss):
    detector.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in detector.model.parameters() if p.requires_grad])


def compare_every_square(monkeypatch):
    """transformers compares the centres of all squares, in fp64."""
    sides = [(torch.arange(num).double() + 0.5) / num for num in (ROWS, COLUMNS)]
    down, right = torch.meshgrid(*sides, indexing="ij")
    centres = torch.stack([right, down], -1).reshape(1, -1, 2)
    sample = theirs_file.sample_point
    monkeypatch.setattr(
        theirs_file,
        "sample_point",
        lambda planes, points, **rest: sample(planes.double(), points, **rest),
    )
    monkeypatch.setattr(
        theirs_file,
        "sample_points_using_uncertainty",
        lambda planes, *rest: centres.repeat(len(planes), 1, 1),
    )
    monkeypatch.setattr(theirs_file.torch, "rand", lambda *shape, **rest: centres)


@pytest.mark.parametrize("config", [{}, FEW], ids=["own", "few"])
@pytest.mark.parametrize("images", FOUR_IMAGES)
def test_terms_total_and_gradient_are_those_of_transformers(tmp_path, monkeypatch, images, config):
    detector = make(tmp_path, **config)
    batch = binary(four_images(images))
    compare_every_square(monkeypatch)
    ours, wanted = losses_of(detector.trainable, batch), theirs(detector, batch)
    assert {n: v.item() for n, v in ours.terms.items()} == pytest.approx(terms_of(wanted), rel=1e-9)
    assert len(ours.terms) == 15
    # Without objects their terms of the masks have no places.
    total = wanted.loss.sum() if wanted.loss.numel() else None
    if total is None:
        assert images == "empty"
        return
    assert ours.total.item() == pytest.approx(total.item(), rel=1e-9)
    own, other = gradient(detector, ours.total), gradient(detector, total)
    assert (own - other).norm() < 1e-9 * other.norm()
    assert other.norm() > 0.01


def test_what_gets_a_loss_is_what_the_untouched_model_predicts(tmp_path):
    detector = make(tmp_path)
    batch = make_batch([1, 2])
    with torch.no_grad():
        ours = detector.family.outputs(detector.model, pixels(detector, batch), batch, {})
        wanted = detector.model(pixels(detector, batch), batch.pixel_mask)
    assert wanted.pred_masks.shape == (2, GROUPS * QUERIES, ROWS, COLUMNS)
    for image in range(2):
        for layer, masks in ((1, wanted.pred_masks), (2, wanted.enc_outputs_mask_logits)):
            torch.testing.assert_close(ours.masks(layer, image, slice(None)), masks[image])
    torch.testing.assert_close(ours.logits[-1], wanted.logits)
    torch.testing.assert_close(ours.boxes[-1], wanted.pred_boxes)


def test_masks_of_every_group_and_layer_are_trained(tmp_path):
    """And a micro-batch without objects has gradients for the same parameters, of zero in the masks."""
    detector = make(tmp_path)
    given = {}
    for numbers in ([2, 3], [0, 0]):
        gradient(detector, losses_of(detector.trainable, make_batch(numbers)).total)
        given[sum(numbers)] = {
            n: p.grad.abs().max().item()
            for n, p in detector.model.named_parameters()
            if p.requires_grad
        }
    of_masks = [n for n in given[5] if not n.startswith("model.")]
    assert len(of_masks) == 23
    assert all(given[5][name] > 0 for name in of_masks)
    assert all(given[0][name] == 0 for name in of_masks)


def test_loss_outside_of_training_is_the_same(tmp_path):
    detector = make(tmp_path)
    batch = four_images("uneven")
    trained = losses_of(detector.trainable, batch)
    evaluated = losses_of(detector.trainable.eval(), batch)
    for name, value in trained.terms.items():
        assert evaluated.terms[name].item() == pytest.approx(value.item(), rel=1e-10)


def test_transformers_draws_points_and_we_do_not(tmp_path):
    """In its matching as many as a sixteenth of four times the queries of the batch, whatever the masks' size."""
    detector = make(tmp_path)
    detector.trainable.float()
    batch = binary(four_images("uneven"))
    given = [
        {**label, "boxes": label["boxes"].float(), "masks": label["masks"].float()}
        for label in labels(batch)
    ]
    seen = {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        found = detector.model(pixel_values=pixels(detector, batch), labels=given)
        torch.manual_seed(seed)
        seen[seed] = (
            terms_of(found)["loss_dice"],
            losses_of(detector.trainable, batch).terms["loss_dice"].item(),
        )
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] == seen[1][1]
