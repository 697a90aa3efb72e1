import numpy as np
import pytest
import torch

from builders import (
    BOX_VARIANTS,
    FOUR_IMAGES,
    MASK_HEADS,
    SET_VARIANTS,
    VARIANTS,
    make_batch,
    tiny_detector,
)


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("head", SET_VARIANTS)
def test_what_gets_a_loss_is_what_the_untouched_model_predicts(tmp_path, head, auxiliary):
    """A head file applies the prediction layers itself; the model's own forward says the same."""
    detector = tiny_detector(tmp_path / "backbone", head)
    detector.model.config.auxiliary_loss = auxiliary
    if hasattr(detector.model.model.decoder.config, "auxiliary_loss"):
        detector.model.model.decoder.config.auxiliary_loss = auxiliary
    trainable, batch = detector.trainable.eval(), make_batch([1, 2])
    pixels = trainable.normalization(batch.pixel_values, batch.pixel_mask)
    with torch.no_grad():
        counts = trainable.counts(batch).alone
        ours = detector.family.outputs(detector.model, pixels, batch, counts)
        theirs = detector.model(pixel_values=pixels, pixel_mask=batch.pixel_mask)
    torch.testing.assert_close(ours.logits[-1], theirs.logits)  # products of other shapes
    torch.testing.assert_close(ours.boxes[-1], theirs.pred_boxes)
    assert len(ours.logits) == len(ours.boxes) == (2 if auxiliary else 1)


@pytest.mark.parametrize("head", BOX_VARIANTS)
def test_predictions_are_those_of_the_image_processor(tmp_path, head):
    detector = tiny_detector(tmp_path / "backbone", head)
    trainable, batch = detector.trainable.eval(), make_batch([1, 2])
    batch.orig_sizes = [(50, 70), (640, 480)]
    pixels = trainable.normalization(batch.pixel_values, batch.pixel_mask)
    with torch.no_grad():
        outputs = detector.model(pixel_values=pixels, pixel_mask=batch.pixel_mask)
    wanted = trainable.processor.post_process_object_detection(
        outputs, threshold=-1.0, target_sizes=torch.tensor(batch.orig_sizes)
    )
    found = trainable.predict(batch)
    for row, result in enumerate(wanted):
        own = found.of_image(row)
        order = result["scores"].argsort(descending=True, stable=True)
        corners = result["boxes"][order].double().numpy()
        assert (np.diff(own.scores) <= 0).all()
        np.testing.assert_array_equal(own.scores, result["scores"][order].double().numpy())
        np.testing.assert_array_equal(own.classes, result["labels"][order].numpy())
        np.testing.assert_array_equal(own.boxes[:, :2], corners[:, :2])
        np.testing.assert_array_equal(own.boxes[:, 2:], corners[:, 2:] - corners[:, :2])
    limit = float(np.median(found.scores))
    assert trainable.predict(batch, threshold=limit).scores.min() > limit
    few = trainable.predict(batch, max_detections=2)
    assert few.image.tolist() == [0, 0, 1, 1]
    assert few.scores[0] == found.of_image(0).scores[0]


@pytest.mark.parametrize("head", VARIANTS)
def test_names_of_counts_do_not_depend_on_the_batch(tmp_path, head):
    trainable = tiny_detector(tmp_path / "backbone", head).trainable
    names = {tuple(trainable.counts(make_batch(n)).alone) for n in FOUR_IMAGES.values()}
    assert len(names) == 1
    counts = trainable.counts(make_batch(FOUR_IMAGES["uneven"])).alone
    if head == "linear":
        covered = make_batch(FOUR_IMAGES["uneven"]).objects.masks.long().sum()
        assert counts == {"pixels": covered}
        return
    objects = counts["masks" if head in MASK_HEADS else "boxes"]
    assert (objects, counts["matched"], counts["images"]) == (9, 7, 4)


def test_predictions_are_in_fp32_whatever_training_computes_in(tmp_path):
    """accelerate puts autocast into `forward`; `predict` does not go through it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    trainable = tiny_detector(tmp_path / "backbone", "detr").trainable.eval()
    batch = make_batch([1, 2])
    before = trainable.predict(batch)
    exact = trainable(batch, trainable.counts(batch).alone).total
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(trainable)
    assert prepared(batch, trainable.counts(batch).alone).total != exact
    np.testing.assert_array_equal(trainable.predict(batch).scores, before.scores)
    AcceleratorState._reset_state(reset_partial_state=True)
