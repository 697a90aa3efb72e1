"""What a frozen backbone makes of windows of large images is stored as that of whole images is."""

import json
import os

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from builders import launch, metrics_lines, tiny_run
from data.feed.loader import EvalDataset, TrainDataset
from runs import losses, norms, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def windows_run(tmp_path, name, head="deformable_detr", **keys):
    usual = {
        "data__tiles__size": 40,
        "data__tiles__whole": True,
        "data__cache_features": 2,
        "data__cache_precision": "fp32",
        "data__cache_folder": tmp_path / "cache",
        "train__evaluate_every": 3,
        "optim__lr": 1e-5,  # rounding grows with it
        "run__output_dir": tmp_path / name,
    }
    return tiny_run(tmp_path, head, **{**usual, **keys})


def evaluated(run):
    rows = json.loads((run / "eval/step-000003/predictions.json").read_text())
    ap = [line["eval/AP"] for line in metrics_lines(run) if "eval/AP" in line]
    return ap, [row["score"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "later"), [("deformable_detr", 1e-5), ("maskformer", 1e-3)])
def test_the_head_cannot_tell_stored_windows_from_live_ones(tmp_path, head, later, monkeypatch):
    """later: a pair of a matching of masks may change."""
    train(windows_run(tmp_path, "stored", head))
    one, other = tmp_path / "stored", tmp_path / "live"
    two = launch(windows_run(tmp_path, "two", head, train__micro_batch_size=1), processes=2)
    assert two.returncode == 0, two.stderr
    assert "features    storing" not in (tmp_path / "two/train.log").read_text()
    AcceleratorState._reset_state(reset_partial_state=True)
    for kind in (TrainDataset, EvalDataset):
        monkeypatch.setattr(
            kind, "features", property(lambda _: None, lambda *_: None), raising=False
        )
    train(windows_run(tmp_path, "live", head))
    ap, scores = evaluated(other)
    assert len(scores) > 0
    for stored in (one, tmp_path / "two"):
        assert losses(stored) == pytest.approx(losses(other), rel=later)
        assert norms(stored) == pytest.approx(norms(other), rel=100 * later)
        assert evaluated(stored)[0] == pytest.approx(ap, abs=1e-6)
        assert evaluated(stored)[1] == pytest.approx(scores, abs=max(1e-4, later))


def test_other_windows_and_other_images_are_stored_anew(tmp_path):
    def stored():
        AcceleratorState._reset_state(reset_partial_state=True)
        return [
            {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
            for folder in sorted((tmp_path / "cache").iterdir())
            if folder.is_dir()
        ]

    def more(after, before):
        """Of the training images and of those for validation, with all that was there left alone."""
        return len(after) == len(before) == 2 and all(
            old.items() < new.items() for old, new in zip(before, after, strict=True)
        )

    train(windows_run(tmp_path, "one"))
    first = stored()
    train(windows_run(tmp_path, "again"))
    assert stored() == first
    train(windows_run(tmp_path, "narrower", data__tiles__size=39))
    second = stored()
    assert more(second, first)
    for split in ("train", "val"):
        image = next((tmp_path / "data" / split).glob("*.jpg"))
        with Image.open(image) as opened:
            turned = opened.convert("RGB").rotate(180)
        turned.save(image)
        os.utime(image, (1, 1))
    train(windows_run(tmp_path, "turned"))
    assert more(stored(), second)
