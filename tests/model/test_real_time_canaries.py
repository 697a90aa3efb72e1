"""What transformers and torch do otherwise with rt_detr_v2, d_fine and deimv2: why our own code exists.

A test that fails here says that the code beside it may go.
"""

import pytest
import torch
from transformers import Deimv2Config, Deimv2ForObjectDetection

from benchmarks.default_criterion import labels_of
from builders import REAL_TIME, TINY_HEAD, losses_of, make_batch, part_of, tiny_detector
from donors import inputs
from model.heads.held_norm import HeldBatchNorm

REFINED = ["d_fine", "deimv2"]


def theirs(detector, batch):
    """What the untouched transformers model makes of a batch with its own criterion."""
    return detector.model(pixel_values=inputs(detector, batch), labels=labels_of(batch))


@pytest.mark.parametrize("head", REFINED)
def test_transformers_pairs_logits_of_a_layer_with_edges_of_the_next(tmp_path, head):
    """Why the criterion pairs them itself; what its first layer predicts before comes first."""
    detector = tiny_detector(tmp_path / "backbone", head)
    detector.model.config.num_denoising = 0
    for parameter in detector.model.model.decoder.lqe_layers.parameters():
        parameter.data += 0.1  # what tells a layer's scores from those before edges are refined
    detector.model.train()
    with torch.no_grad():
        outputs = theirs(detector, make_batch([2, 3]))
    logits, corners = outputs.intermediate_logits, outputs.intermediate_predicted_corners
    assert (logits.shape[1], corners.shape[1]) == (3, 2)
    first = outputs.auxiliary_outputs[0]
    assert torch.equal(first["pred_corners"], corners[:, 0])
    assert torch.equal(first["logits"], logits[:, 0])
    assert not torch.equal(first["logits"], logits[:, 1])  # of these edges
    # So the layer before the last gets no loss for its classes; besides there are the proposals.
    assert len(outputs.auxiliary_outputs) == 2


@pytest.mark.parametrize("head", REFINED)
def test_transformers_gives_edges_of_the_last_layer_no_loss(tmp_path, head):
    detector = tiny_detector(tmp_path / "backbone", head)
    detector.model.config.num_denoising = 0
    batch = make_batch([2, 3])
    detector.model.train()
    terms = theirs(detector, batch).loss_dict
    assert {"loss_fgl_aux_0", "loss_ddf_aux_0", "loss_bbox"} <= terms.keys()
    assert "loss_fgl" not in terms
    assert {"loss_fgl", "loss_fgl_0"} <= losses_of(detector.trainable, batch).terms.keys()


@pytest.mark.parametrize("head", REAL_TIME)
def test_transformers_divides_by_the_boxes_of_the_micro_batch(tmp_path, head):
    detector = tiny_detector(tmp_path / "backbone", head)
    trainable, batch = detector.trainable.train(), make_batch([1, 5])
    counts = trainable.counts(batch).alone
    parts = [part_of(batch, slice(row, row + 1)) for row in (0, 1)]
    with torch.no_grad():
        big = theirs(detector, batch).loss_dict["loss_bbox"].item()
        small = [theirs(detector, part).loss_dict["loss_bbox"].item() for part in parts]
        ours = losses_of(trainable, batch).terms["loss_bbox"].item()
        shares = [losses_of(trainable, part, counts).terms["loss_bbox"].item() for part in parts]
    assert abs(sum(small) - big) > 0.1 * big
    assert abs(sum(small) / 2 - big) > 0.01 * big  # nor are they means
    assert sum(shares) == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize("head", REAL_TIME)
def test_transformers_leaves_positions_out_of_evaluation_where_eval_size_is_set(tmp_path, head):
    """Why eval_size is refused, and taken out of a donor's config."""
    encoder = tiny_detector(tmp_path / "backbone", head).model.model.encoder
    features = torch.randn(1, 32, 4, 4)

    def run(training):
        result = encoder.aifi[0].train(training)(features)
        return result[0] if isinstance(result, tuple) else result

    with torch.no_grad():
        assert torch.equal(run(True), run(False))
        encoder.aifi[0].eval_size = [64, 64]
        assert not torch.allclose(run(True), run(False), atol=1e-3)


