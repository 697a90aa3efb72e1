import json
import re
import shlex
import shutil

import pytest
from accelerate.state import AcceleratorState

import train_accelerate
from builders import MASK_HEADS, TINY_HEAD, launch, metrics_lines, some, tiny_run, write_coco
from errors import UserError
from painted import write_folders
from runs import ids, losses, train
from segmented import write_imagefolder as write_panoptic

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


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
    with pytest.raises(UserError, match="was trained with another dataset") as error:
        train(tiny_run(tmp_path, **keys))
    assert f"data.path: {tmp_path / 'data'} -> {tmp_path / 'other'}" in str(error.value)
    write_coco(tmp_path / "data", 9)
    (tmp_path / "run/DONE").unlink()
    with pytest.raises(UserError, match="no key says so: files or code have changed"):
        train(tiny_run(tmp_path, run__resume="auto"))


def refuse_to_build(*words):
    raise AssertionError("nothing is loaded")


def test_a_finished_run_says_so_at_once(tmp_path, monkeypatch, capsys):
    """Status 0, and nothing is loaded or written; with more steps it goes on."""
    keys = {"run__resume": "auto", "optim__warmup_steps": 60, "train__micro_batch_size": "auto"}
    assert train_accelerate.main(tiny_run(tmp_path, **keys)) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    run = tmp_path / "run"
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.name != ".lock"}
    with monkeypatch.context() as patch:
        patch.setattr(train_accelerate, "build_run", refuse_to_build)
        assert train_accelerate.main(tiny_run(tmp_path, **keys, run__log_every=2)) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    told = capsys.readouterr().out.splitlines()[-1]
    assert "run is finished: trained to step 3, and exported to" in told
    assert "give a larger --train.steps (now 3)" in told
    after = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.name != ".lock"}
    assert after == before
    train(tiny_run(tmp_path, **keys, train__steps=4, run__allow_changes=True))
    assert (run / "DONE").read_text() == "4 steps\n"


@pytest.mark.parametrize(
    "length",
    [{"train__steps": 6}, {"train__steps": "null", "train__epochs": 3.0}],
    ids=["steps", "epochs"],
)
def test_a_run_out_of_patience_goes_on_without(tmp_path, capsys, length):
    """What it says of itself, and the command at its end."""
    keys = {**length, "train__evaluate_every": 1, "optim__lr": 1e-9}
    train(tiny_run(tmp_path, **keys, train__patience=1))
    run = tmp_path / "run"
    assert (run / "DONE").read_text() == "2 steps\n"
    (command,) = re.findall(
        r"with: python train_accelerate.py (.*) - or start", capsys.readouterr().out
    )
    train(tiny_run(tmp_path, **keys, train__patience=1, run__resume="auto"))
    assert capsys.readouterr().out.rstrip().endswith("give a larger --train.patience (now 1)")
    shutil.copytree(run, tmp_path / "branch", symlinks=True)
    train(tiny_run(tmp_path, **keys, run__resume="auto"))
    assert (run / "DONE").read_text() == "6 steps\n"
    where = ["--run.output_dir", str(tmp_path / "branch"), "--train.steps", "4"]
    train([*shlex.split(command), *where])
    assert (tmp_path / "branch/DONE").read_text() == "4 steps\n"


@pytest.mark.parametrize("lost", ["DONE", "export", "last checkpoint"])
def test_what_a_finished_run_lacks_is_made(tmp_path, lost):
    """As a kill between the last checkpoint and the export leaves it, or somebody who tidies up."""
    keys = {"train__checkpoint_every": 1, "train__keep_checkpoints": 9}
    train(tiny_run(tmp_path, **keys))
    run = tmp_path / "run"
    weights = (run / "export/model.safetensors").read_bytes()
    if lost == "last checkpoint":
        shutil.rmtree(run / "checkpoints/step-000003")
    else:
        shutil.rmtree(run / "export")
    if lost == "DONE":
        (run / "DONE").unlink()
    train(tiny_run(tmp_path, run__resume="auto", **keys))
    assert (run / "export/model.safetensors").read_bytes() == weights
    assert (run / "DONE").is_file()
    assert (run / "checkpoints/step-000003").is_dir()


LABEL_RULES = {
    "data.ignore_index": ("linear", "255 -> 2"),
    "data.background": ("linear", "background -> street"),
    "data.reduce_labels": ("linear", "False -> True"),
    "data.stuff": ("maskformer", "['sky'] -> ['sky', 'road']"),
}


@pytest.mark.parametrize("key", LABEL_RULES)
def test_key_that_makes_other_labels_is_named_with_both_values_and_what_to_do(tmp_path, key):
    """The same files under another rule are another dataset, and no file is to be looked for."""
    variant, change = LABEL_RULES[key]
    old, new = (
        json.dumps(json.loads(v.replace("'", '"'))) if v[0] == "[" else v
        for v in change.split(" -> ")
    )
    keys = {"train__steps": 2, "data__num_workers": 0}
    if key == "data.stuff":
        write_panoptic(tmp_path / "data")
        keys |= {"model__task": "panoptic_segmentation", "data__source": "imagefolder"}
    elif key != "data.background":
        data = write_folders(tmp_path / "data", edit=lambda labels: labels.clip(max=2))
        keys |= {"data__source": "label_maps"}
        if key != "data.ignore_index":  # a value with a name cannot be the ignored one
            keys |= {"data__labels": json.dumps(data.labels)}
    name = key.replace(".", "__")
    train(tiny_run(tmp_path, variant, **keys, **{name: old}))
    keys |= {"run__resume": "auto", "run__allow_changes": True, "data__augment": '[{"Blur": {}}]'}
    with pytest.raises(UserError) as error:
        train(tiny_run(tmp_path, variant, **keys, **{name: new}))
    lines = str(error.value).splitlines()
    assert lines[1].strip() == f"{key}: {change}"
    assert lines[2].strip() == "put them back, or start a new run in another run.output_dir"
    assert len(lines) == 3  # augmentation changes no dataset


@pytest.mark.parametrize("variant", some(["linear", *MASK_HEADS, "rf_detr_seg"], ["linear"]))
def test_masks_and_regions_go_on_bit_exactly_and_in_another_world(tmp_path, variant):
    keys = {
        "optim__schedule": "constant",
        "train__micro_batch_size": 2,
        "train__checkpoint_every": 2,
        "train__ema_decay": 0.9,
        "data__augment": '[{"HorizontalFlip": {"p": 0.5}}]',
    }
    one, two = tmp_path / "run", tmp_path / "two"
    whole = tmp_path / "whole"
    train(tiny_run(tmp_path, variant, train__steps=4, run__output_dir=whole, **keys))
    shutil.copytree(whole, one, symlinks=True)
    shutil.rmtree(one / "checkpoints/step-000004")  # as if killed before it
    shutil.copytree(one, two, symlinks=True)
    back = {"train__steps": 4, "run__resume": "auto"}
    train(tiny_run(tmp_path, variant, **back, **keys))
    assert losses(one) == losses(whole)
    weights = "checkpoints/step-000004/model/trainable.safetensors"
    assert (one / weights).read_bytes() == (whole / weights).read_bytes()
    result = launch(tiny_run(tmp_path, variant, run__output_dir=two, **back, **keys), processes=2)
    assert result.returncode == 0, result.stderr
    assert losses(two) == pytest.approx(losses(whole), rel=1e-4)
