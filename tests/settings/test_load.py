import re
import typing
from pathlib import Path

import pytest
import yaml

from errors import UserError
from settings.checks import check_config
from settings.keys import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from settings.load import load_config
from settings.walk import config_to_dict, harmless_keys, leaf_keys


def write(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    return str(file)


def test_command_line_overrides_yaml_overrides_defaults(tmp_path):
    file = write(tmp_path, "train: {steps: 700, global_batch_size: 8}\nmodel: {head: detr}\n")
    cfg = load_config(["--config", file, "--train.global_batch_size", "4"])
    assert cfg.train.steps == 700
    assert cfg.train.global_batch_size == 4
    assert cfg.model.head == "detr"
    assert cfg.optim == Config().optim


def test_options_win_over_files_wherever_they_stand(tmp_path):
    """A recipe is often put behind an option that somebody remembers first."""
    file = write(
        tmp_path, "train: {steps: 700, global_batch_size: 8}\nmodel: {head_args: {a: 1, b: 2}}\n"
    )
    options = ["--train.global_batch_size", "4", "--model.head_args.a=7"]
    for argv in ([*options, "--config", file], [options[2], f"--config={file}", *options[:2]]):
        cfg = load_config(argv)
        assert (cfg.train.steps, cfg.train.global_batch_size) == (700, 4)
        assert cfg.model.head_args == {"a": 7, "b": 2}


def test_of_two_files_the_later_one_wins(tmp_path):
    """As configs/augment/*.yaml go on top of any recipe."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("train: {steps: 700, global_batch_size: 8}\n")
    second.write_text("train: {global_batch_size: 2}\noptim: {lr: 0.5}\n")
    cfg = load_config(["--optim.lr", "0.25", "--config", str(first), f"--config={second}"])
    assert (cfg.train.steps, cfg.train.global_batch_size, cfg.optim.lr) == (700, 2, 0.25)


def test_without_config_the_embedded_default_is_taken():
    assert load_config([]).data.source == "synthetic"


def test_all_unknown_keys_are_listed_with_the_nearest_name(tmp_path):
    file = write(tmp_path, "trian: {steps: 1}\noptim: {learning_rate: 1, wieght_decay: 2}\n")
    with pytest.raises(UserError) as error:
        load_config(["--config", file, "--model.haed", "detr"])
    text = str(error.value)
    assert "trian.steps - did you mean train.steps?" in text
    assert "optim.wieght_decay - did you mean optim.weight_decay?" in text
    assert "optim.learning_rate" in text
    assert "--model.haed - did you mean model.head?" in text


def test_all_contradictions_are_listed(tmp_path):
    file = write(
        tmp_path,
        "train: {steps: 100, epochs: 2}\ndata: {source: coco, val_fraction: 2}\n"
        "model: {freeze: all}\noptim: {backbone_lr: 1.0e-5}\n",
    )
    with pytest.raises(UserError) as error:
        load_config(["--config", file])
    for key in ("train.epochs 2", "data.path", "data.val_fraction 2", "optim.backbone_lr 1e-05"):
        assert key in str(error.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (["--train.steps", "many"], "train.steps"),
        (["--train.precision", "fp8"], "train.precision"),
        (
            ["--train.precision", "bf16", "--train.loss_scale_start", "65536"],
            "train.loss_scale_start 65536.0: has no effect with train.precision bf16",
        ),
        (
            ["--train.precision", "no", "--train.loss_scale_growth_steps", "2000"],
            "train.loss_scale_growth_steps 2000: has no effect with train.precision no",
        ),
        (
            ["--train.precision", "fp16", "--train.loss_scale_start", "0.5"],
            r"train.loss_scale_start 0.5: must lie in 1 ... 1099511627776",
        ),
        (
            ["--train.precision", "fp16", "--train.loss_scale_growth_steps", "0"],
            "train.loss_scale_growth_steps 0: must lie in 1 ...",
        ),
        (["--data.image_size.longest", "0"], "data.image_size.longest 0"),
        (["--optim.weight_decay", "-1"], "optim.weight_decay -1"),
        (["--optim.betas", "[0.9, 1.5]"], "optim.betas"),
        (["--run.tracker", "foo"], "run.tracker foo"),
        (["--eval.max_detections", "300"], "eval.max_detections 300"),
        (["--run.max_bad_images", "-1"], "run.max_bad_images -1"),
        (
            ["--data.box_format", "yolo"],
            "data.box_format yolo: has no effect with data.source synth",
        ),
        (["--data.streaming", "true"], "data.streaming: only a Hub dataset"),
        (
            [
                "--data.source",
                "hub",
                "--data.path",
                "x",
                "--data.streaming",
                "true",
                "--data.train_split",
                "x[:9]",
            ],
            "data.streaming: reads whole splits",
        ),
        (["--config", "absent.yaml"], "absent.yaml: no such file"),
    ],
)
def test_bad_values_name_their_key(argument, message):
    with pytest.raises(UserError, match=message):
        load_config(argument)


def test_config_file_that_is_no_yaml(tmp_path):
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(["--config", write(tmp_path, "a: [1")])


def test_section_that_holds_no_keys(tmp_path):
    with pytest.raises(UserError, match="section 'train' must hold keys, not 5"):
        load_config(["--config", write(tmp_path, "train: 5")])


def test_indivisible_batch_lists_the_valid_values():
    train = TrainConfig(steps=1000, global_batch_size=16, micro_batch_size=3)
    with pytest.raises(UserError, match=r"micro_batch_size can be 1, 2, 4, 8$"):
        check_config(Config(train=train), world=2)
    with pytest.raises(UserError, match="global_batch_size can be 15 or 18"):
        check_config(Config(train=TrainConfig(steps=1000, global_batch_size=16)), world=3)


def test_saved_config_reads_back_equal(tmp_path):
    cfg = load_config([])
    text = yaml.safe_dump(config_to_dict(cfg))
    assert load_config(["--config", write(tmp_path, text)]) == cfg


def test_help_explains_every_key(capsys):
    with pytest.raises(SystemExit):
        load_config(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, _ in leaf_keys():
        assert f"--{name}" in text
    # Without a docstring, the type follows the name and its placeholder at once.
    value = r"(\[[^\]]*\]|\{[^}]*\}|[^\s,]+)"
    bare = r"--%s " + value + r"(, --\S+ " + value + r")? \((type|default)"
    undocumented = [n for n, _ in leaf_keys() if re.search(bare % re.escape(n), text)]
    assert not undocumented


def test_print_config_shows_the_resolved_values(capsys):
    with pytest.raises(SystemExit):
        load_config(["--optim.lr", "0.25", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optim"]["lr"] == 0.25
    assert printed["data"]["source"] == "synthetic"


@pytest.mark.parametrize("name", [file.stem for file in Path("configs").glob("*.yaml")])
def test_every_recipe_is_valid(name):
    start = ["--model.init_from", "some/detector", "--data.path", "d"] if name == "finetune" else []
    load_config(["--config", f"configs/{name}.yaml", *start])


def test_published_recipe_key_for_key():
    cfg = load_config(["--config", "configs/license_plates.yaml"])
    assert cfg.model.backbone == "facebook/dinov3-convnext-large-pretrain-lvd1689m"
    assert (cfg.model.freeze, cfg.model.head) == ("all", "detr")
    assert (cfg.data.path, cfg.data.labels) == ("merve/license-plates", ["license_plate"])
    assert (cfg.data.val_fraction, cfg.data.image_size.longest) == (0.05, 1024)
    assert (cfg.train.epochs, cfg.train.global_batch_size, cfg.train.precision) == (8, 4, "fp16")
    assert (cfg.optim.lr, cfg.optim.weight_decay, cfg.optim.warmup_steps) == (1e-5, 1e-4, 500)
    assert (cfg.train.evaluate_every, cfg.train.keep_checkpoints) == (500, 2)
    assert (cfg.run.tracker, cfg.hub.push, cfg.hub.private) == ("trackio", True, True)


def test_what_can_be_chosen_is_what_there_is():
    """A head or a source is named where it is and where it is chosen; both lists are the same."""
    from data.build import READERS
    from model.heads.registry import HEADS, get_family

    kinds = dict(leaf_keys())
    chosen, nothing = typing.get_args(kinds["model.head"])
    assert (set(typing.get_args(chosen)), nothing) == (set(HEADS), type(None))
    assert set(typing.get_args(kinds["data.source"])) == set(READERS)
    assert all(get_family(name).model_class for name in HEADS)


def test_keys_that_may_change_at_a_resume_change_no_step():
    """Stands at each key; whatever a step depends on is not among them."""
    harmless = set(harmless_keys())
    assert harmless < {name for name, _ in leaf_keys()}
    assert {"run.output_dir", "data.path", "train.micro_batch_size", "eval.batch_size"} <= harmless
    deciding = ("run.seed", "data.source", "data.augment", "data.image_size.longest", "model.head")
    deciding += ("model.head_args", "model.freeze", "train.global_batch_size", "train.precision")
    deciding += (
        "train.loss_scale_growth_steps",
        "train.steps",
        "train.ema_decay",
        "eval.metric",
        "eval.max_detections",
    )
    assert not harmless & set(deciding)
    assert not any(name.startswith("optim.") for name in harmless)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_every_number_has_to_be_finite(value):
    """In every key, and inside of lists and arguments; all are told at once."""
    number = float(value)
    cfg = Config(
        train=TrainConfig(steps=10, ema_decay=number),
        optim=OptimConfig(lr=number, betas=(0.9, number), warmup_steps=1),
        model=ModelConfig(head_args={"class_cost": number}),
        data=DataConfig(augment=[{"Blur": {"p": [1.0, number]}}]),
    )
    with pytest.raises(UserError) as error:
        check_config(cfg, 1)
    for key in (
        *("train.ema_decay", "optim.lr", "optim.betas[1]", "model.head_args.class_cost"),
        "data.augment[0].Blur.p[1]",
    ):
        assert f"{key} {value}: must be a finite number" in str(error.value)
