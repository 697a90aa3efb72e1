import albumentations as A
import cv2
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from builders import write_coco
from data.batch import Sample
from data.build import build_data
from data.canvas import CanvasRule, resized_sizes
from data.feed.collate import collate
from data.feed.loader import TrainDataset, train_loader
from data.feed.sampler import SampleRef, StepSampler
from data.feed.transforms import Augment, resize
from data.objects import Objects
from errors import UserError
from found import crowds_alone
from model.heads.detr import FAMILY
from settings.keys import DataConfig, ImageSizeConfig

FLIP = {"HorizontalFlip": {"p": 0.5}}


AFFINE = {
    "Affine": {
        "rotate": [-5, 5],
        "shear": [-5, 5],
        "translate_percent": {"x": [-0.05, 0.05], "y": [-0.05, 0.05]},
        "p": 1.0,
    }
}


IMAGE = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)


BOX = np.array([[40.0, 30.0, 20.0, 10.0]])


def augmented(specs, image, boxes, seed, size=None):
    """Image, boxes, and which of the given boxes they are."""
    augment = specs if isinstance(specs, Augment) else Augment(specs)
    image, objects, _ = augment(image, Objects(boxes, np.arange(len(boxes))), seed, size)
    return image, objects.boxes, objects.classes


@pytest.mark.parametrize("size", [ImageSizeConfig(128), ImageSizeConfig(200, 100)])
@pytest.mark.parametrize("shape", [(80, 120), (301, 77), (128, 128), (99, 100)])
def test_resize_equals_the_exported_image_processor(size, shape):
    image = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    rule = CanvasRule(size)
    settings = {**rule.processor_settings(), "do_pad": False}
    processor = FAMILY.processor_class(**settings, do_normalize=False, do_rescale=False)
    expected = processor(images=[image], return_tensors="np")["pixel_values"][0]
    ours = resize(image, rule.resized(*shape))
    np.testing.assert_array_equal(ours.transpose(2, 0, 1), expected)


def test_equal_seeds_give_equal_draws_and_others_differ():
    augment = Augment([FLIP, AFFINE])
    draws = {s: augmented(augment, IMAGE, BOX, (0, 1, s)) for s in range(20)}
    for seed, (image, boxes, _) in draws.items():
        again = augmented([FLIP, AFFINE], IMAGE, BOX, (0, 1, seed))
        np.testing.assert_array_equal(image, again[0])
        np.testing.assert_array_equal(boxes, again[1])
    assert len({boxes.tobytes() for _, boxes, _ in draws.values()}) == 20


def test_translation_goes_either_way():
    augment = Augment([{"Affine": {"translate_percent": {"x": [-0.05, 0.05]}, "p": 1.0}}])
    shifts = [augmented(augment, IMAGE, BOX, (s,))[1][0, 0] - 40 for s in range(50)]
    assert min(shifts) < -2
    assert max(shifts) > 2
    assert max(map(abs, shifts)) <= 6.01


def test_flip_moves_the_box_with_the_pixels():
    image = np.zeros((80, 120, 3), np.uint8)
    image[30:40, 40:60] = 255
    flipped, boxes, kept = augmented([{"HorizontalFlip": {"p": 1.0}}], image, BOX, (0,))
    np.testing.assert_allclose(boxes, [[60, 30, 20, 10]], atol=1e-4)
    assert kept.tolist() == [0]
    assert flipped[30:40, 60:80].min() == 255
    assert flipped.sum() == image.sum()


def test_sample_that_would_lose_all_boxes_stays_as_it_was():
    corner = np.array([[0.0, 0.0, 4.0, 4.0]])
    crop = {"Crop": {"x_min": 60, "y_min": 40, "x_max": 120, "y_max": 80}}
    image, boxes, kept = augmented([crop], IMAGE, corner, (0,))
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(boxes, corner)
    two = np.array([[0.0, 0.0, 4.0, 4.0], [70.0, 50.0, 20.0, 20.0]])
    image, boxes, kept = augmented([crop], IMAGE, two, (0,))
    assert image.shape == (40, 60, 3)
    assert kept.tolist() == [1]
    np.testing.assert_allclose(boxes, [[10, 10, 20, 20]], atol=1e-4)


