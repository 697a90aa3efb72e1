"""data.image_size.canvas: training pads as evaluation and the export do."""

import itertools

import pytest

from builders import tiny_run
from data.feed.loader import batches_of
from run.build import build_run, start_processes
from run.memory_probe import Trial
from settings.load import load_config

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def canvases(tmp_path, **keys):
    """Of some steps, of the memory's trial, and of evaluation."""
    usual = {"data__image_size__longest": 96, "train__global_batch_size": 2}
    cfg = load_config(tiny_run(tmp_path, **{**usual, **keys}))
    (tmp_path / "run").mkdir(exist_ok=True)
    run = build_run(cfg, start_processes(cfg))
    with batches_of(run.train_loader()[0]) as stream:
        found = {tuple(b.pixel_mask.shape[1:]) for b in itertools.islice(stream, 8)}
    trial = Trial(cfg, run.accelerator, run.data, run.detector, run.features)
    return found, trial.canvas, run.detector.rule.full


@pytest.mark.parametrize("stored", [0, 1])
def test_every_step_has_the_square_of_evaluation(tmp_path, stored):
    folder = tmp_path / "features"
    keys = {"data__cache_features": stored, "data__cache_folder": folder}
    found, largest, full = canvases(tmp_path, data__image_size__canvas="square", **keys)
    assert found == {full}
    assert largest == full


def test_otherwise_each_step_has_its_own(tmp_path):
    found, largest, full = canvases(tmp_path)
    assert len(found) > 1
    assert max(found) <= full
    assert largest == tuple(map(max, zip(*found, strict=True)))
