"""From a folder to a configuration that trains: forms that are recognised, what is written, what fits into a time."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from accelerate.state import AcceleratorState

import builders
import painted
import train_accelerate
from builders import BOXES, ROOT, SHARED, write_coco
from data.sources.recognise import recognise
from errors import UserError
from formats import WRITERS, write_yolo
from model.heads.registry import get_family
from settings.load import load_config
from settings.written import commented_yaml, set_keys
from tools import check_data, start
from tools.start_data import read_for
from tools.start_recipe import SMALLEST_PX, SOME_TIMES
from tools.start_timing import EVALUATIONS, MOST_EPOCHS, Measured, Pace, plan


@pytest.mark.parametrize("form", [name for name in WRITERS if name != "hub streamed"])
def test_every_form_is_recognised(tmp_path, form):
    writer, source, below = WRITERS[form]
    tmp_path.joinpath("set").mkdir()
    writer(tmp_path / "set", 8, "train", 0)
    writer(tmp_path / "set", 4, "val", 1)
    seen = recognise(tmp_path / "set" / below)
    assert seen.source == source
    assert seen.masks == (form in ("coco", "imagefolder", "yolo polygons"))


def test_a_folder_without_labels_says_what_is_there(tmp_path):
    write_coco(tmp_path, 3)
    (tmp_path / "annotations/train.json").unlink()
    with pytest.raises(UserError, match="3 images and no labels in a form that is read"):
        recognise(tmp_path)


@pytest.mark.parametrize("ring", [[[0, 0], [9, 0], [9, 9], [0, 9], [4, 5], [1, 2]], [None] * 6])
def test_outlines_that_are_none_are_no_masks(tmp_path, ring):
    root = write_coco(tmp_path, 3)
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = [ring]
    file.write_text(json.dumps(content))
    (root / "more.yaml").mkdir()
    assert not recognise(root).masks


def test_a_folder_with_a_row_that_nests_too_deeply_is_recognised(tmp_path):
    (tmp_path / "metadata.jsonl").write_text("[" * 200_000 + "\n")
    assert recognise(tmp_path).source == "imagefolder"


def started(tmp_path, root, *more):
    """The configuration that was written, as it is loaded."""
    file = tmp_path / "made.yaml"
    argv = [str(root), "--out", str(file), "--minutes", "1", "--backbone", "street/backbone"]
    assert start.main([*argv, *more]) == 0
    return load_config(["--config", str(file)]), file


def test_a_configuration_is_written_with_what_was_found(tmp_path, capsys):
    root = write_coco(write_coco(tmp_path / "set", 24), 8, "val", seed=1)
    for split in ("train", "val"):
        file = root / "annotations" / f"{split}.json"
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [x, y, x + w, y + h]
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
    cfg, made = started(tmp_path, root)
    said = capsys.readouterr().out
    assert "data.box_format xyxy" in said
    assert (cfg.data.source, cfg.data.box_format) == ("coco", "xyxy")
    assert "boxes       class1 24" in said
    assert f"python train_accelerate.py --config {made}" in said
    assert "knows synthetic street scenes only" in said
    assert len(said.splitlines()) < 40
    most = max(map(len, BOXES))
    assert f"the fullest image has {most} objects" in made.read_text()
    assert cfg.model.head_args["num_queries"] > most
    assert cfg.train.steps * cfg.train.global_batch_size <= (MOST_EPOCHS + 1) * 24
    with pytest.raises(UserError, match="is there already"):
        started(tmp_path, root)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("name", ["plates-openimages-416", "nuclei-instances"])
def test_what_is_written_trains(tmp_path, name):
    """Boxes, and masks of images that hold up to 151."""
    root = SHARED / "data" / name
    if not root.is_dir():
        pytest.skip("no ../shared/data")
    cfg, file = started(tmp_path, root)
    assert cfg.model.task == ("detection" if name.startswith("plates") else "instance_segmentation")
    keys = [
        "--run.output_dir",
        str(tmp_path / "run"),
        "--train.steps",
        "2",
        "--run.tracker",
        "none",
    ]
    keys += ["--train.evaluate_every", "null", "--data.limit", "8", "--data.val_on_train", "true"]
    keys += ["--data.cache_features", "0", "--data.num_workers", "0"]
    assert train_accelerate.main(["--config", str(file), *keys]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert (tmp_path / "run/DONE").is_file()


def test_masks_that_are_not_there_are_told_with_the_task_that_fits(tmp_path):
    root = write_coco(write_coco(tmp_path / "set", 8), 4, "val", seed=1)
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        file.write_text(json.dumps(content))
    told = (
        "--task instance_segmentation: the labels are for --task detection: .* boxes and no masks"
    )
    with pytest.raises(UserError, match=told):
        started(tmp_path, root, "--task", "instance_segmentation")
    assert not (tmp_path / "made.yaml").exists()


@pytest.mark.parametrize("form", ["voc", "voc folders", "yolo"])
@pytest.mark.parametrize("task", ["instance_segmentation", "semantic_segmentation"])
def test_boxes_are_for_detection_in_every_form(tmp_path, form, task):
    writer = WRITERS[form][0]
    writer(tmp_path, 8, "train", 0)
    writer(tmp_path, 4, "val", 1)
    with pytest.raises(UserError, match="are for --task detection: .* no masks"):
        read_for(tmp_path, recognise(tmp_path), task)


@pytest.mark.parametrize("write", ["write_folders", "write_imagefolder", "write_voc"])
def test_label_maps_are_for_the_class_of_every_pixel(tmp_path, write):
    getattr(painted, write)(tmp_path)
    seen = recognise(tmp_path)
    for task in ("detection", "instance_segmentation"):
        with pytest.raises(UserError, match=f"--task {task}: .* for --task semantic_segmentation"):
            read_for(tmp_path, seen, task)
    task, cfg, data = read_for(tmp_path, seen, None)
    assert task == cfg.model.task == "semantic_segmentation"
    assert data.train.dense


def test_a_broken_mask_is_no_reason_to_learn_boxes(tmp_path):
    root = write_coco(tmp_path, 24)
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = 7
    file.write_text(json.dumps(content))
    for task in (None, "instance_segmentation"):
        with pytest.raises(UserError, match="broken mask"):
            read_for(root, recognise(root), task)


def test_a_plan_keeps_to_its_time():
    for minutes in (5, 15, 60):
        for pace in (Pace(0.4, 0.1, 0.05), Pace(4.0, 3.6, 0.5), Pace(0.4, 0.0, 0.05)):
            made = plan(pace, minutes, 400, 100, 4)
            assert made.seconds <= 60 * minutes
            assert 1 <= made.evaluations <= EVALUATIONS
            assert 1 <= made.steps <= MOST_EPOCHS * 100


MEASURING = """
import multiprocessing, os, time, torch
from tools.start_timing import least

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
torch.set_num_threads(1)

