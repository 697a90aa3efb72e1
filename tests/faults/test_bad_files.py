"""Exports, backbones, configurations and folders that something is wrong with: one line, and nothing lost."""

import json
import os
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tools.check_data
import tools.evaluate
import tools.predict
import tools.random_backbone
import train_accelerate
from builders import metrics_lines, tiny_run, write_coco
from data.build import build_data
from data.images.decode import decode
from errors import UserError
from export.detector import load_detector
from runs import train
from settings.keys import DataConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, and the folder with its data and backbone."""
    folder = tmp_path_factory.mktemp("finished")
    train(tiny_run(folder, train__checkpoint_every=1))
    return folder


def weights(edit):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def entry(file, **values):
    def change(folder):
        content = json.loads((folder / file).read_text())
        for name, value in values.items():
            if value is ...:
                content.pop(name)
            else:
                content[name] = value
        (folder / file).write_text(json.dumps(content))

    return change


def first(tensors, value=None):
    name = next(
        n for n, t in sorted(tensors.items()) if t.is_floating_point() and t.ndim > 1 and len(t) > 1
    )
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value(tensors[name])


CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
BROKEN_EXPORTS = {
    "no tensor": weights(dict.clear),
    "a tensor missing": weights(first),
    "a tensor too many": weights(lambda t: t.update(further=torch.ones(2, 2))),
    "integers": weights(lambda t: first(t, lambda v: v.to(torch.int32))),
    "nan": weights(lambda t: first(t, lambda v: v * float("nan"))),
    "another shape": weights(lambda t: first(t, lambda v: v[:1].clone())),
    "a layer too many": entry(CONFIG, decoder_layers=3),
    "names as a list": entry(CONFIG, id2label=["a"]),
    "no backbone": entry(CONFIG, backbone_config=...),
    "width as text": entry(CONFIG, d_model="x"),
    "no heads": entry(CONFIG, decoder_attention_heads=0),
    "unknown activation": entry(CONFIG, activation_function="x"),
    "unknown type": entry(CONFIG, dtype="bogus"),
    "config null": lambda folder: (folder / CONFIG).write_text("null"),
    "no deviation": entry(PROCESSOR, image_std=[0, 0, 0]),
    "mean of two": entry(PROCESSOR, image_mean=[0.5, 0.5]),
    "scale as text": entry(PROCESSOR, rescale_factor="x"),
    "not resized": entry(PROCESSOR, do_resize=False),
    "no size": entry(PROCESSOR, size=[]),
    "negative size": entry(PROCESSOR, size={"max_height": -5, "max_width": -5}),
    "two sizes": entry(PROCESSOR, size={"max_height": 64, "max_width": 96}),
    "huge padding": entry(PROCESSOR, pad_size={"height": 10**9, "width": 10**9}),
    "another processor": entry(PROCESSOR, image_processor_type="ViTImageProcessor"),
    "processor a list": lambda folder: (folder / PROCESSOR).write_text("[]"),
}


@pytest.mark.parametrize("case", BROKEN_EXPORTS)
def test_broken_export_is_refused_with_one_line(finished, tmp_path, case):
    folder = tmp_path / "export"
    shutil.copytree(finished / "run/export", folder)
    BROKEN_EXPORTS[case](folder)
    with pytest.raises(UserError) as error:
        load_detector(str(folder))
    assert str(error.value).startswith(f"--model {folder}: ")
    assert "\n" not in str(error.value)


BROKEN_BACKBONES = {
    "sizes as text": entry(CONFIG, hidden_sizes="x"),
    "unknown activation": entry(CONFIG, hidden_act="x"),
    "stages of other names": entry(CONFIG, stage_names=["a"]),
    "null": lambda folder: (folder / CONFIG).write_text("null"),
    "no deviation": entry(PROCESSOR, image_std=[0, 0, 0]),
    "text as mean": entry(PROCESSOR, image_mean=["a", "b", "c"]),
    "nan": weights(lambda t: first(t, lambda v: v * float("nan"))),
}


@pytest.mark.parametrize("case", BROKEN_BACKBONES)
def test_broken_backbone_is_refused_before_training(tmp_path, case):
    arguments = tiny_run(tmp_path)
    BROKEN_BACKBONES[case](tmp_path / "backbone")
    with pytest.raises(UserError, match=r"^(model\.backbone|/.*preprocessor_config)"):
        train_accelerate.main(arguments)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def copied(finished, tmp_path):
    """The run, stopped before its last step, and what it is made of."""
    shutil.copytree(finished, tmp_path / "all", symlinks=True)
    folder = tmp_path / "all"
    shutil.rmtree(folder / "run/checkpoints/step-000003")
    (folder / "run/DONE").unlink()
    return folder, tiny_run(folder, run__resume="auto", train__checkpoint_every=1)


@pytest.mark.parametrize("key", ["iscrowd", "area", "ids"])
def test_changed_annotations_are_another_dataset(finished, tmp_path, key):
    folder, arguments = copied(finished, tmp_path)
    file = folder / "data/annotations/train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"][1:]:
        if key == "ids":
            continue
        annotation[key] = {"iscrowd": 1, "area": 7}[key]
    if key == "ids":
        for row in [*content["categories"], *content["annotations"]]:
            name = "id" if "name" in row else "category_id"
            row[name] = 77
        val = folder / "data/annotations/val.json"
        val.write_text(val.read_text().replace('"category_id": 1', '"category_id": 77'))
        val.write_text(val.read_text().replace('"id": 1, "name"', '"id": 77, "name"'))
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="another dataset"):
        train_accelerate.main(arguments)


@pytest.mark.parametrize(
    "change", [entry(PROCESSOR, image_mean=[0.4] * 3), entry(CONFIG, hidden_act="relu")]
)
def test_backbone_that_computes_something_else_is_another_one(finished, tmp_path, change):
    folder, arguments = copied(finished, tmp_path)
    change(folder / "backbone")
    with pytest.raises(UserError, match="another backbone"):
        train_accelerate.main(arguments)


def tree(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_resume_in_a_folder_without_checkpoints_replaces_nothing(finished, tmp_path):
    folder, arguments = copied(finished, tmp_path)
    shutil.rmtree(folder / "run/checkpoints")
    before = tree(folder / "run")
    with pytest.raises(UserError, match="has no checkpoint to resume from, and holds export"):
        train_accelerate.main(arguments)
    after = tree(folder / "run")
    after.pop(next((p for p in after if p.name == ".lock"), None), None)
    before = {p: v for p, v in before.items() if p.name != ".lock"}
    assert after == before


def test_a_users_own_config_is_not_replaced(tmp_path):
    arguments = tiny_run(tmp_path, run__resume="auto")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("mine: 1\n")
    with pytest.raises(UserError, match=r"holds config.yaml, which a new run would replace"):
        train_accelerate.main(arguments)
    assert (tmp_path / "run/config.yaml").read_text() == "mine: 1\n"


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(finished, tmp_path):
    folder, arguments = copied(finished, tmp_path)
    shutil.rmtree(folder / "run/checkpoints")
    shutil.rmtree(folder / "run/export")
    (folder / "run/slurm-7.out").write_text("a line\n")
    train(arguments)
    assert [row["step"] for row in metrics_lines(folder / "run")] == [1, 2, 3, 3]
    assert (folder / "run/slurm-7.out").exists()


def test_crowds_alone_are_nothing_to_learn(tmp_path):
    root = tmp_path / "data"
    write_coco(root)
    file = root / "annotations/train.json"
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
    cfg = DataConfig(source="coco", path=str(root), val_fraction=0.5)
    with pytest.raises(UserError, match="not one valid box of a single object"):
        build_data(cfg, 0)
    file.write_text(file.read_text().replace('"iscrowd": 1', '"iscrowd": 2', 1))
    with pytest.raises(UserError, match="iscrowd is 2, neither 0 nor 1"):
        build_data(cfg, 0)


def test_reports_replace_reports_and_nothing_else(tmp_path):
    root = tmp_path / "data"
    write_coco(root)
    (tmp_path / "empty.yaml").write_text("train: {epochs: 1}\n")
    arguments = ["--config", str(tmp_path / "empty.yaml"), "--data.source", "coco"]
    arguments += ["--data.path", str(root), "--workers", "1"]
    before = tree(root)
    for option, victim in (("--json", "annotations/train.json"), ("--picture", "train/000.jpg")):
        with pytest.raises(UserError, match=f"^{option} .*no earlier report"):
            tools.check_data.main([*arguments, option, str(root / victim)])
    assert tree(root) == before
    own = ["--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    for _ in range(2):
        assert tools.check_data.main([*arguments, *own]) == 0


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_image_that_became_something_else_is_no_image(tmp_path, what):
    """A pipe would be waited for, and a device may never end."""
    file = tmp_path / "a.jpg"
    if what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="cannot decode the image: .*not a file"):
        decode(file, "a.jpg")


def test_pipe_in_a_model_folder_is_refused(tmp_path):
    arguments = tiny_run(tmp_path)
    os.mkfifo(tmp_path / "backbone/other.json")
    with pytest.raises(UserError, match=r"other\.json is no file"):
        train_accelerate.main(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"d_model": 0},
        {"encoder_attention_heads": 0},
        {"activation_function": "x"},
        {"dtype": "bogus"},
        {"return_dict": False},
    ],
)
def test_head_arguments_that_fit_nothing(tmp_path, arguments):
    keys = {"model__head_args": json.dumps({"num_feature_levels": 1, **arguments})}
    with pytest.raises(UserError, match=r"model\.(head_args|out_features)"):
        train_accelerate.main(tiny_run(tmp_path, **keys))


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "DONE"])
def test_folder_in_the_place_of_a_file_is_named(tmp_path, name):
    arguments = tiny_run(tmp_path, run__resume="auto")
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name}"):
        train_accelerate.main(arguments)


def test_prediction_with_odd_files(finished, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (64, 48)).save(photos / "a.gif")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    out = ["--out", str(tmp_path / "out")]
    model = ["--model", str(finished / "run/export")]
    assert len(tools.predict.main([*model, str(photos), *out])) == 1
    with pytest.raises(UserError, match="--threshold"):
        tools.predict.main([*model, str(photos), *out, "--threshold", "nan"])
    (photos / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match="none of the images could be read"):
        tools.predict.main([*model, str(photos), *out])
