"""The losses of rt_detr_v2, d_fine and deimv2 against those of transformers, on properly paired layers."""

import dataclasses

import pytest
import torch
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.loss.loss_rt_detr import (
    RTDetrForObjectDetectionLoss,
    RTDetrHungarianMatcher,
    RTDetrLoss,
)

from benchmarks.default_criterion import labels_of
from builders import FOUR_IMAGES, REAL_TIME, make_batch, tiny_detector
from model.losses.denoising import noisy_queries

THEIRS = {"rt_detr_v2": RTDetrLoss, "d_fine": DFineLoss, "deimv2": Deimv2Loss}
QUALITY = {"rt_detr_v2": "vfl", "d_fine": "vfl", "deimv2": "mal"}
LAYERS = 2
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}


@dataclasses.dataclass
class Case:
    """A batch, what a detector predicts for it, and its losses."""

    detector: object
    batch: object
    outputs: object
    losses: object

    @property
    def labels(self):
        """As transformers takes them."""
        return [
            {"class_labels": label["class_labels"], "boxes": label["boxes"].to(self.dtype)}
            for label in labels_of(self.batch)
        ]

    @property
    def dtype(self):
        return self.outputs.queries.logits.dtype

    @property
    def loss(self):
        config = self.detector.model.config
        return THEIRS[config.model_type](config)

    @property
    def meta(self):
        """What transformers calls denoising_meta_values."""
        noisy = self.outputs.denoising
        image, query, _ = noisy.matched
        rows = range(len(self.batch.num_objects))
        return {
            "dn_positive_idx": [query[image == row] for row in rows],
            "dn_num_group": noisy.num_groups,
            "dn_num_split": [noisy.num, self.detector.model.config.num_queries],
        }


def make(tmp_path, head, numbers, dtype=torch.float64, change=True, **config):
    """The losses of a detector that predicts different things for different queries."""
    detector = tiny_detector(tmp_path / "backbone", head)
    trainable = detector.trainable.to(dtype).eval()
    for name, value in config.items():
        setattr(detector.model.config, name, value)
    trainable.criterion = detector.family.criterion(detector.model.config)
    if change:
        torch.manual_seed(2)
        decoder = detector.model.model.decoder
        for layer in [*decoder.bbox_embed, *decoder.class_embed]:
            for parameter in layer.parameters():
                parameter.data += 0.3 * torch.randn_like(parameter)
    batch = make_batch(numbers)
    batch.objects = dataclasses.replace(batch.objects, boxes=batch.objects.boxes.to(dtype))
    counts = trainable.counts(batch).alone
    pixels = trainable.normalization(batch.pixel_values, batch.pixel_mask).to(dtype)
    with torch.no_grad():
        outputs = detector.family.outputs(detector.model, pixels, batch, counts)
        losses = trainable.criterion(outputs, batch, counts)
    return Case(detector, batch, outputs, losses)


def paired(found, layer, layers=LAYERS):
    """A layer's predictions, as transformers' losses take them."""
    outputs = {"logits": found.logits[layer], "pred_boxes": found.boxes[layer]}
    if found.edges is not None and layer < layers:
        outputs["pred_corners"] = found.edges[layer].flatten(-2)
        outputs["ref_points"] = found.references
        outputs["teacher_corners"] = found.edges[layers - 1].flatten(-2)
        outputs["teacher_logits"] = found.logits[layers - 1]
    return outputs


def in_fp32(labels):
    return [{**label, "boxes": label["boxes"].float()} for label in labels]


def limit(name, dtype):
    """Relative tolerance of a term."""
    return LIMITS[torch.float32 if name[5:8] in ("fgl", "ddf") else dtype]


def ending(layer, names, noise=""):
    """Of the names of a layer's terms."""
    if layer >= LAYERS:
        return noise + names[layer - LAYERS]
    return noise + ("" if layer == LAYERS - 1 else f"_{layer}")


