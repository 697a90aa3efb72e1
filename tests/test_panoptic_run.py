"""Whole runs of panoptic segmentation through the real command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

import tools.evaluate
from builders import MASK_HEADS, launch, some, tiny_run, write_coco
from data.masks import Rle, pixels_of
from runs import ids, losses, norms, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

NAMES = {0: "background", 1: "class1", 3: "class3"}
"""By the ids of `predictions.json`"""
STUFF = {"background", "class3"}
TOTALS = ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff")


def panoptic_run(tmp_path, head, steps=60, **keys):
    if not (tmp_path / "data").exists():
        write_coco(tmp_path / "data", 8, ids=(1, 3))
        write_coco(tmp_path / "data", 5, "val", ids=(1, 3), seed=1)
    given = {
        "model__task": "panoptic_segmentation",
        "data__stuff": '["class3"]',
        "train__steps": steps,
        "optim__lr": 0.01,
    }
    return tiny_run(tmp_path, head, **given | keys)


def segments_of_file(rows, image_id):
    """(name, score, plane) of each segment of an image in predictions.json."""
    for row in (row for row in rows if row["image_id"] == image_id):
        mask = Rle(tuple(row["segmentation"]["size"]), row["segmentation"]["counts"].encode())
        plane = np.zeros(mask.size, bool)
        plane[pixels_of(mask, mask.size)] = True
        yield NAMES[row["category_id"]], row["score"], plane


def segments_of_pipeline(parts):
    """The same of what a pipeline gives, with one segment for the parts of a class of stuff."""
    stuff = {}
    for part in parts:
        name, score, plane = part["label"], part["score"], np.asarray(part["mask"]) > 0
        if name in STUFF and plane.any():
            known = stuff.get(name, (name, 0.0, np.zeros_like(plane)))
            stuff[name] = (name, max(known[1], score), known[2] | plane)
        elif plane.any():
            yield name, score, plane
    yield from stuff.values()


def in_order(segments):
    return sorted(segments, key=lambda s: (s[0], s[2].tobytes()))


@pytest.mark.parametrize("head", some(MASK_HEADS, ["maskformer"]))
def test_run_its_files_its_export_and_the_pipeline(tmp_path, head):
    train(panoptic_run(tmp_path, head, eval__panoptic_threshold=0.4))
    run = tmp_path / "run"
    folder = run / "eval/step-000060"
    for name in ("samples/step-000001-0.png", "export/model.safetensors", "export/README.md"):
        assert (run / name).exists(), name
    assert Image.open(folder / "predictions.png").width > 100
    assert (folder / "per_class.csv").read_text().startswith("class,PQ,SQ,RQ,segments\n")
    logged = json.loads((folder / "metrics.json").read_text())
    assert set(TOTALS) <= logged.keys()
    assert 0 < logged["PQ"] < 1
    assert logged["per_class"].keys() == set(NAMES.values())
    assert logged["per_class"]["background"]["segments"] == 5
    assert 'subtask="panoptic", threshold=0.4' in (run / "export/README.md").read_text()
    for file in filter(Path.is_file, (run / "export").rglob("*")):
        assert str(tmp_path).encode() not in file.read_bytes(), file

    arguments = ["--model", str(run / "export"), "--config", str(run / "config.yaml")]
    again = tools.evaluate.main(arguments)
    out = tmp_path / "on2"
    arguments += ["--out", str(out), "--eval.batch_size", "2"]
    result = launch(arguments, 2, script="tools.evaluate", module=True)
    assert result.returncode == 0, result.stderr
    on_two = json.loads((out / "metrics.json").read_text())
    for name in TOTALS:
        assert again[name] == pytest.approx(logged[name], abs=1e-6)
        assert on_two[name] == pytest.approx(logged[name], abs=1e-6)

    segmenter = pipeline("image-segmentation", str(run / "export"))
    evaluated = json.loads((folder / "predictions.json").read_text())
    content = json.loads((tmp_path / "data/annotations/val.json").read_text())
    compared = 0
    for image in content["images"]:
        file = str(tmp_path / "data/val" / image["file_name"])
        theirs = in_order(segments_of_pipeline(segmenter(file, subtask="panoptic", threshold=0.4)))
        ours = in_order(segments_of_file(evaluated, image["id"]))
        assert [segment[0] for segment in ours] == [segment[0] for segment in theirs]
        for (_, score, plane), (_, other, wanted) in zip(ours, theirs, strict=True):
            assert score == pytest.approx(other, abs=1e-5)
            # A pixel may be nearly as much of one segment as of another (seen: scores 2e-4 apart).
            assert (plane != wanted).sum() <= 2
            compared += 1
    assert compared > len(content["images"])  # on some there is more than background


@pytest.mark.parametrize("head", some(MASK_HEADS, []))
def test_one_and_two_processes_train_alike(tmp_path, head):
    """At a rate at which rounding does not grow from step to step; how they score is compared above."""
    keys = {"steps": 3, "optim__lr": 1e-3}
    train(panoptic_run(tmp_path, head, run__output_dir=tmp_path / "one", **keys))
    small = {"run__output_dir": tmp_path / "split", "train__micro_batch_size": 1}
    train(panoptic_run(tmp_path, head, **small, **keys))
    arguments = panoptic_run(tmp_path, head, run__output_dir=tmp_path / "two", **keys)
    result = launch(arguments, processes=2)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "two/run.json").read_text())["world_size"] == 2
    for other in ("two", "split"):
        assert ids(tmp_path / other) == ids(tmp_path / "one")
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        assert norms(tmp_path / other) == pytest.approx(norms(tmp_path / "one"), rel=1e-3)