def burn():
    while True:
        pass

def compute():
    x = torch.ones(300, 300)
    for _ in range(40):
        x = x @ x / 300

def measured():
    found = least(compute, torch.device("cpu"))
    print(found.wall, found.alone)

measured()
others = [multiprocessing.get_context("fork").Process(target=burn, daemon=True) for _ in range(3)]
for other in others:
    other.start()
time.sleep(0.3)
measured()
"""


@pytest.mark.slow
def test_other_programs_change_what_a_step_takes_and_not_what_is_chosen():
    """Three of them on the core of a process that measures."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURING], cwd=ROOT, capture_output=True, text=True, check=True
    )
    quiet, loaded = ([float(n) for n in line.split()] for line in done.stdout.splitlines())
    assert loaded[0] > 1.5 * loaded[1]
    assert loaded[1] < 1.5 * quiet[1]
    wall, alone = (Pace(seconds, 0.0, 0.0) for seconds in loaded)
    assert Measured(wall, alone).busy


def test_the_size_is_chosen_by_what_is_computed(tmp_path, monkeypatch, capsys):
    """And the number of steps by the clock on the wall."""
    monkeypatch.setattr(builders, "SIZES", [(6 * w, 6 * h) for w, h in builders.SIZES])
    root = write_coco(write_coco(tmp_path / "set", 24), 8, "val", seed=1)
    made = {}
    for name, times in (("quiet", 1.0), ("loaded", 3.0)):
        alone = Pace(0.07, 0.0, 0.01)
        wall = Pace(0.07 * times, 0.0, 0.01 * times)
        monkeypatch.setattr(start, "measure", lambda cfg, data: Measured(wall, alone))  # noqa: B023
        (tmp_path / name).mkdir()
        made[name], _ = started(tmp_path / name, root)
        assert ("this machine is busy" in capsys.readouterr().out) == (name == "loaded")
    sizes = {name: cfg.data.image_size.longest for name, cfg in made.items()}
    assert SMALLEST_PX < sizes["quiet"] == sizes["loaded"] < 576
    assert made["quiet"].train.steps > made["loaded"].train.steps


