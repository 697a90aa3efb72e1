"""What new users ran into: each is told what to write instead, or it works."""

import json

import pytest

from builders import tiny_run, write_coco
from data.build import build_data
from data.feed.transforms import Augment
from data.taxonomy import alike
from errors import UserError
from report.dataset_text import _row
from report.evaluation import metric_lines
from run.changes import with_fitting_warmup
from runs import train
from settings.keys import Config, DataConfig, OptimConfig
from settings.load import build_parser, load_config

SMALL = ["--config", "configs/coco_small.yaml"]


def test_epochs_over_a_recipe_with_steps_say_what_to_drop():
    with pytest.raises(UserError, match="train.steps 1600; give --train.steps null as well"):
        load_config([*SMALL, "--train.epochs", "5"])
    cfg = load_config([*SMALL, "--train.epochs", "5", "--train.steps", "null"])
    assert (cfg.train.epochs, cfg.train.steps) == (5, None)


def test_steps_over_a_recipe_with_epochs_say_what_to_drop():
    with pytest.raises(UserError, match="train.epochs 50; give --train.epochs null as well"):
        load_config(["--config", "configs/coco.yaml", "--train.steps", "9"])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "model.head",
            "detrr",
            "model.head detrr: must be detr, .*, pmd or null - did you mean detr",
        ),
        ("data.source", "cocoo", "data.source cocoo: must be .* or label_maps - did you mean coco"),
        ("optim.lr", "fast", "optim.lr fast: must be a number$"),
        ("train.steps", "ten", "train.steps ten: must be a whole number or null$"),
        ("data.image_size.longest", "big", "longest big: must be auto, a whole number or null$"),
        ("model.out_features", "stage2", r"a list of texts or null, written '\[stage2\]'$"),
        ("model.out_features", "[stage2", r"\[stage2: must be a list of texts or null; a \] is"),
        ("data.labels", "car, truck", r"written '\[car, truck\]'$"),
        ("data.augment", "strong", "strong: must be a list of tables, for .* configs/augment/"),
        ("model.head_args", "{num_queries: 40", "40: must be a table; a } is missing$"),
        ("optim.betas", "0.9", r"0.9: must be a list of 2 numbers, for instance '\[0.9, 0.999\]'$"),
        ("data.tiles", "320", "--data.tiles: is a section; .* as in --data.tiles.size VALUE$"),
    ],
)
def test_a_value_of_another_type_is_told_what_it_must_be(key, value, told):
    with pytest.raises(UserError, match=told):
        load_config([f"--{key}", value])


@pytest.mark.parametrize(
    ("warmup", "steps", "taken"),
    [(500, 100, 10), (500, 4, 1), (10, 100, 10), (99, 100, 99), (1, 1, 1)],
)
def test_a_warm_up_that_does_not_end_is_a_tenth_of_the_run(warmup, steps, taken):
    cfg, notes = with_fitting_warmup(Config(optim=OptimConfig(warmup_steps=warmup)), steps)
    assert cfg.optim.warmup_steps == taken
    assert len(notes) == (warmup != taken)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(
    "length", [{"train__steps": 2}, {"train__epochs": 1.0, "train__steps": "null"}]
)
def test_a_shortened_run_shortens_its_warm_up_and_says_so(tmp_path, length):
    train(tiny_run(tmp_path, optim__warmup_steps=60, run__output_dir=tmp_path / "run", **length))
    log = (tmp_path / "run/train.log").read_text()
    assert "note: optim.warmup_steps 60 would not end within 2 steps; 1 are taken" in log
    assert "warm-up 1," in log


@pytest.mark.usefixtures("fresh_accelerator")
def test_the_folder_of_a_run_says_what_was_found(tmp_path):
    """So that whoever measures it later reads the same."""
    keys = {"data__val_split": "null", "train__steps": 1, "run__output_dir": tmp_path / "run"}
    train(tiny_run(tmp_path, **keys))
    written = load_config(["--config", str(tmp_path / "run/config.yaml")])
    assert (written.data.val_split, written.data.train_annotations) == ("val", None)


@pytest.mark.parametrize("given", [["--data.image_size", "640"], ["--data.image_size=640"]])
def test_a_size_alone_is_the_longest_side(given):
    assert load_config([*SMALL, *given]).data.image_size.longest == 640