def test_boxes_stay_inside_and_with_their_numbers():
    rng = np.random.default_rng(2)
    augment = Augment([FLIP, AFFINE])
    for seed in range(100):
        corner = rng.uniform(0, [110, 70], (6, 2))
        boxes = np.concatenate(
            [corner, np.minimum([120, 80] - corner, rng.uniform(2, 40, (6, 2)))], 1
        )
        _, out, kept = augmented(augment, IMAGE, boxes, (seed,))
        assert len(out) == len(kept) <= 6
        assert (out[:, :2] >= -1e-3).all()
        assert (out[:, 0] + out[:, 2] <= 120 + 1e-3).all()
        assert (out[:, 1] + out[:, 3] <= 80 + 1e-3).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"HorizontalFlop": {}},
            r"data.augment\[1\]: albumentations has no transform 'HorizontalFlop' - did you mean HorizontalFlip?",
        ),
        ({"Affine": {"rotat": [-5, 5]}}, r"data.augment\[1\]: Affine has no argument 'rotat'"),
        ({"Affine": {"rotate": "much"}}, r"data.augment\[1\]: Affine refuses"),
        ({"Normalize": {}}, r"data.augment\[1\]: Normalize does not give uint8"),
        ({"Blur": {}, "Affine": {}}, "expected one transform"),
    ],
)
def test_wrong_transforms_are_named(spec, message):
    with pytest.raises(UserError, match=message):
        Augment([FLIP, spec])


def test_targets_are_relative_to_the_unpadded_image():
    """A perfect prediction of the target comes back at its place, whatever the batch-mates are."""
    boxes = np.array([[10.0, 25.0, 40.0, 25.0]])
    sample = Sample(IMAGE[:50, :100], Objects(boxes, np.array([0])), 7, 0, (100, 200), (96, 128))
    other = Sample(IMAGE, Objects(BOX, np.array([1])), 8, 1, (80, 120), (96, 128))
    batch = collate([sample, other])
    assert batch.pixel_values.shape == (2, 3, 96, 128)
    assert batch.pixel_values.dtype.is_floating_point is False
    assert batch.pixel_mask[0].sum() == 50 * 100
    assert batch.pixel_values[0][:, 50:].max() == 0
    np.testing.assert_array_equal(
        batch.pixel_values[0, :, :50, :100].numpy(), IMAGE[:50, :100].transpose(2, 0, 1)
    )
    assert batch.objects.of_image(0).boxes.tolist() == [pytest.approx([0.3, 0.75, 0.4, 0.5])]
    assert batch.orig_sizes[0] == (100, 200)
    assert batch.objects.classes.tolist() == [0, 1]
    assert batch.num_objects == [1, 1]
    assert batch.image_ids == [7, 8]


def dataset(tmp_path, num_workers=0, augment=(FLIP, AFFINE)):
    write_coco(tmp_path, 12)
    cfg = DataConfig(
        source="coco",
        path=str(tmp_path),
        image_size=ImageSizeConfig(64),
        augment=list(augment),
        num_workers=num_workers,
        val_fraction=0.2,
    )
    data = build_data(cfg, seed=0)
    return TrainDataset(data.train, cfg, seed=0), data


def first_batches(tmp_path, num_workers, world=1, steps=4):
    samples, data = dataset(tmp_path, num_workers)
    by_image = {}
    for rank in range(world):
        sizes = resized_sizes(data.train.table.sizes, samples.cfg.image_size)
        order = StepSampler(sizes, 4, 2, seed=0, rank=rank, world=world)
        loader = iter(train_loader(samples, order, pin=False))
        for step in range(steps):
            for _ in range(order.accumulation):
                batch = next(loader)
                for row, image_id in enumerate(batch.image_ids):
                    by_image[step, image_id] = (
                        batch.pixel_values[row].numpy().tobytes(),
                        batch.objects.of_image(row).boxes.tolist(),
                    )
    return by_image


