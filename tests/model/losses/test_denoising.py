"""Noisy copies of the objects as queries."""

import dataclasses

import pytest
import torch
from transformers.models.d_fine.modeling_d_fine import get_contrastive_denoising_training_group

from benchmarks.default_criterion import labels_of
from builders import FOUR_IMAGES, REAL_TIME, make_batch, part_of, tiny_detector
from model.losses.boxes import corners
from model.losses.denoising import LARGEST, noisy_queries

NUM_QUERIES = 6
NUM_CLASSES = 3


@dataclasses.dataclass
class Config:
    num_denoising: int = 12
    label_noise_ratio: float = 0.5
    box_noise_scale: float = 1.0
    num_labels: int = NUM_CLASSES


def make(batch, most=None, classes=NUM_CLASSES, **config):
    counts = {LARGEST: max(batch.num_objects) if most is None else most}
    return noisy_queries(batch, counts, classes, Config(**config))


def kinds(noisy, batch):
    """Per image: its boxes [n, 4], classes [n], and those of its noisy copies [G, 2, n, ...]."""
    most = noisy.num // (2 * noisy.num_groups)
    shape = (noisy.num_groups, 2, most)
    for row, num in enumerate(batch.num_objects):
        objects = batch.objects.of_image(row)
        boxes = noisy.boxes[row].unflatten(0, shape)[:, :, :num]
        classes = noisy.classes[row].unflatten(0, shape)[:, :, :num]
        yield objects.boxes, objects.classes, boxes, classes


@pytest.mark.parametrize("num_denoising", [1, 12, 40])
@pytest.mark.parametrize("images", [name for name in FOUR_IMAGES if name != "empty"])
def test_without_noise_they_are_those_of_transformers(images, num_denoising):
    batch = make_batch(FOUR_IMAGES[images])
    noisy = make(batch, num_denoising=num_denoising, label_noise_ratio=0.0, box_noise_scale=0.0)
    classes, boxes, mask, meta = get_contrastive_denoising_training_group(
        labels_of(batch), NUM_CLASSES, NUM_QUERIES, lambda c: c, num_denoising, 0.0, 0.0
    )
    assert torch.equal(noisy.classes, classes.long())
    torch.testing.assert_close(noisy.boxes, boxes, rtol=0, atol=1e-6)
    assert torch.equal(noisy.hidden(NUM_QUERIES, torch.float32), mask)
    assert noisy.num_groups == meta["dn_num_group"]
    assert [noisy.num, NUM_QUERIES] == meta["dn_num_split"]
    image, query, target = noisy.matched
    first = 0
    for row, num in enumerate(batch.num_objects):
        assert torch.equal(query[image == row], meta["dn_positive_idx"][row])
        own = target[image == row] - first
        assert torch.equal(own, torch.arange(num).repeat(noisy.num_groups))
        first += num


@pytest.mark.parametrize("images", FOUR_IMAGES)
def test_noise_follows_from_the_key_of_the_image_alone(images):
    batch = make_batch(FOUR_IMAGES[images])
    together = make(batch, most=8)
    first = 0
    for row, num in enumerate(batch.num_objects):
        alone = make(part_of(batch, slice(row, row + 1)), most=8)
        assert torch.equal(alone.boxes[0], together.boxes[row])
        assert torch.equal(alone.classes[0], together.classes[row])
        image, query, target = together.matched
        assert torch.equal(alone.matched[1], query[image == row])
        assert torch.equal(alone.matched[2], target[image == row] - first)
        first += num
    again = make(batch, most=8)
    assert torch.equal(again.boxes, together.boxes)
    batch.noise_keys = [key + 1 for key in batch.noise_keys]
    other = make(batch, most=8)
    assert torch.equal(other.boxes, together.boxes) == (images == "empty")