def wanted_terms(case):
    """Every term, by transformers' functions and its matcher."""
    loss, labels, terms = case.loss, case.labels, {}
    num_boxes = max(sum(case.batch.num_objects), 1)
    kinds = [QUALITY[case.detector.model.config.model_type], "boxes", "local"]
    kinds = kinds if case.outputs.queries.edges is not None else kinds[:2]

    def add(found, layer, indices, count, end):
        outputs = paired(found, layer)
        for kind in kinds:
            values = (outputs, labels)
            if kind == "local":  # in fp64 transformers' code breaks
                values = ({n: v.float() for n, v in outputs.items()}, in_fp32(labels))
            for name, value in loss.get_loss(kind, *values, indices, count).items():
                terms[f"{name}{end}"] = value

    queries, noisy = case.outputs.queries, case.outputs.noisy
    for layer in range(len(queries.logits)):
        indices = loss.matcher(paired(queries, layer), labels)
        add(queries, layer, indices, num_boxes, ending(layer, case.outputs.names))
    indices = loss.get_cdn_matched_indices(case.meta, labels)
    for layer in range(len(noisy.logits)):
        end = ending(layer, case.outputs.noisy_names, "_dn")
        add(noisy, layer, indices, num_boxes * case.meta["dn_num_group"], end)
    # The last layer teaches itself nothing.
    return {name: v for name, v in terms.items() if name not in ("loss_ddf", "loss_ddf_dn")}


@pytest.mark.parametrize("dtype", LIMITS, ids=["fp32", "fp64"])
@pytest.mark.parametrize("images", FOUR_IMAGES)
@pytest.mark.parametrize("head", REAL_TIME)
def test_terms_are_those_of_transformers(tmp_path, head, images, dtype):
    case = make(tmp_path, head, FOUR_IMAGES[images], dtype)
    wanted, found = wanted_terms(case), case.losses.terms
    assert found.keys() == wanted.keys()
    assert len(found) == {"rt_detr_v2": 15, "d_fine": 27, "deimv2": 27}[head]
    for name, value in wanted.items():
        rel = limit(name, dtype)
        assert found[name].item() == pytest.approx(float(value), rel=rel, abs=rel * 1e-2), name
    nothing = {name for name, value in found.items() if not value > 0}
    if images in ("full", "even"):
        assert not nothing
    if images == "uneven":  # the few matches of a layer may have an IoU of 0, which weighs nothing
        assert nothing <= {"loss_fgl", "loss_fgl_0"}


@pytest.mark.parametrize("head", REAL_TIME)
def test_total_weighs_terms_as_transformers_does(tmp_path, head):
    case = make(tmp_path, head, FOUR_IMAGES["uneven"])
    weights = case.loss.weight_dict
    wanted = sum(
        weights["_".join(name.split("_")[:2])] * float(value)
        for name, value in wanted_terms(case).items()
    )
    assert case.losses.total.item() == pytest.approx(
        wanted, rel=1e-10 if head == "rt_detr_v2" else 1e-6
    )


@pytest.mark.parametrize("images", FOUR_IMAGES)
@pytest.mark.parametrize("head", REAL_TIME)
def test_matches_are_those_of_transformers(tmp_path, head, images):
    case = make(tmp_path, head, FOUR_IMAGES[images])
    matcher = RTDetrHungarianMatcher(case.detector.model.config)
    found = case.detector.trainable.criterion.match(case.outputs.queries, case.batch)
    layer, image, query, target = found
    first = torch.tensor([0, *case.batch.num_objects]).cumsum(0)
    for number in range(len(case.outputs.queries.logits)):
        theirs = matcher(paired(case.outputs.queries, number), case.labels)
        for row, (queries, targets) in enumerate(theirs):
            own = (layer == number) & (image == row)
            assert torch.equal(query[own], queries)
            assert torch.equal(target[own] - first[row], targets)
    matched = sum(min(num, 6) for num in case.batch.num_objects)
    assert len(layer) == matched * len(case.outputs.queries.logits)


@pytest.mark.parametrize("images", [name for name in FOUR_IMAGES if name != "empty"])
def test_whole_loss_of_rt_detr_is_that_of_transformers(tmp_path, images):
    case = make(tmp_path, "rt_detr_v2", FOUR_IMAGES[images])
    queries, noisy = case.outputs.queries, case.outputs.noisy
    logits = torch.cat([noisy.logits, queries.logits[:LAYERS]], dim=2).transpose(0, 1)
    boxes = torch.cat([noisy.boxes, queries.boxes[:LAYERS]], dim=2).transpose(0, 1)
    total, terms, _ = RTDetrForObjectDetectionLoss(
        logits[:, -1],
        case.labels,
        "cpu",
        boxes[:, -1],
        case.detector.model.config,
        logits,
        boxes,
        enc_topk_logits=queries.logits[-1],
        enc_topk_bboxes=queries.boxes[-1],
        denoising_meta_values=case.meta,
    )
    assert case.losses.total.item() == pytest.approx(total.item(), rel=1e-10)
    assert len(terms) == len(case.losses.terms)


