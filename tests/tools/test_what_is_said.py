"""What the tools of a trained model say of what they do."""

import json
import shutil

import numpy as np
import pytest

import tools.evaluate
import tools.predict
from builders import tiny_run, write_coco
from data.objects import Objects
from errors import UserError
from evaluation.curves import worth_recommending
from export.detector import load_detector
from export.recommended import write_recommended
from runs import train
from settings.image_keys import TilesConfig
from tools.prediction_results import picture, told_of

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a run that has learnt nothing."""
    folder = tmp_path_factory.mktemp("said")
    train(tiny_run(folder, run__output_dir=folder / "runs/mine"))
    return folder


def test_a_threshold_at_which_next_to_nothing_is_found_is_not_recommended():
    assert worth_recommending({"F1": 0.025, "threshold": 0.04}) is None
    assert worth_recommending({"F1": 0.1, "threshold": 0.04}) == 0.04
    assert worth_recommending({}) is worth_recommending(None) is None


def test_the_end_of_a_run_says_why_no_threshold_is_recommended(folder):
    told = (folder / "runs/mine/train.log").read_text()
    assert "the export recommends no threshold: F1 is 0.000 at best" in told
    assert "scores from the usual 0.5 on" in told
    assert not (folder / "runs/mine/export/permafrost.json").exists()


@pytest.mark.parametrize(
    ("own", "given", "told"),
    [
        (None, [], "scores from 0.5 on (the usual, as the model recommends none; --threshold"),
        (0.04, [], "scores from 0.04 on (the model's own; --threshold changes it)"),
        (0.04, ["--threshold", "0.3"], "scores from 0.3 on (as --threshold says)"),
    ],
)
def test_a_prediction_says_from_which_score_on(folder, tmp_path, capsys, own, given, told):
    model = shutil.copytree(folder / "runs/mine/export", tmp_path / "export")
    write_recommended(model, own, TilesConfig())
    photos = str(folder / "data")
    tools.predict.main(["--model", str(model), photos, "--out", str(tmp_path / "out"), *given])
    assert told in capsys.readouterr().out


def test_of_many_objects_a_line_counts_and_a_drawing_has_no_tags(folder):
    detector = load_detector(str(folder / "runs/mine/export"))
    boxes = np.tile([10.0, 40, 100, 100], (41, 1))
    found = Objects(boxes, np.zeros(41, int), np.zeros(41, int), scores=np.full(41, 0.7))
    assert told_of(found, detector) == [f"41 {detector.names[0]}"]
    assert len(told_of(found.take(slice(0, 12)), detector)) == 12
    small, large = np.zeros((320, 320, 3), np.uint8), np.zeros((1080, 1920, 3), np.uint8)
    drawn = np.asarray(picture(small, found, detector))
    assert drawn.shape[0] > 320  # a legend
    assert not drawn[:35, :320].any()  # no tag above the boxes
    tagged = np.asarray(picture(large, found, detector))
    assert tagged.shape == large.shape
    assert tagged[:39].any()


def test_an_export_is_evaluated_as_its_run_has_it(folder, capsys):
    run = folder / "runs/mine"
    metrics = tools.evaluate.main(["--model", str(run / "export")])
    told = capsys.readouterr().out.splitlines()[0]
    assert told.startswith(f"evaluating {run / 'export'} on 5 validation image(s) of {folder}/data")
    assert f"read by {run / 'config.yaml'} (--config FILE takes another)" in told
    (file,) = run.glob("eval/*/metrics.json")
    assert metrics["AR_100"] == pytest.approx(json.loads(file.read_text())["AR_100"], abs=1e-4)


def test_another_folder_is_read_as_that_of_the_run(folder, tmp_path, capsys):
    write_coco(tmp_path / "other", 3)
    write_coco(tmp_path / "other", 4, "val")
    export = ["--model", str(folder / "runs/mine/export")]
    tools.evaluate.main([*export, "--data.path", str(tmp_path / "other")])
    assert f"on 4 validation image(s) of {tmp_path}/other (coco)" in capsys.readouterr().out


def test_another_source_puts_the_configuration_of_the_run_aside(folder, tmp_path):
    export = ["--model", str(folder / "runs/mine/export")]
    write_coco(tmp_path / "other", 3, ids=(1, 3))
    keys = ["--data.source", "coco", "--data.path", str(tmp_path / "other")]
    with pytest.raises(UserError, match="other.*synthetic.yaml is taken.*mine/config.yaml, or all"):
        tools.evaluate.main([*export, *keys, "--data.val_fraction", "0.5"])


def test_an_export_elsewhere_says_which_configuration_is_missing(folder, tmp_path):
    model = shutil.copytree(folder / "runs/mine/export", tmp_path / "export")
    few = ["--data.synthetic_train", "2", "--data.synthetic_val", "2"]
    with pytest.raises(UserError, match=r"of data.source synthetic.*--config FILE \(config.yaml"):
        tools.evaluate.main(["--model", str(model), *few])


def test_help_of_an_evaluation_says_how_data_is_named(capsys):
    with pytest.raises(SystemExit):
        tools.evaluate.arguments(["--help"])
    told = capsys.readouterr().out
    assert all(word in told for word in ("--config FILE", "--data.path FOLDER", "--section.key"))