def test_a_size_alone_in_a_file_says_what_to_write(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {image_size: 640}\n")
    with pytest.raises(UserError, match=r"write image_size: \{longest: 640\}"):
        load_config(["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("train.batch_size", "train.global_batch_size"),
        ("imgsz", "data.image_size.longest"),
    ],
)
def test_names_of_other_trainers_are_understood(theirs, ours):
    with pytest.raises(UserError, match=f"did you mean {ours}"):
        load_config([*SMALL, f"--{theirs}", "1"])


def test_classes_of_nearly_one_name_are_told_and_joined(tmp_path):
    root = write_coco(tmp_path, 8, ids=(1, 3))
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 1, "name": "Car"}, {"id": 3, "name": "car "}]
    file.write_text(json.dumps(content))
    cfg = DataConfig("coco", str(root), val_fraction=0.25)
    data = build_data(cfg, 0)
    (note,) = data.findings.notes
    assert "--data.labels '[Car, Car]' makes one class of them" in note
    joined = build_data(DataConfig("coco", str(root), val_fraction=0.25, labels=["Car", "Car"]), 0)
    assert joined.taxonomy.names == ("Car",)
    assert len(joined.train.objects) == len(data.train.objects)
    assert set(joined.train.objects.classes.tolist()) == {0}


def test_equal_names_say_how_they_are_joined(tmp_path):
    root = write_coco(tmp_path, 8, ids=(1, 3))
    file = root / "annotations/train.json"
    file.write_text(file.read_text().replace("class3", "class1"))
    with pytest.raises(UserError, match="the same name twice makes one class"):
        build_data(DataConfig("coco", str(root), val_fraction=0.25), 0)


def test_what_is_alike():
    assert alike(["Car", "plate", "car", "licence-plate", "licence_plate"]) == [
        ("Car", "car"),
        ("licence-plate", "licence_plate"),
    ]
    assert not alike(["car", "cart", "bus"])


@pytest.mark.parametrize("classes", [1, 2])
def test_f1_that_is_a_mean_of_classes_says_so(classes):
    """It may be below precision and recall, of which it would lie between otherwise."""
    metrics = {"AP": 0.1, "F1": 0.234, "precision": 0.384, "recall": 0.388, "threshold": 0.37}
    rows = {f"class{number}": {"AP": 0.1} for number in range(classes)}
    told = list(metric_lines(metrics | {"per_class": rows, "missing_images": 0}))[1]
    of_one = "(precision 0.384, recall 0.388) with scores from 0.37 on"
    of_several = "= mean of the classes' own F1 (their mean precision 0.384, mean recall 0.388)"
    assert told.startswith("at IoU 0.5 best F1 0.234 ")
    assert (of_one in told, of_several in told) == (classes == 1, classes == 2)


def test_columns_stay_apart():
    cell = "0.047 / 0.19 / 0.98 / 2.1 / 150.05"
    assert _row("a", [cell, cell]).split("  ")[-1].strip() == cell


@pytest.mark.parametrize("name", ["Mosaic", "CopyPaste"])
def test_transforms_of_several_images_are_a_clear_error(name):
    with pytest.raises(UserError, match=f"{name} makes one image of several"):
        Augment([{name: {"p": 1.0}}])


def test_arguments_of_another_head_say_whose_they_are(tmp_path):
    from builders import tiny_detector
    from model.heads.family import refuse_unknown

    with pytest.raises(
        UserError, match="num_denoising: DetrConfig .* one of rt_detr_v2, d_fine, deimv2"
    ):
        refuse_unknown({"num_denoising": 5, "zzz": 1}, {"d_model"}, "DetrConfig")
    assert tiny_detector(tmp_path / "b", "detr").num_queries == 6


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_failed_start_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="model.head_args.absent"):
        train(
            tiny_run(
                tmp_path,
                run__output_dir=tmp_path / "runs/new/one",
                model__head_args='{"absent": 1}',
            )
        )
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_failed_start_leaves_a_folder_that_was_there(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError):
        train(
            tiny_run(tmp_path, run__output_dir=tmp_path / "mine", model__head_args='{"absent": 1}')
        )
    assert (tmp_path / "mine").is_dir()


def test_help_begins_with_ten_keys_that_exist():
    text = build_parser("p").format_help()
    first = text[: text.index("All keys:")]
    named = [line.split()[0][2:] for line in first.splitlines() if line.startswith("  --")]
    assert len(named) == 10
    assert all(f"--{name} " in text[len(first) :] for name in named)
    assert len(first.splitlines()) < 20


def test_what_a_launcher_adds_is_announced(monkeypatch, capsys):
    from errors import ending_with_one_line

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(SystemExit), ending_with_one_line():
        raise UserError("x")
    assert "launcher may follow" in capsys.readouterr().err