@pytest.mark.parametrize("seconds", [1.0, 4.0])
def test_too_short_a_run_says_how_many_minutes_it_takes(tmp_path, monkeypatch, capsys, seconds):
    """And whoever gives them is told no more of it; nor is what was chosen contradicted."""
    monkeypatch.setattr(builders, "SIZES", [(6 * w, 6 * h) for w, h in builders.SIZES])
    root = write_coco(write_coco(tmp_path / "set", 48), 8, "val", seed=1)

    def measured(cfg, data):
        part = (cfg.data.image_size.longest_px / 576) ** 2
        pace = Pace(seconds * part, 0.0, 0.01 * part)
        return Measured(pace, pace)

    monkeypatch.setattr(start, "measure", measured)
    monkeypatch.setattr("data.check.advice.SMALL_PX", 150.0)
    cfg, _ = started(tmp_path, root)
    said = " ".join(capsys.readouterr().out.split())
    (minutes,) = re.findall(r"TOO SHORT in 1 minutes .*: about (\d+) minutes are needed", said)
    assert f"({SOME_TIMES * get_family('maskformer').few_steps} steps of images of 576 px)" in said
    assert said.index("TOO SHORT") < said.index("now run")
    assert cfg.data.image_size.longest < 576
    assert "set data.image_size.longest" not in said
    assert "with more minutes images have 576 px" in said
    (tmp_path / "again").mkdir()
    cfg, _ = started(tmp_path / "again", root, "--minutes", minutes)
    assert "TOO SHORT" not in capsys.readouterr().out
    assert cfg.data.image_size.longest == 576
    assert cfg.train.steps >= SOME_TIMES * get_family("maskformer").few_steps


def test_features_are_stored_where_that_gives_more_steps():
    costly = plan(Pace(4.0, 3.6, 0.5), 60, 100, 20, 4)
    assert costly.cache_features > 0
    assert costly.steps > 1.2 * int(0.85 * 60 * 60 / 4.0 * 0.9)
    assert plan(Pace(4.0, 0.1, 0.5), 60, 100, 20, 4).cache_features == 0
    assert plan(Pace(4.0, 0.0, 0.5), 60, 100, 20, 4).cache_features == 0


@pytest.mark.parametrize("recipe", ["coco", "coco_small", "debug", "finetune", "semantic"])
def test_a_configuration_that_is_written_is_the_same_when_it_is_read(tmp_path, recipe):
    given = ["--model.init_from", "x"] if recipe == "finetune" else []
    given += ["--data.source", "synthetic"] if recipe == "debug" else []
    cfg = load_config(["--config", f"configs/{recipe}.yaml", "--data.path", "a: b", *given])
    file = tmp_path / "c.yaml"
    file.write_text(commented_yaml(set_keys(cfg), {"data.path": "x\ny # z: " * 30}, "title: [a"))
    assert load_config(["--config", str(file)]) == cfg
    assert yaml.safe_load(file.read_text())["data"]["path"] == "a: b"


def test_what_is_wrong_comes_with_a_command_that_works(tmp_path, capsys):
    """There is no configuration yet."""
    root = tmp_path / "my cells"
    write_yolo(root, 16, "train", 0)
    write_yolo(root, 4, "val", 1)
    (root / "labels/train/000.txt").write_text("0 .5 .5 .1 .1\n7 .5 .5 .1 .1\n8 .5 .5 .1 .1\n")
    with pytest.raises(UserError) as error:
        start.main([str(root), "--out", str(tmp_path / "c.yaml")])
    *_, last = str(error.value).splitlines()
    assert "--repair DIR writes a cleaned copy" in last
    (command,) = re.findall("`(.*)` lists all", last)
    python, module, tool, *given = shlex.split(command)
    assert (python, module, tool) == ("python", "-m", "tools.check_data")
    capsys.readouterr()
    assert check_data.main([*given, "--workers", "1", "--repair", str(tmp_path / "copy")]) == 1
    said = capsys.readouterr().out
    assert "unknown category: 2" in said
    assert "labels/train/000.txt, line 3" in said
    assert (
        len(read_for(tmp_path / "copy", recognise(tmp_path / "copy"), "detection")[2].train) == 16
    )


def test_images_without_label_files_are_allowed_by_an_option(tmp_path, monkeypatch):
    pace = Pace(0.1, 0.0, 0.01)
    monkeypatch.setattr(start, "measure", lambda cfg, data: Measured(pace, pace))
    root = tmp_path / "set"
    write_yolo(root, 16, "train", 0)
    write_yolo(root, 4, "val", 1)
    for number in range(8):
        (root / f"labels/train/{number:03}.txt").unlink()
    with pytest.raises(UserError, match="8 of 16 images of train .* give --allow-unlabelled"):
        started(tmp_path, root)
    cfg, _ = started(tmp_path, root, "--allow-unlabelled")
    assert cfg.data.allow_unlabelled


def test_the_yaml_of_a_dataset_names_its_folder(tmp_path):
    write_yolo(tmp_path / "cells", 8, "train", 0)
    args = start.arguments([str(tmp_path / "cells/data.yaml"), "--minutes", "1"])
    assert args.data == tmp_path / "cells"
    assert args.out.name == "cells.yaml"


def test_a_file_is_not_said_to_be_missing(tmp_path):
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(UserError, match="a file, not a folder"):
        start.main([str(tmp_path / "labels.json")])
