import tracemalloc

import numpy as np
import pytest

from data.canvas import ResizedSizes
from data.feed.permutation import KeyedPermutation
from data.feed.sampler import (
    ComputedOrder,
    StepSampler,
    epoch_order,
    evaluation_batches,
    step_canvas,
)
from settings.keys import ImageSizeConfig

SIZES = np.random.default_rng(0).integers(40, 200, (37, 2))


def sampler(micro=4, world=1, rank=0, **changes):
    return StepSampler(SIZES, 8, micro, seed=5, world=world, rank=rank, **changes)


def steps_of(num_steps, micro, world, start_step=0):
    """The refs of each step, over all ranks, sorted."""
    ranks = [iter(sampler(micro, world, rank, start_step=start_step)) for rank in range(world)]
    turns = sampler(micro, world).accumulation
    return [
        sorted(
            (ref for rank in ranks for _ in range(turns) for ref in next(rank)),
            key=lambda ref: (ref.epoch, ref.index),
        )
        for _ in range(num_steps)
    ]


@pytest.mark.parametrize(
    ("micro", "world"), [(8, 1), (4, 1), (1, 1), (4, 2), (2, 2), (1, 4), (1, 8)]
)
def test_every_world_and_micro_batch_sees_the_same_steps(micro, world):
    assert steps_of(12, micro, world) == steps_of(12, 8, 1)


def test_epochs_are_whole_permutations_without_gaps_at_their_borders():
    refs = [ref for step in range(37) for ref in sampler().global_batch(step)]
    for epoch in range(8):
        indices = [ref.index for ref in refs[epoch * 37 : (epoch + 1) * 37]]
        assert sorted(indices) == list(range(37))
        assert {ref.epoch for ref in refs[epoch * 37 : (epoch + 1) * 37]} == {epoch}


def test_epochs_and_seeds_differ():
    first = epoch_order(SIZES, 8, 5, 0)
    assert not np.array_equal(first, epoch_order(SIZES, 8, 5, 1))
    assert not np.array_equal(first, epoch_order(SIZES, 8, 6, 0))
    np.testing.assert_array_equal(first, epoch_order(SIZES, 8, 5, 0))


def padding_waste(sizes, batches):
    """Padded over real pixels."""
    padded = sum(len(b) * np.prod(step_canvas(sizes[b])) for b in batches)
    return padded / sum(sizes[b].prod(1).sum() for b in batches)


def test_grouping_by_aspect_ratio_pads_little_on_a_photo_like_mix():
    """Random batches of 16 pad 1.3 to 1.5; 1.08 is the promise, rounding of the canvas included."""
    rng = np.random.default_rng(0)
    shapes = np.array([(480, 640), (427, 640), (640, 480), (360, 640), (640, 427), (640, 640)])
    sizes = shapes[rng.choice(len(shapes), 2000, p=[0.4, 0.3, 0.12, 0.08, 0.08, 0.02])]
    order = StepSampler(sizes, 16, 16, seed=0)
    grouped = [[ref.index for ref in order.global_batch(step)] for step in range(250)]
    shuffled = rng.permutation(2000).reshape(-1, 16)
    assert padding_waste(sizes, grouped) < 1.08
    assert padding_waste(sizes, shuffled) > 1.25


def test_grouping_leaves_each_step_of_a_window_to_chance():
    """Over epochs an image meets many others: its batch-mates are not always the same."""
    sizes = np.array([(480, 640), (640, 480)] * 100)
    order = StepSampler(sizes, 8, 8, seed=0)
    mates = set()
    for step in range(25 * 10):
        indices = {ref.index for ref in order.global_batch(step)}
        if 0 in indices:
            mates |= indices
    assert len(mates) > 40


def test_starting_later_is_seeking():
    assert steps_of(5, 2, 2, start_step=7) == steps_of(12, 2, 2)[7:]


def test_all_images_of_a_step_share_a_canvas_that_holds_them():
    for step in range(10):
        batch = sampler().global_batch(step)
        assert len({ref.canvas for ref in batch}) == 1
        height, width = batch[0].canvas
        largest = SIZES[[ref.index for ref in batch]].max(axis=0)
        assert height % 32 == width % 32 == 0
        assert 0 <= height - largest[0] < 32
        assert 0 <= width - largest[1] < 32


def test_evaluation_batches_hold_each_image_once():
    batches = evaluation_batches(21, 4)
    assert [i for batch in batches for i in batch] == list(range(21))
    assert {len(batch) for batch in batches} == {4, 1}


@pytest.mark.parametrize("num", [1, 2, 3, 17, 1000, 4097])
def test_a_keyed_permutation_has_each_number_once_and_depends_on_its_key(num):
    first = KeyedPermutation(num, [5, 0, num])[np.arange(num)]
    assert sorted(first) == list(range(num))
    np.testing.assert_array_equal(first, KeyedPermutation(num, [5, 0, num])[np.arange(num)])
    if num > 10:
        assert not np.array_equal(first, KeyedPermutation(num, [5, 1, num])[np.arange(num)])


def test_a_keyed_permutation_moves_neighbours_as_far_as_a_drawn_one():
    """Mean distance of neighbours is a third of the length; no place is bound to a number."""
    num = 3000
    moved = KeyedPermutation(num, [0])[np.arange(num)]
    assert abs(np.diff(moved)).mean() == pytest.approx(num / 3, rel=0.05)
    firsts = [int(KeyedPermutation(num, [key])[np.arange(1)][0]) for key in range(300)]
    halves = np.bincount(np.array(firsts) * 10 // num, minlength=10)
    assert halves.min() > 10
    assert halves.max() < 60


def test_orders_too_long_to_be_held_keep_every_promise_of_the_held_ones(monkeypatch):
    monkeypatch.setattr("data.feed.sampler.HELD_IMAGES", 0)
    assert isinstance(sampler()._order(0).order, ComputedOrder)
    test_epochs_are_whole_permutations_without_gaps_at_their_borders()
    test_starting_later_is_seeking()
    test_all_images_of_a_step_share_a_canvas_that_holds_them()
    test_grouping_by_aspect_ratio_pads_little_on_a_photo_like_mix()
    test_grouping_leaves_each_step_of_a_window_to_chance()
    for micro, world in ((4, 1), (2, 2), (1, 8)):
        test_every_world_and_micro_batch_sees_the_same_steps(micro, world)


def test_a_hundred_million_images_are_not_held(tmp_path):
    """Their sizes lie in a file; a step of a thousand images takes a part of a second and a few MB."""
    num = 100_000_000
    sizes = np.memmap(
        tmp_path / "sizes", np.int64, "w+", shape=(num, 2)
    )  # holes, which read as zeros
    resized = ResizedSizes(sizes, ImageSizeConfig(longest=64, fit="stretch"))
    order = StepSampler(resized, 1024, 8, seed=0, world=128, rank=3)
    tracemalloc.start()
    try:
        refs = [ref for step in (0, 1, 50_000, 97_657) for ref in order.global_batch(step)]
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert len({(ref.epoch, ref.index) for ref in refs}) == len(refs)
    assert {ref.epoch for ref in refs} == {0, 1}
    assert max(ref.index for ref in refs) > 90_000_000
