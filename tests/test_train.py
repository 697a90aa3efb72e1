"""Whole runs through the real command line."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from builders import TINY_HEAD, VARIANTS, launch, metrics_lines, save_backbone, tiny_run, write_coco
from PIL import Image
from transformers import pipeline

import tools.evaluate
import tools.predict
import train_accelerate
from errors import UserError


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.autograd.set_detect_anomaly(False)


def train(arguments):
    train_accelerate.main(arguments)
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(run):
    return [row["train/loss"] for row in metrics_lines(run) if "train/loss" in row]


def norms(run):
    return [row["train/grad_norm"] for row in metrics_lines(run) if "train/loss" in row]


def ids(run):
    return [sorted(row["train/image_ids"]) for row in metrics_lines(run) if "train/loss" in row]


@pytest.mark.parametrize("head", TINY_HEAD)
def test_run_leaves_what_it_promises(tmp_path, head):
    train(tiny_run(tmp_path, head, train__evaluate_every=2))
    run = tmp_path / "run"
    for name in (
        *("config.yaml", "run.json", "metrics.jsonl", "train.log", "samples/step-000001-0.png"),
        *("eval/step-000002/metrics.json", "eval/step-000003/per_class.csv"),
        *("eval/step-000003/predictions.json", "eval/step-000003/predictions.png"),
        *(
            "checkpoints/step-000002/model/trainable.safetensors",
            "checkpoints/last",
            "checkpoints/best",
        ),
        *("export/config.json", "export/model.safetensors", "export/preprocessor_config.json"),
    ):
        assert (run / name).exists(), name
    rows = metrics_lines(run)
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 3]
    assert {"train/loss_bbox", "train/lr", "time/data_wait_%", "time/images_per_s"} <= set(rows[0])
    metrics = json.loads((run / "eval/step-000003/metrics.json").read_text())
    assert {
        "AP",
        "AP50",
        "AP75",
        "AP_small",
        "AP_medium",
        "AP_large",
        "AR_100",
        "per_class",
    } <= set(metrics)
    log = (run / "train.log").read_text()
    assert "39/39 tensors, sha256=" in log
    assert "pipeline(" in (run / "export/README.md").read_text()
    for file in (run / "export").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file


@pytest.mark.parametrize("head", VARIANTS)
def test_pipeline_gives_the_boxes_that_were_evaluated(tmp_path, head):
    train(tiny_run(tmp_path, head))
    run = tmp_path / "run"
    detector = pipeline("object-detection", model=str(run / "export"))
    evaluated = json.loads((run / "eval/step-000003/predictions.json").read_text())
    content = json.loads((tmp_path / "data/annotations/val.json").read_text())
    compared = 0
    for image in content["images"]:
        ours = [p for p in evaluated if p["image_id"] == image["id"]]
        theirs = detector(str(tmp_path / "data/val" / image["file_name"]), threshold=-1.0)
        theirs.sort(key=lambda box: -box["score"])
        assert len(ours) == len(theirs) > 0
        for own, other in zip(ours, theirs, strict=True):
            assert own["score"] == pytest.approx(other["score"], abs=1e-5)
            x, y, w, h = own["bbox"]
            corners = [other["box"][key] for key in ("xmin", "ymin", "xmax", "ymax")]
            assert corners == pytest.approx([x, y, x + w, y + h], abs=1.01)  # whole pixels there
            compared += 1
    assert compared >= 30


@pytest.mark.parametrize("head", TINY_HEAD)
def test_evaluating_the_export_repeats_the_logged_metric(tmp_path, head):
    train(tiny_run(tmp_path, head, train__steps=8, optim__lr=0.003))
    run = tmp_path / "run"
    arguments = ["--model", str(run / "export"), "--config", str(run / "config.yaml")]
    again = tools.evaluate.main(arguments)
    logged = json.loads((run / "eval/step-000008/metrics.json").read_text())
    for name in ("AP", "AP50", "AR_100"):
        assert again[name] == pytest.approx(logged[name], abs=1e-4)


@pytest.mark.parametrize("head", TINY_HEAD)
def test_one_and_two_processes_train_on_the_same_images_with_the_same_loss(tmp_path, head):
    one = tiny_run(tmp_path, head, run__output_dir=tmp_path / "one")
    two = tiny_run(tmp_path, head, run__output_dir=tmp_path / "two", data__num_workers=1)
    split = tiny_run(tmp_path, head, run__output_dir=tmp_path / "split", train__micro_batch_size=1)
    train(one)
    train(split)
    result = launch(two, processes=2)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "two/run.json").read_text())["world_size"] == 2
    assert "x 2 process(es) x 1 accumulated" in result.stdout
    assert ids(tmp_path / "one") == ids(tmp_path / "two") == ids(tmp_path / "split")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert losses(tmp_path / "split") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert norms(tmp_path / "two") == pytest.approx(norms(tmp_path / "one"), rel=1e-3)
    assert norms(tmp_path / "split") == pytest.approx(norms(tmp_path / "one"), rel=1e-3)
    first, second = (
        json.loads((tmp_path / n / "eval/step-000003/metrics.json").read_text())
        for n in ("one", "two")
    )
    assert first["AP"] == pytest.approx(second["AP"], abs=1e-4)


def test_resumed_run_continues_where_it_was(tmp_path):
    keys = {
        "optim__schedule": "constant",
        "train__checkpoint_every": 2,
        "data__augment": '[{"HorizontalFlip": {"p": 0.5}}]',
    }
    train(tiny_run(tmp_path, train__steps=6, run__output_dir=tmp_path / "whole", **keys))
    train(tiny_run(tmp_path, train__steps=4, **keys))
    run = tmp_path / "run"
    for newer in ("step-000004",):  # as if killed before the last checkpoint
        shutil.rmtree(run / "checkpoints" / newer)
    train(tiny_run(tmp_path, train__steps=6, run__resume="auto", **keys))
    assert [r["step"] for r in metrics_lines(run) if "train/loss" in r] == [1, 2, 3, 4, 5, 6]
    assert ids(run) == ids(tmp_path / "whole")
    assert losses(run) == losses(tmp_path / "whole")
    assert "resumed at step 2" in (run / "train.log").read_text()


def test_dropout_is_the_same_after_a_resume_and_on_two_processes(tmp_path):
    from builders import TINY_HEAD

    arguments = json.dumps({**TINY_HEAD["deformable_detr"], "dropout": 0.3})
    keys = {
        "optim__schedule": "constant",
        "train__micro_batch_size": 2,
        "train__checkpoint_every": 2,
    }
    keys["model__head_args"] = arguments
    train(tiny_run(tmp_path, train__steps=4, run__output_dir=tmp_path / "whole", **keys))
    train(tiny_run(tmp_path, train__steps=2, **keys))
    train(tiny_run(tmp_path, train__steps=4, run__resume="auto", **keys))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    result = launch(tiny_run(tmp_path, train__steps=4, run__output_dir=tmp_path / "two", **keys), 2)
    assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_resume_from_an_older_checkpoint_needs_another_folder(tmp_path):
    keys = {"train__evaluate_every": 1, "train__keep_checkpoints": 5}
    train(tiny_run(tmp_path, **keys))
    older = tmp_path / "run/checkpoints/step-000002"
    with pytest.raises(UserError, match="has newer checkpoints, up to step-000003"):
        train(tiny_run(tmp_path, run__resume=older, **keys))
    branch = tmp_path / "branch"
    train(tiny_run(tmp_path, run__resume=older, run__output_dir=branch, **keys))
    assert losses(branch) == losses(tmp_path / "run")[2:]


def test_finished_run_that_was_never_evaluated_is_exported(tmp_path):
    train(tiny_run(tmp_path, train__checkpoint_every=2))
    shutil.rmtree(tmp_path / "run/eval")
    for name in ("best", "step-000003"):
        path = tmp_path / "run/checkpoints" / name
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    keys = {"run__resume": "auto", "run__allow_changes": True}
    train(tiny_run(tmp_path, train__steps=2, **keys))
    assert (tmp_path / "run/eval/step-000002/metrics.json").exists()


def test_resume_with_another_dataset_is_refused(tmp_path):
    train(tiny_run(tmp_path))
    write_coco(tmp_path / "other", 9)
    write_coco(tmp_path / "other", 5, "val")
    keys = {"data__path": tmp_path / "other", "run__resume": "auto", "run__allow_changes": True}
    with pytest.raises(UserError, match="was trained with another dataset"):
        train(tiny_run(tmp_path, **keys))


def test_saving_the_best_is_decided_alike_on_all_ranks(tmp_path):
    """Evaluations between checkpoints: rank 0 alone knows the metrics, all have to save."""
    keys = {"train__steps": 4, "train__evaluate_every": 1, "train__checkpoint_every": 3}
    keys |= {"run__collective_timeout_s": 60, "optim__lr": 0.003}
    result = launch(tiny_run(tmp_path, **keys), processes=2)
    assert result.returncode == 0, result.stderr
    checkpoints = tmp_path / "run/checkpoints"
    best = json.loads((checkpoints / "best/state/best.json").read_text())
    metrics = {
        step: json.loads((tmp_path / f"run/eval/step-00000{step}/metrics.json").read_text())["AP"]
        for step in (1, 2, 3, 4)
    }
    assert metrics[best["step"]] == max(metrics.values()) == pytest.approx(best["metric"])


def test_each_of_97_images_is_scored_once_on_1_2_and_3_processes(tmp_path):
    data = tmp_path / "data"
    write_coco(data, 24)
    write_coco(data, 97, "val", seed=1)
    keys = {"train__steps": 120, "train__global_batch_size": 8, "optim__lr": 0.003}
    train(tiny_run(tmp_path, run__log_every=100, optim__max_grad_norm=1.0, **keys))
    metrics, boxes = [], []
    for processes in (1, 2, 3):
        out = tmp_path / f"on{processes}"
        arguments = ["--model", str(tmp_path / "run/export"), "--out", str(out)]
        arguments += ["--config", str(tmp_path / "run/config.yaml"), "--eval.batch_size", "5"]
        result = launch(arguments, processes, script="tools.evaluate", module=True)
        assert result.returncode == 0, result.stderr
        metrics.append(json.loads((out / "metrics.json").read_text()))
        boxes.append(json.loads((out / "predictions.json").read_text()))
    assert {p["image_id"] for p in boxes[0]} == set(range(10, 107))
    assert 0.2 < metrics[0]["AP"] < 0.95
    for other in (1, 2):
        assert metrics[other]["AP"] == pytest.approx(metrics[0]["AP"], abs=1e-9)
        assert [p["image_id"] for p in boxes[other]] == [p["image_id"] for p in boxes[0]]
        scores = [[p["score"] for p in b] for b in (boxes[0], boxes[other])]
        assert scores[1] == pytest.approx(scores[0], abs=1e-6)


def test_predict_draws_and_writes_boxes(tmp_path, capsys):
    train(tiny_run(tmp_path))
    Image.new("RGBA", (50, 90), (255, 0, 0, 128)).save(tmp_path / "alpha.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    images = [str(tmp_path / "data/val"), str(tmp_path / "alpha.png"), str(tmp_path / "broken.jpg")]
    results = tools.predict.main(
        ["--model", str(tmp_path / "run/export"), *images, "--out", str(out), "--threshold", "0.0"]
    )
    assert len(results) == 6
    assert json.loads((out / "predictions.json").read_text()) == results
    assert all((out / name).exists() for name in ("000.png", "alpha.png"))
    assert len(results[0]["objects"]) == 6
    scores = [box["score"] for box in results[0]["objects"]]
    assert scores == sorted(scores, reverse=True)
    assert "broken.jpg: cannot decode" in capsys.readouterr().err


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


def test_bf16_trains_and_is_evaluated_in_fp32(tmp_path):
    train(tiny_run(tmp_path, train__precision="bf16"))
    run = tmp_path / "run"
    assert all(map(math.isfinite, losses(run)))
    arguments = ["--model", str(run / "export"), "--config", str(run / "config.yaml")]
    tools.evaluate.main([*arguments, "--out", str(tmp_path / "again")])
    logged = json.loads((run / "eval/step-000003/predictions.json").read_text())
    again = json.loads((tmp_path / "again/predictions.json").read_text())
    assert [p["score"] for p in logged] == pytest.approx([p["score"] for p in again], abs=1e-6)


def poison(monkeypatch, bad_id, times):
    """Make the loss of every micro-batch with image `bad_id` NaN, `times` times."""
    from model.losses.set_criterion import SetCriterion

    original, left = SetCriterion.__call__, [times]

    def call(self, outputs, batch, step_counts):
        losses = original(self, outputs, batch, step_counts)
        if left[0] and bad_id in batch.image_ids:
            left[0] -= 1
            return dataclasses.replace(losses, total=losses.total * float("nan"))
        return losses

    monkeypatch.setattr(SetCriterion, "__call__", call)


def test_step_with_a_nan_changes_nothing_and_names_its_images(tmp_path, monkeypatch):
    keys = {"train__steps": 4, "train__micro_batch_size": 1, "train__ema_decay": 0.5}
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


def test_averaged_weights_are_evaluated_exported_and_resumed(tmp_path):
    from safetensors.torch import load_file

    keys = {"train__ema_decay": 0.5, "optim__schedule": "constant", "train__checkpoint_every": 2}
    train(tiny_run(tmp_path, train__steps=4, run__output_dir=tmp_path / "whole", **keys))
    checkpoints = tmp_path / "whole/checkpoints"
    weights = [
        load_file(checkpoints / f"step-00000{s}/model/trainable.safetensors") for s in (2, 4)
    ]
    average = load_file(checkpoints / "step-000004/model/average.safetensors")
    export = load_file(tmp_path / "whole/export/model.safetensors")
    name = "model.level_embed"
    assert not torch.equal(average[name], weights[1][name])
    assert torch.equal(export[name], average[name])
    arguments = [
        "--model",
        str(tmp_path / "whole/export"),
        "--config",
        str(tmp_path / "whole/config.yaml"),
    ]
    logged = json.loads((tmp_path / "whole/eval/step-000004/metrics.json").read_text())
    assert tools.evaluate.main(arguments)["AR_100"] == pytest.approx(logged["AR_100"], abs=1e-4)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(tiny_run(tmp_path, train__steps=2, **keys))
    train(tiny_run(tmp_path, train__steps=4, run__resume="auto", **keys))
    resumed = load_file(tmp_path / "run/checkpoints/step-000004/model/average.safetensors")
    assert all(torch.equal(resumed[n], t) for n, t in average.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is allowed where a GPU is")
def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(UserError, match="fp16: needs a GPU"):
        train(tiny_run(tmp_path, train__precision="fp16"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_trains_on_a_gpu(tmp_path):
    train(tiny_run(tmp_path, train__precision="fp16", train__steps=20))
    assert all(map(math.isfinite, losses(tmp_path / "run")))
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_overflow_advances_nothing(tmp_path, monkeypatch):
    original = train_accelerate.build_run

    def with_huge_scale(cfg):
        run = original(cfg)
        run.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
        return run

    monkeypatch.setattr(train_accelerate, "build_run", with_huge_scale)
    train(
        tiny_run(
            tmp_path, train__precision="fp16", train__ema_decay=0.9, train__max_skipped_steps=40
        )
    )
    rows = metrics_lines(tmp_path / "run")
    assert any("train/skipped_image_ids" in row for row in rows)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3]
    lrs = [row["train/lr"] for row in rows if "train/loss" in row]
    assert lrs == pytest.approx([1e-4, 1e-4, 5e-5])


def annotation_without_image(tmp_path):
    file = tmp_path / "data/annotations/train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 999
    file.write_text(json.dumps(content))
    return {}


def absent_image(tmp_path):
    (tmp_path / "data/train/002.jpg").unlink()
    return {"run__max_bad_images": 0}


def empty_backbone(tmp_path):
    (tmp_path / "backbone/model.safetensors").unlink()
    return {}


def occupied_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    return {}


BAD_CALLS = {
    "unknown key": (lambda p: {"train__step": 3}, "--train.step - did you mean train.steps?"),
    "missing folder": (lambda p: {"data__path": p / "no"}, "no such folder"),
    "missing annotations": (
        lambda p: {"data__val_split": "test"},
        "test.json: the COCO annotation",
    ),
    "annotation without image": (
        annotation_without_image,
        "annotation 1: annotation without image",
    ),
    "missing image": (absent_image, "002.jpg: missing image"),
    "backbone without weights": (empty_backbone, "has no weights"),
    "indivisible batch": (
        lambda p: {"train__micro_batch_size": 3},
        "micro_batch_size can be 1, 2, 4",
    ),
    "unwritable folder": (lambda p: {"run__output_dir": "/proc/nope/x"}, "cannot be written"),
    "occupied folder": (occupied_folder, "is not empty; choose another folder"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_call_is_one_clear_error_before_training(tmp_path, case):
    tiny_run(tmp_path)  # builds data and backbone
    spoil, message = BAD_CALLS[case]
    with pytest.raises(UserError) as error:
        train_accelerate.main(tiny_run(tmp_path, **spoil(tmp_path)))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("case", ["unknown key", "annotation without image"])
def test_bad_call_exits_with_status_2_and_without_traceback(tmp_path, case):
    tiny_run(tmp_path)
    spoil, message = BAD_CALLS[case]
    result = launch(tiny_run(tmp_path, **spoil(tmp_path)))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_occupied_folder_is_left_as_it_was(tmp_path):
    occupied_folder(tmp_path)
    with pytest.raises(UserError):
        train(tiny_run(tmp_path))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_backbone_trained_with_the_head_changes_and_a_frozen_one_does_not(tmp_path):
    from safetensors.torch import load_file

    save_backbone(tmp_path / "backbone")
    before = load_file(tmp_path / "backbone/model.safetensors")
    for freeze in ("all", "none"):
        train(tiny_run(tmp_path, model__freeze=freeze, run__output_dir=tmp_path / freeze))
        after = load_file(tmp_path / freeze / "export/model.safetensors")
        inside = {n: t for n, t in after.items() if ".backbone." in n}
        assert len(inside) == len(before)
        same = [any(torch.equal(t, b) for b in before.values()) for t in inside.values()]
        assert all(same) if freeze == "all" else not any(same)


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
    assert "1 validation image(s) cannot be read; their boxes count as missed" in text
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


def test_every_format_and_any_category_ids_give_the_same_ap(tmp_path):
    """Through the whole evaluation path, with a model that finds something."""
    from formats import WRITERS, write_format

    keys = {"train__steps": 200, "optim__lr": 0.003, "optim__max_grad_norm": 1.0}
    write_coco(tmp_path / "data", 24, ids=(1, 3))
    write_coco(tmp_path / "data", 12, "val", ids=(1, 3), seed=1)
    labels = '["car", "plate"]'
    train(tiny_run(tmp_path, **keys, data__labels=labels))
    export = ["--model", str(tmp_path / "run/export"), "--config", "configs/coco.yaml"]
    aps = {}
    for name in WRITERS:
        cfg = write_format(tmp_path / name, name)
        source = [
            f"--data.{k}={getattr(cfg, k)}" for k in ("source", "path", "train_split", "streaming")
        ]
        source += [f"--data.val_split={cfg.val_split}", f"--data.labels={labels}"]
        metrics = tools.evaluate.main([*export, *source, "--data.num_workers", "0"])
        aps[name] = metrics["AP"], metrics["AP50"]
    for ids_of in ((0, 1), (1, 2), (1, 17)):
        name = f"coco {ids_of}"
        write_coco(tmp_path / name, 8, ids=ids_of)
        write_coco(tmp_path / name, 4, "val", ids=ids_of, seed=1)
        source = ["--data.source=coco", f"--data.path={tmp_path / name}", "--data.val_split=val"]
        metrics = tools.evaluate.main([*export, *source, f"--data.labels={labels}"])
        aps[name] = metrics["AP"], metrics["AP50"]
    assert aps["coco"][1] > 0.1
    assert all(value == aps["coco"] for value in aps.values()), aps
