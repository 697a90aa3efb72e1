"""Whole runs through the real command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import evaluation.predictions
import tools.evaluate
import tools.predict
from builders import (
    BOX_VARIANTS,
    MASK_HEADS,
    OWN_CODE,
    REAL_TIME,
    REGION_VARIANTS,
    TINY_HEAD,
    launch,
    metrics_lines,
    save_backbone,
    some,
    tiny_run,
    write_coco,
)
from data.masks import Rle, pixels_of
from model.finding import MASK2FORMER_PX
from runs import ids, losses, norms, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


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
    term = "loss_dice" if head in MASK_HEADS else "loss_bbox"
    term = "loss_ce" if head == "linear" else term
    assert {f"train/{term}", "train/lr", "time/data_wait_%", "time/images_per_s"} <= set(rows[0])
    metrics = json.loads((run / "eval/step-000003/metrics.json").read_text())
    measured = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")
    if head == "linear":
        measured = ("mIoU", "pixel_accuracy", "mean_accuracy")
    assert {*measured, "per_class"} <= set(metrics)
    log = (run / "train.log").read_text()
    assert re.search(r"(\d\d)/\1 tensors, sha256=", log)
    assert "pipeline(" in (run / "export/README.md").read_text()
    for file in filter(Path.is_file, (run / "export").rglob("*")):
        assert str(tmp_path).encode() not in file.read_bytes(), file


@pytest.mark.parametrize("head", BOX_VARIANTS)
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
    for name in ("AP", "AP50", "AR_100") if head != "linear" else ("mIoU", "pixel_accuracy"):
        assert again[name] == pytest.approx(logged[name], abs=1e-4)


@pytest.mark.parametrize(
    "head", some([head for head in TINY_HEAD if head not in REAL_TIME], ["deformable_detr"])
)
def test_one_and_two_processes_train_on_the_same_images_with_the_same_loss(tmp_path, head):
    # Gradients of maskformer have norms of 2,000, and larger steps make much of rounding.
    keys = {"optim__lr": 1e-5} if head == "maskformer" else {}
    one = tiny_run(tmp_path, head, run__output_dir=tmp_path / "one", **keys)
    two = tiny_run(tmp_path, head, run__output_dir=tmp_path / "two", data__num_workers=1, **keys)
    keys |= {"train__micro_batch_size": 1}
    split = tiny_run(tmp_path, head, run__output_dir=tmp_path / "split", **keys)
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
    name = "mIoU" if head == "linear" else "AP"
    assert first[name] == pytest.approx(second[name], abs=1e-4)


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
    assert all((out / name).exists() for name in ("000.jpg", "alpha.jpg"))
    assert len(results[0]["objects"]) == 6
    scores = [box["score"] for box in results[0]["objects"]]
    assert scores == sorted(scores, reverse=True)
    assert "broken.jpg: cannot decode" in capsys.readouterr().err


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


@pytest.mark.parametrize("head", MASK_HEADS)
def test_pipeline_gives_the_flat_map_that_was_evaluated(tmp_path, monkeypatch, head):
    """On images of several sizes and shapes: same labels, scores and sizes, and the same pixels."""
    arguments = tiny_run(tmp_path, head, train__steps=60, optim__lr=0.01, eval__score_threshold=0.2)
    flat = []
    gather = evaluation.predictions._in_order
    monkeypatch.setattr(
        evaluation.predictions,
        "_in_order",
        lambda *rest: flat.append(gather(*rest)) or flat[-1],
    )
    train(arguments)
    folder = str(tmp_path / "run/export")
    segmenter = pipeline("image-segmentation", folder, trust_remote_code=head in OWN_CODE)
    content = json.loads((tmp_path / "data/annotations/val.json").read_text())
    compared = 0
    for place, image in enumerate(content["images"]):
        ours = flat[-1].of_image(place)
        file = str(tmp_path / "data/val" / image["file_name"])
        theirs = segmenter(file, subtask="instance", threshold=0.2)
        theirs = [part for part in theirs if np.asarray(part["mask"]).any()]
        theirs.sort(key=lambda part: -part["score"])
        assert len(ours) == len(theirs)
        for mask, score, part in zip(ours.masks, ours.scores, theirs, strict=True):
            # Of Mask2Former a mean over pixels of a fixed plane, of which rounding can take one in or out.
            pixel = 1 / (MASK2FORMER_PX**2 * (np.asarray(part["mask"]) > 0).mean())
            limit = 1e-5 + (pixel if head == "mask2former" else 0)
            assert part["score"] == pytest.approx(score, abs=limit)
            assert part["mask"].size == (image["width"], image["height"])
            plane = np.zeros((image["height"], image["width"]), bool)
            plane[pixels_of(mask, plane.shape)] = True
            other = np.asarray(part["mask"]) > 0
            assert (plane & other).sum() >= 0.999 * (plane | other).sum()
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("variant", REGION_VARIANTS)
def test_pipeline_gives_the_regions_that_were_evaluated(tmp_path, variant):
    """On images of several sizes and shapes, pixel by pixel."""
    train(tiny_run(tmp_path, variant, train__steps=60, optim__lr=0.01))
    run = tmp_path / "run"
    own_code = variant.split("_")[0] in OWN_CODE
    segmenter = pipeline("image-segmentation", str(run / "export"), trust_remote_code=own_code)
    evaluated = json.loads((run / "eval/step-000060/predictions.json").read_text())
    content = json.loads((tmp_path / "data/annotations/val.json").read_text())
    labels = segmenter.model.config.id2label
    by_id = {1: "class1", 0: "background"}
    compared = 0
    for image in content["images"]:
        theirs = segmenter(str(tmp_path / "data/val" / image["file_name"]), subtask="semantic")
        theirs = {part["label"]: np.asarray(part["mask"]) > 0 for part in theirs}
        for row in (row for row in evaluated if row["image_id"] == image["id"]):
            mask = Rle(tuple(row["segmentation"]["size"]), row["segmentation"]["counts"].encode())
            plane = np.zeros(mask.size, bool)
            plane[pixels_of(mask, mask.size)] = True
            assert mask.size == (image["height"], image["width"])
            np.testing.assert_array_equal(plane, theirs.pop(by_id[row["category_id"]]))
            compared += 1
        assert not theirs
    assert set(labels.values()) == set(by_id.values())
    assert compared > len(content["images"])  # on some there are two classes


ELSEWHERE = """
import json, sys
from transformers import pipeline
segmenter = pipeline("image-segmentation", sys.argv[1], trust_remote_code=True)
parts = segmenter(sys.argv[2], subtask="semantic")
print(json.dumps({part["label"]: sum(map(bool, part["mask"].getdata())) for part in parts}))
"""


@pytest.mark.parametrize("head", some(OWN_CODE, ["pmd"]))
def test_export_with_code_of_its_own_needs_nothing_of_this_repository(tmp_path, head):
    variant = "linear" if head == "linear" else f"{head}_semantic"
    train(tiny_run(tmp_path, variant))
    file = sorted((tmp_path / "data/val").iterdir())[0]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "run/export"), str(file)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    evaluated = json.loads((tmp_path / "run/eval/step-000003/predictions.json").read_text())
    names = {0: "background", 1: "class1"}
    first = [row for row in evaluated if row["image_id"] == evaluated[0]["image_id"]]
    ours = {}
    for row in first:
        mask = Rle(tuple(row["segmentation"]["size"]), row["segmentation"]["counts"].encode())
        ours[names[row["category_id"]]] = len(pixels_of(mask, mask.size)[0])
    assert json.loads(result.stdout.splitlines()[-1]) == ours