def test_noise_does_not_come_from_the_global_generator():
    batch = make_batch([3, 4])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = make(batch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(make(batch).boxes, first.boxes)


def test_images_of_one_content_and_other_keys_differ():
    batch = make_batch([2, 2])
    batch.objects = dataclasses.replace(
        batch.objects,
        boxes=batch.objects.boxes[[0, 1, 0, 1]],
        classes=batch.objects.classes[[0, 1, 0, 1]],
    )
    noisy = make(batch)
    assert not torch.equal(noisy.boxes[0], noisy.boxes[1])
    batch.noise_keys = [7, 7]
    noisy = make(batch)
    assert torch.equal(noisy.boxes[0], noisy.boxes[1])


def central(batch):
    """The batch with boxes that no noise moves over the border."""
    boxes = batch.objects.boxes.clone()
    boxes[:, :2] = 0.4 + 0.2 * boxes[:, :2]
    boxes[:, 2:] = boxes[:, 2:].clamp(max=0.35)
    batch.objects = dataclasses.replace(batch.objects, boxes=boxes)
    return batch


@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_edges_are_moved_by_less_and_more_than_half_a_side(scale):
    batch = central(make_batch([5, 8, 8, 8]))
    noisy = make(batch, num_denoising=800, box_noise_scale=scale)
    moves = []
    for boxes, _, copies, _ in kinds(noisy, batch):
        reach = boxes[:, 2:].repeat(1, 2) * scale / 2
        # Edges may change sides: centre and size say which was which.
        moves.append(((corners(copies) - corners(boxes)) / reach).flatten(2))
    low, high = torch.cat(moves, dim=-1).unbind(1)
    assert low.abs().max() <= 1 + 1e-4
    assert low.abs().max() > 0.99
    assert low.abs().min() < 0.01
    assert high.abs().min() >= 1 - 1e-4
    assert high.abs().max() <= 2 + 1e-4
    assert high.abs().max() > 1.99
    for part in (low, high):
        assert (part > 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert low.abs().mean() == pytest.approx(0.5, abs=0.02)
    assert high.abs().mean() == pytest.approx(1.5, abs=0.02)


def test_boxes_stay_inside_of_the_image():
    noisy = make(make_batch([8, 8, 8, 8], seed=3), num_denoising=100, box_noise_scale=4.0)
    edges = corners(noisy.boxes)
    assert edges.min() > -1e-6
    assert edges.max() < 1 + 1e-6


@pytest.mark.parametrize(("ratio", "num_classes"), [(0.5, 3), (1.0, 3), (0.5, 80), (0.5, 1)])
def test_share_of_classes_that_are_swapped(ratio, num_classes):
    batch = make_batch([8, 8, 8, 8], num_classes=num_classes)
    noisy = make(batch, classes=num_classes, num_denoising=2000, label_noise_ratio=ratio)
    other, seen = [], []
    for _, classes, _, copies in kinds(noisy, batch):
        other.append((copies != classes).flatten())
        seen.append(copies[copies != classes])
    share = torch.cat(other).float().mean()
    assert share == pytest.approx(ratio / 2 * (num_classes - 1) / num_classes, abs=0.01)
    drawn = torch.cat(seen).bincount(minlength=num_classes)
    assert len(drawn) == num_classes
    if num_classes == 3:
        assert (drawn > 0.2 * drawn.sum()).all()


def test_empty_places_are_of_no_class_and_match_nothing():
    batch = make_batch([0, 1, 3])
    noisy = make(batch, most=4)
    most, groups = 4, noisy.num_groups
    assert (groups, noisy.num) == (3, 24)
    classes = noisy.classes.unflatten(1, (groups, 2, most))
    boxes = noisy.boxes.unflatten(1, (groups, 2, most))
    for row, num in enumerate(batch.num_objects):
        assert (classes[row, :, :, num:] == NUM_CLASSES).all()
        assert (classes[row, :, :, :num] < NUM_CLASSES).all()
        assert boxes[row, :, :, num:].abs().sum() == 0
    image, query, target = noisy.matched
    assert len(image) == groups * sum(batch.num_objects)
    place = query % (2 * most)
    assert (place < most).all()  # those with little noise
    assert torch.equal(target, place + torch.tensor([0, 0, 1])[image])


def test_batch_without_objects():
    batch = make_batch([0, 0])
    for most, num in ((0, 24), (5, 20)):  # also of a step that has some elsewhere
        noisy = make(batch, most=most)
        assert noisy.num == num
        assert (noisy.classes == NUM_CLASSES).all()
        assert all(len(column) == 0 for column in noisy.matched)


def test_more_boxes_than_copies_are_one_group():
    batch = make_batch([20, 3])
    noisy = make(batch, num_denoising=12)
    assert (noisy.num_groups, noisy.num) == (1, 40)
    assert len(noisy.matched[0]) == 23


@pytest.mark.parametrize("head", REAL_TIME)
def test_queries_do_not_see_where_objects_are(tmp_path, head):
    """Other objects change noisy queries and their predictions, and nothing else."""
    detector = tiny_detector(tmp_path / "backbone", head)
    trainable, model = detector.trainable.eval(), detector.model
    torch.manual_seed(1)
    for parameter in model.model.decoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch, other = make_batch([2, 3]), make_batch([2, 3], seed=2)
    other.noise_keys = [5, 6]
    other.pixel_values = batch.pixel_values
    pixels = trainable.normalization(batch.pixel_values, batch.pixel_mask)
    with torch.no_grad():
        first, second = (
            detector.family.outputs(model, pixels, b, trainable.counts(b).alone)
            for b in (batch, other)
        )
    for name in ("logits", "boxes", "edges", "references"):
        one, two = getattr(first.queries, name), getattr(second.queries, name)
        assert (
            (one is None)
            == (two is None)
            == (head == "rt_detr_v2" and name not in ("logits", "boxes"))
        )
        assert one is None or torch.equal(one, two), name
    assert not torch.equal(first.noisy.logits, second.noisy.logits)
    assert not torch.equal(first.noisy.boxes, second.noisy.boxes)


@pytest.mark.parametrize("head", REAL_TIME)
def test_groups_do_not_see_each_other(tmp_path, head):
    """The gradient of one group's predictions ends at its own queries, and at the others'."""
    detector = tiny_detector(tmp_path / "backbone", head)
    trainable, model = detector.trainable.eval(), detector.model
    torch.manual_seed(1)
    for parameter in model.model.decoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch = make_batch([2, 3])
    given = {}

    def keep(_, __, kwargs):
        given["queries"] = kwargs["inputs_embeds"].detach().requires_grad_()
        return (), {**kwargs, "inputs_embeds": given["queries"]}

    pixels = trainable.normalization(batch.pixel_values, batch.pixel_mask)
    # Hooks run in the order they are registered in; the noisy queries' comes later.
    pre_hooks = model.model.decoder._forward_pre_hooks
    register = model.model.decoder.register_forward_pre_hook

    def register_before(hook, **kwargs):
        handle = register(hook, **kwargs)
        register(keep, with_kwargs=True)
        return handle

    model.model.decoder.register_forward_pre_hook = register_before
    outputs = detector.family.outputs(model, pixels, batch, trainable.counts(batch).alone)
    assert pre_hooks
    groups, num = outputs.denoising.num_groups, outputs.denoising.num
    assert (groups, num) == (4, 24)
    outputs.noisy.logits[:, :, 6:12].sum().backward()
    seen = given["queries"].grad.abs().sum((0, 2)) > 0
    assert seen[6:12].all()
    assert not seen[:6].any()
    assert not seen[12:num].any()
    assert seen[num:].any()  # where the image's own queries are is no secret
