"""Large images as windows: which, what is on them, and that they are cut alike everywhere."""

import json
import operator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import train_accelerate
from builders import launch, metrics_lines, tiny_run
from data.build import build_data, with_tiles
from data.canvas import CanvasRule
from data.images.decode import decode
from data.objects import Objects
from data.tiles import Tiles, on_window, windows_of
from errors import UserError
from evaluation.predictions import Predictions
from evaluation.windows import merged, on_images
from export.detector import LoadedDetector
from runs import losses
from settings.keys import ImageSizeConfig, TilesConfig
from settings.load import load_config
from tools.demo import arguments as demo_arguments
from tools.demo import demo
from tools.evaluate import main as evaluate
from tools.predict import main as predict

CFG = TilesConfig(size=40, overlap=0.25)


@pytest.mark.parametrize("size", [(100, 130), (40, 40), (39, 200), (41, 40), (7, 5)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.8])
def test_windows_cover_an_image_and_overlap(size, overlap):
    height, width = size
    cfg = replace(CFG, overlap=overlap)
    covered = np.zeros(size, int)
    windows = windows_of(height, width, cfg)
    for x, y, w, h in windows.tolist():
        assert (w, h) == (min(40, width), min(40, height))
        assert 0 <= x <= width - w
        assert 0 <= y <= height - h
        covered[y : y + h, x : x + w] += 1
    assert covered.min() == 1
    starts = np.unique(windows[:, 0])
    assert (np.diff(starts) <= 40 - 40 * overlap + 1).all()


def test_whole_image_is_one_more_window():
    windows = windows_of(100, 130, replace(CFG, whole=True))
    np.testing.assert_array_equal(windows[-1], [0, 0, 130, 100])
    assert len(windows_of(30, 30, replace(CFG, whole=True))) == 1


def test_objects_are_cut_at_borders_and_left_out_where_little_of_them_is():
    boxes = np.array(
        [[10.0, 10, 20, 20], [35, 0, 10, 10], [38, 30, 20, 8], [0, 0, 200, 200], [90, 90, 5, 5]]
    )
    crowd = np.array([False, False, False, False, False])
    objects = Objects(boxes, np.arange(5), areas=boxes[:, 2:].prod(1), iscrowd=crowd)
    own, _ = on_window(objects, np.array([0, 0, 40, 40]))
    assert own.classes.tolist() == [0, 1, 3]  # a tenth of the third is there, and none of the last
    assert own.boxes[1].tolist() == [35, 0, 5, 10]
    assert own.areas[1] == 50
    assert own.boxes[2].tolist() == [0, 0, 40, 40]
    shifted, _ = on_window(objects, np.array([20, 5, 40, 40]))
    assert shifted.boxes[0].tolist() == [0, 5, 10, 20]


def test_a_window_is_the_pixels_of_its_place(tmp_path):
    cfg = load_config(tiny_run(tmp_path, data__tiles__size=40, data__tiles__overlap=0.25))
    data = build_data(cfg.data, 0)
    cut = with_tiles(data, cfg.data.tiles)
    assert len(cut.train) > len(data.train)
    for index in range(len(cut.train)):
        window = cut.train.images[index]
        whole = np.asarray(Image.open(window.source).convert("RGB"))
        x, y, w, h = window.x, window.y, window.width, window.height
        pixels = decode(window, "here")
        assert np.array_equal(pixels, whole[y : y + h, x : x + w])
        assert cut.train.records[index].width == w
    assert cut.fingerprint() == data.fingerprint()


def test_what_neighbours_find_twice_is_there_once():
    """Two windows of 40 px of an image of 70; the object lies across, whole in the second, and cut by the first."""
    tiles = Tiles(
        np.array([0, 0, 1]),
        np.array([[0, 0, 40, 40], [30, 0, 40, 40], [0, 0, 30, 30]]),
        np.array([[40, 70], [30, 30]]),
    )
    boxes = np.array(
        [[32.0, 5, 8, 10], [2, 5, 12, 10], [30, 20, 10, 10], [1, 20, 10, 10], [3, 3, 5, 5]]
    )
    found = Objects(
        boxes,
        np.array([0, 0, 0, 1, 0]),
        image=np.array([0, 1, 0, 1, 2]),
        scores=np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
    )
    whole = on_images(Predictions(found), tiles, 100).objects
    assert whole.image.tolist() == [0, 0, 0, 1]
    assert whole.boxes.tolist() == [
        [32, 5, 12, 10],
        [30, 20, 10, 10],
        [31, 20, 10, 10],
        [3, 3, 5, 5],
    ]
    assert whole.scores.tolist() == [0.8, 0.7, 0.6, 0.5]
    missing = on_images(Predictions(found.take(slice(0, 0)), np.array([1])), tiles, 100)
    assert missing.missing.tolist() == [0]


