"""Whole runs of the embedded default on several worlds (longer; run by make test-slow)."""

import pytest

from benchmarks.exactness import STEPS, WORLDS, deviation, run_world


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    root = tmp_path_factory.mktemp("worlds")
    return {world: run_world(root / f"{world[0]}-{world[1]}", *world) for world in WORLDS}


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS[1:])
def test_thirty_steps_are_the_same_on_any_world(outcomes, world):
    reference, outcome = outcomes[WORLDS[0]], outcomes[world]
    assert len(outcome.losses) == STEPS
    assert outcome.image_ids == reference.image_ids
    assert outcome.lrs == pytest.approx(reference.lrs, rel=1e-12)
    assert outcome.grad_norms == pytest.approx(reference.grad_norms, rel=1e-3)
    loss, weights = deviation(outcome, reference)
    assert loss < 1e-4
    assert weights < 1e-4
