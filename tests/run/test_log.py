import shutil

import pytest

from builders import tiny_run
from runs import losses, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_tracker_that_fails_does_not_stop_training(tmp_path, monkeypatch):
    import trackio

    def explode(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(trackio, "init", explode)
    with pytest.warns(UserWarning, match="tracker failed .*disk full"):
        train(tiny_run(tmp_path, run__tracker="trackio"))
    assert len(losses(tmp_path / "run")) == 3


def test_trackio_gets_the_numbers(tmp_path, monkeypatch):
    import trackio

    logged = []
    original = trackio.Run.log

    def spy(self, metrics, step=None, **rest):
        logged.append((step, metrics))
        return original(self, metrics, step=step, **rest)

    monkeypatch.setattr(trackio.Run, "log", spy)
    train(tiny_run(tmp_path, run__tracker="trackio"))
    assert [step for step, _ in logged] == [1, 2, 3, 3]
    assert logged[0][1]["train/loss"] == losses(tmp_path / "run")[0]


def test_resume_continues_the_same_run_in_the_tracker(tmp_path, monkeypatch):
    """Also after the folder was moved."""
    import trackio

    names = []
    original = trackio.init
    monkeypatch.setattr(
        trackio,
        "init",
        lambda **rest: (names.append((rest["name"], rest["resume"])), original(**rest))[1],
    )
    keys = {"run__tracker": "trackio", "train__checkpoint_every": 2}
    train(tiny_run(tmp_path, **keys))
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/checkpoints/step-000003")
    train(tiny_run(tmp_path, run__output_dir=tmp_path / "moved", run__resume="auto", **keys))
    assert names == [("run", "allow"), ("run", "allow")]
