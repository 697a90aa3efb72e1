import json
import math
import shutil

import pytest

import train_accelerate
from builders import launch, metrics_lines, tiny_run, write_coco
from errors import UserError
from runs import ids, losses, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def poison(monkeypatch, bad_id, times):
    """Make the loss of every micro-batch with image `bad_id` NaN, `times` times."""
    from model.losses.set_criterion import SetCriterion

    original, left = SetCriterion.__call__, [times]

    def call(self, outputs, batch, step_counts):
        losses = original(self, outputs, batch, step_counts)
        if left[0] and bad_id in batch.image_ids:
            left[0] -= 1
            return losses._replace(total=losses.total * float("nan"))
        return losses

    monkeypatch.setattr(SetCriterion, "__call__", call)


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_step_with_a_nan_changes_nothing_and_names_its_images(tmp_path, monkeypatch, precision):
    """Not with a lower loss scale either: that is no remedy for a loss that is no number."""
    keys = {"train__steps": 4, "train__micro_batch_size": 1, "train__ema_decay": 0.5}
    keys |= {"train__precision": precision}
    if precision == "fp16":
        keys |= {"train__loss_scale_start": 256.0}
    train(tiny_run(tmp_path, run__output_dir=tmp_path / "whole", **keys))
    poison(monkeypatch, bad_id=ids(tmp_path / "whole")[1][0], times=1)
    train(tiny_run(tmp_path, **keys))
    rows = metrics_lines(tmp_path / "run")
    bad = ids(tmp_path / "whole")[1][0]
    assert [r["train/skipped_image_ids"] for r in rows if "train/skipped_image_ids" in r] == [[bad]]
    steps = [r for r in rows if "train/loss" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4]
    whole = [r for r in metrics_lines(tmp_path / "whole") if "train/loss" in r]
    assert [r["train/lr"] for r in steps] == [r["train/lr"] for r in whole]
    assert (
        sorted(steps[1]["train/image_ids"]) == ids(tmp_path / "whole")[2]
    )  # the next in the stream
    assert math.isfinite(steps[-1]["train/loss"])
    scales = {r["train/loss_scale"] for r in steps if "train/loss_scale" in r}
    assert scales == ({256.0} if precision == "fp16" else set())
    state = json.loads((tmp_path / "run/checkpoints/last/state/state.json").read_text())
    assert (state["step"], state["samples_seen"]) == (4, (4 + 1) * 4)


def test_steps_without_a_single_box_are_finite(tmp_path):
    arguments = tiny_run(tmp_path, train__global_batch_size=2, train__steps=6)
    file = tmp_path / "data/annotations/train.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:1]
    file.write_text(json.dumps(content))
    train(arguments)
    rows = [r for r in metrics_lines(tmp_path / "run") if "train/loss" in r]
    empty = [r for r in rows if r["train/loss_bbox"] == 0.0]
    assert len(empty) >= 4
    assert all(math.isfinite(r["train/loss"]) and r["train/loss"] > 0 for r in rows)
    assert all(math.isfinite(r["train/grad_norm"]) for r in rows)


def test_run_ends_after_too_many_bad_steps_in_a_row(tmp_path, monkeypatch):
    keys = {"optim__lr": 1e30, "optim__max_grad_norm": 0, "train__max_skipped_steps": 3}
    with pytest.raises(UserError, match=r"step 2: 4 steps in a row .*train.max_skipped_steps"):
        train(tiny_run(tmp_path, train__steps=8, **keys))


def cut(file):
    """Keep an image's header, and nothing of its pixels."""
    content = file.read_bytes()
    file.write_bytes(content[: content.index(b"\xff\xda") + 20])


def test_too_many_broken_images_end_the_run_with_one_line(tmp_path):
    arguments = tiny_run(tmp_path, data__num_workers=1)
    for file in (tmp_path / "data/train").glob("*.jpg"):
        cut(file)
    result = launch(arguments)
    assert result.returncode == 2
    assert "cannot decode the image" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_broken_image_is_named_once_and_replaced(tmp_path, processes):
    """The same replacement on any number of processes and workers; missed in the evaluation."""
    keys = {"train__steps": 6, "train__micro_batch_size": 1, "data__num_workers": processes - 1}
    arguments = tiny_run(tmp_path, **keys)
    write_coco(tmp_path / "data", 12)
    for file in ("train/001.jpg", "val/002.jpg"):
        cut(tmp_path / "data" / file)
    result = launch(arguments, processes)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "run/train.log").read_text()
    assert text.count("train/001.jpg: cannot decode the image") == 1
    assert "another image takes its place" in text
    assert "1 validation image(s) cannot be read; what is on them counts as missed" in text
    assert all(11 not in row for row in ids(tmp_path / "run"))
    assert all(len(row) == 4 for row in ids(tmp_path / "run"))
    metrics = json.loads((tmp_path / "run/eval/step-000006/metrics.json").read_text())
    assert metrics["missing_images"] == 1
    if processes == 2:
        alone = tiny_run(tmp_path, **keys, run__output_dir=tmp_path / "alone")
        assert launch(alone).returncode == 0
        assert ids(tmp_path / "alone") == ids(tmp_path / "run")
        assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


def test_planted_defects_are_worked_around_or_refused(tmp_path):
    """Every kind of defect that can be: trained to the end with the counts in the log, or strict."""
    from planted import write_clean, write_planted

    write_planted(tmp_path / "data", refused=False)
    shutil.copytree(tmp_path / "data", tmp_path / "bad")
    keys = {"data__path": tmp_path / "bad", "train__steps": 12}
    result = launch(tiny_run(tmp_path, **keys))
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "run/train.log").read_text()
    for kind in ("box partly outside", "box without area", "missing image", "EXIF-rotated image"):
        assert kind in text
    assert "truncated" in text or "cannot decode" in text
    rows = [row for row in metrics_lines(tmp_path / "run") if "train/loss" in row]
    assert all(math.isfinite(row["train/loss"]) for row in rows)

    keys |= {"run__output_dir": tmp_path / "strict", "data__strict": True}
    result = launch(tiny_run(tmp_path, **keys))
    assert result.returncode == 2
    assert "data.strict" in result.stderr
    assert not (tmp_path / "strict/metrics.jsonl").exists()

    write_clean(tmp_path / "clean")
    file = next((tmp_path / "clean/train").glob("*.jpg"))
    keys |= {"data__path": tmp_path / "clean"}
    train(tiny_run(tmp_path, **keys))  # strict, and nothing to refuse
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])  # its header is whole
    keys |= {"run__output_dir": tmp_path / "strict2"}
    with pytest.raises(UserError, match=rf"{file.name}: truncated image.*refused by data.strict"):
        train(tiny_run(tmp_path, **keys))


def test_words_of_an_error_for_the_user_are_left_alone(tmp_path, monkeypatch):
    told = UserError("the dataset has 2 defects:\n  a.jpg: No such file or directory")

    def refuse(*_, **__):
        raise told

    monkeypatch.setattr(train_accelerate, "build_run", refuse)
    with pytest.raises(UserError) as error:
        train_accelerate.main(tiny_run(tmp_path))
    assert error.value is told