@pytest.mark.parametrize(("num_workers", "world"), [(1, 1), (2, 1), (0, 2)])
def test_samples_do_not_depend_on_workers_and_world(tmp_path, num_workers, world):
    assert first_batches(tmp_path, num_workers, world) == first_batches(tmp_path, 0)


def test_augmentation_differs_by_epoch_and_image(tmp_path):
    samples, _ = dataset(tmp_path)
    refs = [SampleRef(index, epoch, (64, 64)) for index in range(5) for epoch in range(4)]
    images = {ref: samples[ref].image.tobytes() for ref in refs}
    assert len(set(images.values())) == len(refs)
    assert all(samples[ref].image.tobytes() == image for ref, image in images.items())


def test_transforms_that_change_the_size_still_fit_the_canvas(tmp_path):
    crop = {"RandomRotate90": {"p": 1.0}}
    samples, data = dataset(tmp_path, augment=[crop])
    for index, (height, width) in enumerate(
        resized_sizes(data.train.table.sizes, samples.cfg.image_size)
    ):
        sample = samples[SampleRef(index, 0, (64, 64))]
        assert sample.image.shape[0] <= height
        assert sample.image.shape[1] <= width
        assert (sample.objects.boxes[:, [0, 2]].sum(1) <= sample.image.shape[1] + 1e-3).all()


def test_group_boxes_are_no_targets(tmp_path):
    samples, data = dataset(tmp_path, augment=[])
    index = next(i for i, r in enumerate(data.train.records) if len(r.objects))
    samples.split = crowds_alone(data.train)
    assert len(samples[SampleRef(index, 0, (64, 64))].objects) == 0


def photo_like(height, width, seed=0):
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


WILD = {"Affine": {"rotate": [-8, 8], "shear": [-6, 6], "scale": [0.8, 1.2], "p": 1.0}}


