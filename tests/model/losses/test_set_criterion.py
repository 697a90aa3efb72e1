import pytest
import torch

from benchmarks.default_criterion import labels_of
from builders import FOUR_IMAGES as TARGETS
from builders import SET_VARIANTS, VARIANTS, losses_of, make_batch, part_of, tiny_detector
from model.losses.set_criterion import SetCriterion, SetOutputs

HEADS = list(VARIANTS)
NUM_QUERIES = 6


def make(tmp_path, head, dtype=torch.float32):
    detector = tiny_detector(tmp_path / "backbone", head)
    detector.trainable.to(dtype).train()
    return detector


def theirs(detector, batch):
    """What the untouched transformers model makes of a batch with its own criterion."""
    pixels = detector.trainable.normalization(batch.pixel_values, batch.pixel_mask)
    return detector.model(pixel_values=pixels, pixel_mask=batch.pixel_mask, labels=labels_of(batch))


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("head", SET_VARIANTS)
@pytest.mark.parametrize("targets", TARGETS)
def test_equals_transformers_on_one_process_and_one_batch(tmp_path, head, targets):
    """Term by term; the proposals of two stages come on top, since transformers leaves them out."""
    detector = make(tmp_path, head)
    batch = make_batch(TARGETS[targets])
    ours = losses_of(detector.trainable, batch)
    wanted = theirs(detector, batch)
    config = detector.model.config
    weights = {
        "ce": 1.0,
        "bbox": config.bbox_loss_coefficient,
        "giou": config.giou_loss_coefficient,
    }
    proposed = {n.split("_")[1]: v for n, v in ours.terms.items() if n.endswith("_enc")}
    extra = sum(weights[n] * value.item() for n, value in proposed.items())
    assert set(proposed) == (set(weights) if "two_stage" in head else set())
    assert ours.total.item() - extra == pytest.approx(wanted.loss.item(), rel=1e-5)
    names = {n for n in wanted.loss_dict if "cardinality" not in n}
    assert {n for n in ours.terms if not n.endswith("_enc")} == names
    for name in names:
        expected = wanted.loss_dict[name].item()
        assert ours.terms[name].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_proposals_of_two_stages_are_trained(tmp_path):
    detector = make(tmp_path, "deformable_detr_two_stage")
    losses_of(detector.trainable, make_batch(TARGETS["uneven"])).total.backward()
    assert detector.model.model.enc_output.weight.grad.abs().sum() > 0
    assert not detector.unused
    assert detector.num_queries == NUM_QUERIES


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("targets", ["uneven", "empty"])
def test_micro_batches_add_up_to_the_big_batch(tmp_path, head, targets):
    detector = make(tmp_path, head, torch.float64)
    trainable, batch = detector.trainable, make_batch(TARGETS[targets])
    counts = trainable.counts(batch).alone
    big = losses_of(trainable, batch)
    big.total.backward()
    wanted = gradient(trainable)
    trainable.zero_grad()
    total = 0.0
    for rows in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)):
        small = losses_of(trainable, part_of(batch, rows), counts)
        small.total.backward()
        total += small.total.item()
    assert total == pytest.approx(big.total.item(), rel=1e-10)
    assert (gradient(trainable) - wanted).norm() <= 1e-10 * wanted.norm()


def test_canary_transformers_still_normalises_by_the_micro_batch(tmp_path):
    """Why the criterion is our own."""
    detector = make(tmp_path, "detr")
    batch = make_batch(TARGETS["uneven"])
    big = theirs(detector, batch).loss_dict["loss_bbox"].item()
    small = sum(
        theirs(detector, part_of(batch, slice(i, i + 1))).loss_dict["loss_bbox"].item()
        for i in range(4)
    )
    assert abs(small - big) > 0.1 * big


@pytest.mark.parametrize("head", HEADS)
def test_batch_without_boxes_has_a_finite_loss_and_gradient(tmp_path, head):
    detector = make(tmp_path, head)
    loss = losses_of(detector.trainable, make_batch([0, 0])).total
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(detector.model)).all()


def test_non_finite_predictions_do_not_crash_the_matcher(tmp_path):
    criterion = SetCriterion(make(tmp_path, "detr").model.config, focal=False, num_queries=6)
    nothing = torch.full((1, 2, 6, 4), float("nan"))
    batch = make_batch([2, 3])
    losses = criterion(SetOutputs(nothing, nothing), batch, criterion.counts(batch).alone)
    assert torch.isnan(losses.total)


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_in_fp32_under_autocast(tmp_path, head):
    detector = make(tmp_path, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(detector.trainable, make_batch([1, 2]))
    assert {value.dtype for value in losses.terms.values()} == {torch.float32}
    assert losses.total.dtype == torch.float32