def test_transformers_loses_a_shared_box_head(tmp_path):
    """Why share_bbox_head is refused."""
    own = tiny_detector(tmp_path / "backbone", "deimv2").model.config.to_dict()
    config = Deimv2Config.from_dict({**own, "share_bbox_head": True})
    torch.manual_seed(0)
    model = Deimv2ForObjectDetection(config)
    for parameter in model.model.decoder.bbox_embed.parameters():
        parameter.data.normal_()
    model.save_pretrained(tmp_path / "shared")
    again, info = Deimv2ForObjectDetection.from_pretrained(
        tmp_path / "shared", output_loading_info=True
    )
    theirs, ours = model.state_dict(), again.state_dict()
    lost = {n for n in theirs if "bbox_embed" in n and not torch.equal(theirs[n], ours[n])}
    assert lost or any("bbox_embed" in name for name in info["missing_keys"])


@pytest.mark.parametrize("head", REFINED)
def test_loading_makes_constants_trainable(tmp_path, head):
    """`up` and `reg_scale` say where the bins of edges are; from_pretrained forgets that they are fixed."""
    model = tiny_detector(tmp_path / "backbone", head).model
    assert not model.model.decoder.up.requires_grad
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    assert again.model.decoder.up.requires_grad
    assert again.model.decoder.reg_scale.requires_grad


def plain(values, norm):
    """Batch norm with held statistics, in fp64."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = norm.weight.double() / (variance + norm.eps).sqrt()
    shift = norm.bias.double() - mean * scale
    return values * scale[:, None, None] + shift[:, None, None]


def gradients(forward, norm, values, weights):
    """Of values, weight and bias, where positions are made a sequence, as these heads do."""
    values = values.clone().requires_grad_()
    norm.zero_grad()
    sequence = forward(values).flatten(2).transpose(1, 2)
    (sequence * weights).sum().backward()
    return [values.grad.double(), norm.weight.grad.double(), norm.bias.grad.double()]


def held(num_images):
    """The gradients of torch's batch norm, of ours, and the true ones."""
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(8)
    for tensor in (norm.weight.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    norm.eval()
    values = torch.randn(num_images, 8, 4, 6)
    weights = torch.randn(num_images, 24, 8)
    ours = HeldBatchNorm(8)
    ours.load_state_dict(norm.state_dict())
    ours.known, ours.sums = True, None
    ours.train()
    return (
        gradients(norm, norm, values, weights),
        gradients(ours, ours, values, weights),
        gradients(lambda v: plain(v, norm), norm, values.double(), weights.double()),
    )


@pytest.mark.parametrize("num_images", [1, 2])
def test_gradient_of_held_norms_is_right(num_images):
    _, ours, true = held(num_images)
    for own, right in zip(ours, true, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-5, atol=1e-5)


def test_gradient_of_torchs_batch_norm_is_wrong_for_one_image():
    """Why held norms are plain arithmetic: the gradient of a transposed sequence, on a CPU."""
    torchs, _, true = held(1)
    wrong = [
        not torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(torchs, true, strict=True)
    ]
    assert any(wrong)
    torchs, _, true = held(2)
    for own, right in zip(torchs, true, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-4, atol=1e-4)


def test_true_gradient_agrees_with_finite_differences():
    norm = torch.nn.BatchNorm2d(2).double().eval()
    norm.running_mean.normal_()
    values = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: plain(v, norm).flatten(2).transpose(1, 2), (values,))


def test_tiny_heads_are_refined_in_two_layers():
    """What the tests above count on."""
    assert all(TINY_HEAD[head]["decoder_layers"] == 2 for head in REAL_TIME)
