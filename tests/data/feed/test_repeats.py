"""Images of rare classes come more often, in an order that depends on the seed alone."""

import numpy as np
import pytest

from builders import metrics_lines, tiny_run
from data.build import build_data
from data.feed.loader import TrainDataset
from data.feed.repeats import Repeats, repeat_factors
from data.feed.sampler import SampleRef, StepSampler
from settings.load import load_config

FACTORS = np.array([1.0, 1.0, 2.5, 1.0, 4.0, 1.3])
SIZES = np.full((6, 2), 64)


def refs(num_steps, micro=4, world=1):
    ranks = [
        iter(StepSampler(SIZES, 4, micro, 0, rank=rank, world=world, repeats=Repeats(FACTORS, 0)))
        for rank in range(world)
    ]
    turns = 4 // (micro * world)
    for _ in range(num_steps):
        yield sorted(
            (ref for rank in ranks for _ in range(turns) for ref in next(rank)),
            key=lambda ref: (ref.epoch, ref.index, ref.repeat),
        )


def test_factors_are_those_of_lvis():
    """Class 0 is on all of 4 images, class 1 on two, class 2 on one; sqrt(t / f) by hand."""
    image, classes = np.array([0, 1, 2, 3, 3, 2, 2, 0]), np.array([0, 0, 0, 0, 1, 1, 1, 2])
    factors = repeat_factors(image, classes, 5, threshold=0.9)
    assert factors == pytest.approx([(0.9 * 5) ** 0.5, 1.125**0.5, 2.25**0.5, 2.25**0.5, 1.0])


def test_each_epoch_has_the_same_length_and_an_image_as_often_as_its_factor_says():
    repeats = Repeats(FACTORS, 3)
    counts = np.array([np.bincount(repeats.images(e), minlength=6) for e in range(4000)])
    assert set(counts.sum(1)) == {len(repeats)} == {11}
    wanted = FACTORS * 11 / FACTORS.sum()
    assert (counts >= np.floor(wanted)).all()
    assert (counts <= np.ceil(wanted)).all()
    assert counts.mean(0) == pytest.approx(wanted, rel=0.03)


def test_no_image_is_left_out_of_an_epoch():
    """Whatever the sum of the factors is rounded to, here 7.3."""
    repeats = Repeats(np.array([1.0, 1.0, 2.3, 1.0, 1.0, 1.0]), 3)
    assert all(len(np.unique(repeats.images(epoch))) == 6 for epoch in range(300))


@pytest.mark.parametrize(("micro", "world"), [(1, 1), (2, 2), (1, 4)])
def test_every_world_sees_the_same_steps(micro, world):
    assert list(refs(30, micro, world)) == list(refs(30))


def test_repeats_of_an_image_are_counted_within_their_epoch():
    stream = [ref for step in refs(11) for ref in step]
    for epoch in range(4):
        own = [ref for ref in stream if ref.epoch == epoch]
        assert len(own) == 11
        for index in range(6):
            again = sorted(ref.repeat for ref in own if ref.index == index)
            assert again == list(range(len(again)))


def test_an_image_that_comes_again_is_augmented_anew(tmp_path):
    augment = '[{"RandomBrightnessContrast": {"p": 1.0}}]'
    cfg = load_config(tiny_run(tmp_path, data__augment=augment))
    data = build_data(cfg.data, 0)
    dataset = TrainDataset(data.train, cfg.data, 0)
    first, again, third = (
        dataset[SampleRef(0, 0, (64, 64), repeat=repeat)].image for repeat in (0, 1, 1)
    )
    assert not np.array_equal(first, again)
    assert np.array_equal(again, third)


def test_a_run_says_what_comes_more_often_and_counts_its_epochs_by_it(tmp_path, capsys):
    import train_accelerate

    argv = tiny_run(tmp_path, data__repeat_threshold=1.0, train__epochs=1.0, train__steps="null")
    assert train_accelerate.main(argv) == 0
    said = capsys.readouterr().out
    assert "images of rare classes come more often" in said
    assert "= 1." in next(line for line in said.splitlines() if line.startswith("plan"))
    assert metrics_lines(tmp_path / "run")