@pytest.mark.parametrize("head", REAL_TIME)
def test_predictions_are_those_of_the_untouched_model(tmp_path, head):
    """The last layer's; noisy queries before them change nothing."""
    case = make(tmp_path, head, [1, 2])
    trainable = case.detector.trainable
    pixels = trainable.normalization(case.batch.pixel_values, case.batch.pixel_mask)
    with torch.no_grad():
        theirs = case.detector.model(pixel_values=pixels.double())
    torch.testing.assert_close(case.outputs.queries.logits[LAYERS - 1], theirs.logits)
    boxes = theirs.pred_boxes if head == "rt_detr_v2" else theirs.pred_boxes.clamp(0, 1)
    torch.testing.assert_close(case.outputs.queries.boxes[LAYERS - 1], boxes)


@pytest.mark.parametrize("head", REAL_TIME)
def test_layers_are_those_that_transformers_predicts_in_training(tmp_path, head):
    """With the same noisy queries, in the order of its own outputs."""
    case = make(tmp_path, head, [1, 2])
    model = case.detector.model.train()
    trainable = case.detector.trainable
    pixels = trainable.normalization(case.batch.pixel_values, case.batch.pixel_mask).double()
    config = model.config
    noisy = noisy_queries(case.batch, trainable.counts(case.batch).alone, config.num_labels, config)

    def prepend(_, __, kwargs):
        own = kwargs["inputs_embeds"]
        points = torch.special.logit(noisy.boxes.double(), eps=1e-5)
        return (), {
            **kwargs,
            "inputs_embeds": torch.cat([model.model.denoising_class_embed(noisy.classes), own], 1),
            "reference_points": torch.cat([points, kwargs["reference_points"]], 1),
            "encoder_attention_mask": noisy.hidden(own.shape[1], own.dtype),
        }

    model.model.decoder.register_forward_pre_hook(prepend, with_kwargs=True)
    with torch.no_grad():
        theirs = model.model(pixel_values=pixels)
    logits = theirs.intermediate_logits.transpose(0, 1)
    refined = head != "rt_detr_v2"  # and what its first layer predicts before comes first
    ours = torch.cat([case.outputs.noisy.logits, case.outputs.queries.logits[:-1]], dim=2)
    assert len(logits) == len(ours) == LAYERS + refined
    torch.testing.assert_close(ours[:LAYERS], logits[refined:])
    if refined:
        torch.testing.assert_close(ours[LAYERS], logits[0])
        corners = theirs.intermediate_predicted_corners.transpose(0, 1)
        edges = torch.cat([case.outputs.noisy.edges, case.outputs.queries.edges], dim=2)
        torch.testing.assert_close(edges.flatten(-2), corners)


@pytest.mark.parametrize("head", REAL_TIME)
def test_without_noisy_queries(tmp_path, head):
    case = make(tmp_path, head, FOUR_IMAGES["uneven"], num_denoising=0)
    assert case.outputs.noisy is None
    assert case.losses.terms
    assert not any("_dn" in name for name in case.losses.terms)
    whole = make(tmp_path, head, FOUR_IMAGES["uneven"])
    for name, value in case.losses.terms.items():
        assert value.item() == pytest.approx(whole.losses.terms[name].item(), rel=1e-10)


@pytest.mark.parametrize("head", REAL_TIME)
def test_alpha_and_gamma_are_those_of_the_config(tmp_path, head):
    changes = {"focal_loss_gamma": 1.3, "matcher_class_cost": 0.5, "matcher_gamma": 1.0}
    changes |= {"mal_alpha": 0.4} if head == "deimv2" else {"focal_loss_alpha": 0.4}
    changes |= {} if head == "rt_detr_v2" else {"reg_scale": 8.0, "up": 0.25}
    case = make(tmp_path, head, FOUR_IMAGES["uneven"], **changes)
    for name, value in wanted_terms(case).items():
        rel = limit(name, torch.float64)
        assert case.losses.terms[name].item() == pytest.approx(float(value), rel=rel), name
