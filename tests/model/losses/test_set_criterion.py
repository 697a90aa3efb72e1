import pytest
import torch
from builders import FOUR_IMAGES as TARGETS
from builders import VARIANTS, make_batch, tiny_detector
from transformers.loss.loss_utils import LOSS_MAPPING

from model.losses.set_criterion import SetCriterion, StepCounts

THEIRS = {
    "detr": "ForObjectDetection",
    "conditional_detr": "ConditionalDetrForObjectDetection",
    "deformable_detr": "DeformableDetrForObjectDetection",
}
HEADS = list(VARIANTS)
NUM_QUERIES = 6


def make(tmp_path, head, dtype=torch.float32):
    detector = tiny_detector(tmp_path / "backbone", head)
    detector.model.to(dtype).train()
    return detector


def part(batch, rows):
    return {
        "pixel_values": batch["pixel_values"][rows],
        "pixel_mask": batch["pixel_mask"][rows],
        "labels": batch["labels"][rows],
    }


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("targets", TARGETS)
def test_equals_transformers_on_one_process_and_one_batch(tmp_path, head, targets):
    """Term by term; the proposals of two stages come on top, since transformers leaves them out."""
    detector = make(tmp_path, head)
    batch = make_batch(TARGETS[targets])
    ours = detector.model(**batch)
    detector.model.loss_function = LOSS_MAPPING[THEIRS[VARIANTS[head][0]]]
    theirs = detector.model(**batch)
    config = detector.model.config
    weights = {
        "ce": 1.0,
        "bbox": config.bbox_loss_coefficient,
        "giou": config.giou_loss_coefficient,
    }
    proposed = {n.split("_")[1]: v for n, v in ours.loss_dict.items() if n.endswith("_enc")}
    extra = sum(weights[n] * value.item() for n, value in proposed.items())
    assert set(proposed) == (set(weights) if "two_stage" in head else set())
    assert ours.loss.item() - extra == pytest.approx(theirs.loss.item(), rel=1e-5)
    names = {n for n in theirs.loss_dict if "cardinality" not in n}
    assert {n for n in ours.loss_dict if not n.endswith("_enc")} == names
    for name in names:
        expected = theirs.loss_dict[name].item()
        assert ours.loss_dict[name].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_proposals_of_two_stages_are_trained(tmp_path):
    detector = make(tmp_path, "deformable_detr_two_stage")
    detector.model(**make_batch(TARGETS["uneven"])).loss.backward()
    assert detector.model.model.enc_output.weight.grad.abs().sum() > 0
    assert not detector.unused
    assert detector.num_queries == NUM_QUERIES
    detector.model.eval()
    with torch.no_grad():
        detector.model(pixel_values=torch.zeros(1, 3, 64, 64))
    assert detector.criterion.proposals is None


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("targets", ["uneven", "empty"])
def test_micro_batches_add_up_to_the_big_batch(tmp_path, head, targets):
    detector = make(tmp_path, head, torch.float64)
    model, batch = detector.model, make_batch(TARGETS[targets], torch.float64)
    detector.criterion.step_counts = StepCounts.of_batch(TARGETS[targets], NUM_QUERIES)
    big = model(**batch)
    big.loss.backward()
    wanted = gradient(model)
    model.zero_grad()
    total = 0.0
    for rows in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4)):
        small = model(**part(batch, rows))
        small.loss.backward()
        total += small.loss.item()
    assert total == pytest.approx(big.loss.item(), rel=1e-10)
    assert (gradient(model) - wanted).norm() / wanted.norm() < 1e-10


def test_canary_transformers_still_normalises_by_the_micro_batch(tmp_path):
    """Why the criterion is our own."""
    detector = make(tmp_path, "detr")
    detector.model.loss_function = LOSS_MAPPING["ForObjectDetection"]
    batch = make_batch(TARGETS["uneven"])
    big = detector.model(**batch).loss_dict["loss_bbox"].item()
    small = sum(
        detector.model(**part(batch, slice(i, i + 1))).loss_dict["loss_bbox"].item()
        for i in range(4)
    )
    assert abs(small - big) > 0.1 * big


@pytest.mark.parametrize("head", HEADS)
def test_batch_without_boxes_has_a_finite_loss_and_gradient(tmp_path, head):
    detector = make(tmp_path, head)
    detector.criterion.step_counts = StepCounts.of_batch([0, 0], 6)
    loss = detector.model(**make_batch([0, 0])).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(detector.model)).all()


def test_non_finite_predictions_do_not_crash_the_matcher(tmp_path):
    criterion = SetCriterion(make(tmp_path, "detr").model.config, focal=False)
    logits, boxes = torch.full((2, 6, 4), float("nan")), torch.full((2, 6, 4), float("nan"))
    labels = make_batch([2, 3])["labels"]
    loss, _, _ = criterion(logits, labels, logits.device, boxes, criterion.config)
    assert torch.isnan(loss)


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_in_fp32_under_autocast(tmp_path, head):
    detector = make(tmp_path, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = detector.model(**make_batch([1, 2]))
    assert outputs.logits.dtype == torch.bfloat16
    assert {value.dtype for value in outputs.loss_dict.values()} == {torch.float32}
    assert outputs.loss.dtype == torch.float32