def test_one_window_is_not_compared_with_itself_and_equal_boxes_of_two_are_one():
    same = np.array([[5.0, 5, 10, 10]] * 3)
    found = Objects(same, np.zeros(3, int), scores=np.array([0.9, 0.9, 0.9]))
    window = np.array([0, 0, 1])
    assert merged(found, np.zeros(3, bool), window).tolist() == [0, 1]
    low = Objects(same[:2], np.zeros(2, int), scores=np.array([0.9, 0.1]))
    cut = np.array([True, False])  # what is whole is hardly believed
    assert merged(low, cut, window[1:]).tolist() == [0]


class Finding(LoadedDetector):
    """Finds a part in the first window, and with a lower score the whole object in the second one."""

    def find(self, samples, threshold):
        boxes, scores = np.array([[32.0, 5, 8, 10], [2, 5, 12, 10]]), np.array([0.6, 0.4])
        found = Objects(boxes, np.zeros(2, int), image=np.arange(2), scores=scores)
        return found.take(scores > threshold).by_image(len(samples))


def test_a_threshold_is_applied_to_what_is_left_of_two_windows():
    """As evaluation has it: the part gives way to the whole object, and that is below the threshold."""
    tiles = TilesConfig(size=40, overlap=0.25)
    detector = Finding(None, CanvasRule(ImageSizeConfig(40, fit="stretch")), tiles=tiles)
    views = detector.views(np.zeros((40, 70, 3), np.uint8))
    assert len(views.samples) == 2
    assert len(detector.find_on([views], 0.5)[0]) == 0
    (whole,) = detector.find_on([views], 0.3)
    assert whole.boxes.tolist() == [[32, 5, 12, 10]]


@pytest.mark.parametrize("task", ["semantic_segmentation", "panoptic_segmentation"])
def test_windows_are_refused_where_every_pixel_has_a_class(tmp_path, task):
    argv = tiny_run(tmp_path, "maskformer", model__task=task, data__tiles__size=40)
    with pytest.raises(
        UserError, match=r"data\.tiles\.size 40: windows are for detection and inst.*, not for"
    ):
        train_accelerate.main(argv)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["deformable_detr", "maskformer"])
def test_a_run_on_windows_measures_whole_images_as_tools_evaluate_does(tmp_path, variant):
    keys: dict[str, object] = {"data__tiles__size": 40, "train__evaluate_every": 3}
    if variant == "deformable_detr":
        keys["model__head_args"] = '{"num_queries": 20}'
    argv = tiny_run(tmp_path, variant, **keys)
    assert train_accelerate.main(argv) == 0
    run = tmp_path / "run"
    logged = next(line for line in metrics_lines(run) if "eval/AP" in line)
    results = json.loads((run / "eval" / "step-000003" / "metrics.json").read_text())
    assert results["AP"] == logged["eval/AP"]
    again = evaluate(["--model", str(run / "export"), "--config", str(run / "config.yaml")])
    assert again["AP"] == pytest.approx(logged["eval/AP"], abs=1e-6)
    assert again["AR_100"] == pytest.approx(logged["eval/AR_100"], abs=1e-6)


@pytest.mark.parametrize("variant", ["deformable_detr", "maskformer"])
def test_prediction_cuts_the_windows_that_the_model_was_trained_on(tmp_path, variant):
    keys = {"data__tiles__size": 40, "data__tiles__whole": True, "train__evaluate_every": 3}
    assert train_accelerate.main(tiny_run(tmp_path, variant, **keys)) == 0
    export, data = tmp_path / "run" / "export", tmp_path / "data"
    assert json.loads((export / "permafrost.json").read_text())["tiles"]["size"] == 40
    assert "on windows of 40 px" in (export / "README.md").read_text()
    with pytest.raises(UserError, match="--space: this model is used on windows"):
        demo(demo_arguments(["--model", str(export), "--space", str(tmp_path / "space")]))
    found = tmp_path / "found.json"
    ids = data / "annotations" / "val.json"
    flags = ["--json", str(found), "--ids", str(ids), "--threshold", "0", "--batch", "3"]
    predict(["--model", str(export), str(data / "val"), *flags])
    rows = json.loads(found.read_text())
    evaluated = json.loads((tmp_path / "run/eval/step-000003/predictions.json").read_text())
    key = operator.itemgetter("image_id", "score")
    assert len(rows) == len(evaluated) > 0
    for own, other in zip(sorted(rows, key=key), sorted(evaluated, key=key), strict=True):
        assert own["image_id"] == other["image_id"]
        assert own["score"] == pytest.approx(other["score"], abs=1e-4)
        assert own["bbox"] == pytest.approx(other["bbox"], abs=0.1)
        assert own.get("segmentation") == other.get("segmentation")
    assert ("segmentation" in rows[0]) == (variant == "maskformer")


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["deformable_detr", "maskformer"])
def test_windows_are_the_same_on_two_processes(tmp_path, variant):
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        result = launch(
            tiny_run(folder, variant, data__tiles__size=40, train__micro_batch_size=2), processes
        )
        assert result.returncode == 0, result.stderr
        found.append(
            (
                losses(folder / "run"),
                [r["eval/AP"] for r in metrics_lines(folder / "run") if "eval/AP" in r],
            )
        )
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-6)