@pytest.mark.parametrize("seed", range(12))
def test_one_warp_gives_the_picture_of_the_separate_steps(seed):
    """Against albumentations' own flip and affine map on the resized image, with the same draws."""
    image = photo_like(60, 80, seed)
    size = (150, 200)
    boxes = np.array([[40.0, 30, 60, 50], [90, 70, 30, 20]])
    augment = Augment([{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}, WILD])
    fused, moved, kept = augmented(augment, image, boxes, (seed,), size)

    expected, expected_boxes = resize(image, size), boxes
    states = np.random.SeedSequence([seed]).generate_state(4)
    for transform, state in zip(augment.warps, states[1:], strict=True):
        single = A.Compose([transform], bbox_params=A.BboxParams(format="coco", label_fields=[]))
        transform.set_random_seed(int(state))
        out = single(image=expected, bboxes=expected_boxes)
        expected, expected_boxes = out["image"], out["bboxes"]
    assert kept.tolist() == [0, 1]
    assert moved == pytest.approx(np.asarray(expected_boxes), abs=0.01)
    inner = (slice(20, -20), slice(20, -20))  # the fill of the border is blended otherwise
    difference = np.abs(fused[inner].astype(int) - expected[inner].astype(int))
    assert difference.mean() < 1.0


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    st.integers(0, 2**31),
    st.tuples(st.integers(20, 120), st.integers(20, 120)),
    st.tuples(st.integers(64, 200), st.integers(64, 200)),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=6),
)
def test_boxes_stay_inside_and_with_their_labels(seed, own, size, relative):
    """After any chain of warps and others."""
    limits = np.array([size[1], size[0]] * 2, dtype=float)
    corners = np.array(relative).reshape(-1, 4) * limits
    low, high = (
        np.minimum(corners[:, :2], corners[:, 2:]),
        np.maximum(corners[:, :2], corners[:, 2:]),
    )
    boxes = np.concatenate([low, high - low], axis=1)
    boxes = boxes[(boxes[:, 2:] > 1).all(axis=1)]
    image = np.zeros((*own, 3), np.uint8)
    for specs in ([WILD], [{"HorizontalFlip": {"p": 0.5}}, WILD, {"RandomBrightnessContrast": {}}]):
        augment = Augment(specs)
        out, moved, kept = augmented(augment, image, boxes, (seed,), size)
        again = augmented(augment, image, boxes, (seed,), size)
        assert out.shape == (*size, 3)
        assert np.array_equal(moved, again[1])
        assert len(moved) == len(kept) == len(set(kept.tolist()))
        assert len(kept) or not len(boxes)
        assert (moved[:, :2] >= 0).all()
        assert (moved[:, :2] + moved[:, 2:] <= np.array(size[::-1]) + 1e-6).all()
        assert (moved[:, 2:] > 0).all()


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.integers(0, 2**31), st.floats(0.6, 2.5), st.booleans())
def test_drawn_corners_are_where_the_boxes_say(seed, scale, flips_only):
    """A bright rectangle, warped, has the extent of its warped box within a pixel."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[40:80, 50:110] = 255
    size = (round(120 * scale), round(160 * scale))
    factor = np.array([size[1] / 160, size[0] / 120] * 2)
    flips = [{"HorizontalFlip": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}]
    mild = {"Affine": {"rotate": [-5, 5], "shear": [-5, 5], "p": 1.0}}
    augment = Augment(flips if flips_only else [*flips, mild])
    boxes = np.array([[50.0, 40, 60, 40]]) * factor
    out, moved, _ = augmented(augment, image, boxes, (seed,), size)
    rows, columns = np.nonzero(out[..., 0] > 127)
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    x, y, width, height = moved[0]
    assert [x, y, x + width, y + height] == pytest.approx(drawn, abs=1.0)


def test_fast_resize_is_the_same_picture_where_it_enlarges():
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    for size in ((180, 240), (91, 121), (300, 400)):
        exact, fast = resize(image, size), resize(image, size, fast=True)
        assert np.abs(exact.astype(int) - fast.astype(int)).max() <= 1
    smooth = photo_like(90, 120)
    exact, fast = resize(smooth, (75, 100)), resize(smooth, (75, 100), fast=True)
    assert np.abs(exact.astype(int) - fast.astype(int)).mean() < 1.0


def test_transforms_of_one_chain_draw_independently():
    """Compose alone gives them one seed: then both are applied, or none."""
    chain = [{"ToGray": {"p": 0.5}}, {"InvertImg": {"p": 0.5}}]
    augment = Augment(chain)
    image = np.full((8, 8, 3), (250, 10, 10), np.uint8)
    outcomes = {"gray": 0, "inverted": 0, "both": 0}
    for seed in range(400):
        out, _, _ = augmented(augment, image, np.zeros((0, 4)), (seed,))
        gray = out[0, 0, 0] == out[0, 0, 1]
        inverted = out[0, 0, 0] < 100 if not gray else out[0, 0, 0] > 150
        outcomes["gray"] += gray
        outcomes["inverted"] += inverted
        outcomes["both"] += gray and inverted
    assert 150 < outcomes["gray"] < 250
    assert 150 < outcomes["inverted"] < 250
    assert 70 < outcomes["both"] < 130


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"RandomCrop": {"height": 4000, "width": 4000}},
            "RandomCrop fails on an image with a box",
        ),
        ({"ToGray": {"num_output_channels": 1}}, "ToGray gives uint8"),
        ({"MaskDropout": {}}, "MaskDropout fails"),
    ],
)
def test_transform_that_cannot_work_is_named_at_the_start(spec, message):
    with pytest.raises(UserError, match=rf"data.augment\[0\]: {message}"):
        Augment([spec])
