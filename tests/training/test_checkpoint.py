"""Checkpoint folders: what is in them, what survives, what is refused."""

import json
import os
import pickle
import shutil

import pytest
import torch

from checkpoints import RNG, make, save, state_of, take_step
from errors import UserError
from settings.keys import Config
from training.manifest import find_defect, write_manifest
from training.optim import keep_counters_on_cpu
from training.shelf import read_best
from training.state import (
    checkpoint_tensors,
    load_model,
    load_optimizer,
    load_state,
    trainable_tensors,
)


@pytest.mark.parametrize("freeze", ["all", "stages:1", "none"])
@pytest.mark.parametrize("head", ["detr", "deformable_detr"])
def test_a_loaded_checkpoint_continues_bit_for_bit(backbone, checkpoints, head, freeze):
    detector, optimizer = make(backbone, freeze, head)
    take_step(detector, optimizer)
    save(checkpoints, tensors=checkpoint_tensors(detector.model, optimizer, {}, RNG))
    take_step(detector, optimizer)

    torch.manual_seed(99)
    other, other_optimizer = make(backbone, freeze, head)
    folder, notes = checkpoints.newest_intact()
    load_model(folder, other.model)
    load_optimizer(folder, other.model, other_optimizer)
    take_step(other, other_optimizer)
    wanted = detector.model.state_dict()
    assert notes == []
    assert all(torch.equal(t, wanted[n]) for n, t in other.model.state_dict().items())


def test_what_training_does_during_a_save_does_not_reach_it(backbone, checkpoints, monkeypatch):
    """The writer is held back until the next steps are done."""
    import threading

    import training.checkpoint

    go_on = threading.Event()
    write = training.checkpoint.save_file
    monkeypatch.setattr(
        training.checkpoint, "save_file", lambda *args: (go_on.wait(60), write(*args))
    )
    detector, optimizer = make(backbone)
    take_step(detector, optimizer)
    before = {n: t.detach().clone() for n, t in trainable_tensors(detector.model).items()}
    state = state_of(1)
    checkpoints.save(
        checkpoint_tensors(detector.model, optimizer, {}, RNG), state, Config(), wait=False
    )
    state.step = 2
    checkpoints.wait_for_copy()
    take_step(detector, optimizer)
    assert checkpoints.names() == []
    go_on.set()
    checkpoints.wait()
    other, _ = make(backbone)
    folder, _ = checkpoints.newest_intact()
    load_model(folder, other.model)
    assert load_state(folder).step == 1
    after = trainable_tensors(detector.model)
    assert all(torch.equal(t, before[n]) for n, t in trainable_tensors(other.model).items())
    assert not all(torch.equal(t, before[n]) for n, t in after.items())


def test_frozen_backbone_is_not_saved(backbone):
    detector, _ = make(backbone)
    names = set(trainable_tensors(detector.model))
    assert not [n for n in names if ".backbone." in n]
    assert {n for n, p in detector.model.named_parameters() if p.requires_grad} <= names


def test_step_numbers_of_more_than_six_digits_are_ordered(checkpoints):
    for step in (999_999, 1_000_000, 1_000_001):
        save(checkpoints, step)
    assert checkpoints.names() == ["step-1000001", "step-1000000"]


def test_checkpoint_of_another_model_is_refused(backbone, checkpoints):
    detector, optimizer = make(backbone)
    save(checkpoints, tensors=checkpoint_tensors(detector.model, optimizer, {}, RNG))
    other, _ = make(backbone, head="detr")
    with pytest.raises(UserError, match="was written for another model"):
        load_model(checkpoints.newest_intact()[0], other.model)


def files_of(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


ALL_FILES = [
    "manifest.json",
    "model/average.safetensors",
    "model/trainable.safetensors",
    "state/best.json",
    "state/config.yaml",
    "state/optimizer.safetensors",
    "state/rng.safetensors",
    "state/state.json",
]


@pytest.fixture
def two_saved(backbone, checkpoints):
    detector, optimizer = make(backbone)
    take_step(detector, optimizer)
    average = trainable_tensors(detector.model)
    tensors = checkpoint_tensors(detector.model, optimizer, average, RNG)
    save(checkpoints, 4, tensors=tensors)
    save(checkpoints, 8, tensors=tensors)
    return checkpoints


def test_checkpoint_has_no_file_that_runs_code(two_saved):
    assert files_of(two_saved.folder / "step-000008") == ALL_FILES


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("file", ALL_FILES)
def test_damaged_file_is_named_and_the_checkpoint_before_is_taken(two_saved, file, damage):
    newest = two_saved.folder / "step-000008"
    content = (newest / file).read_bytes()
    places = [0, len(content) // 3, len(content) // 2, len(content) - 1]
    for place in places if damage == "flip" else places[1:2]:
        if damage == "flip":
            changed = content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :]
            (newest / file).write_bytes(changed)
        elif damage == "truncate":
            (newest / file).write_bytes(content[:place])
        else:
            (newest / file).unlink()
        found, notes = two_saved.newest_intact()
        assert found.name == "step-000004"
        assert len(notes) == 1
        assert "step-000008 is damaged" in notes[0]
        assert file in notes[0]
        aside = two_saved.folder / "damaged-step-000008"
        assert sorted([*files_of(aside), *([file] if damage == "remove" else [])]) == ALL_FILES
        aside.rename(newest)
        (newest / file).write_bytes(content)
    assert two_saved.newest_intact()[0] == newest


def test_damaged_checkpoints_of_the_same_step_are_all_kept(two_saved):
    for _ in range(3):
        (two_saved.folder / "step-000008/manifest.json").unlink()
        assert two_saved.newest_intact()[0].name == "step-000004"
        shutil.copytree(two_saved.folder / "step-000004", two_saved.folder / "step-000008")
    aside = {p.name for p in two_saved.folder.glob("damaged-*")}
    assert aside == {f"damaged-step-000008{end}" for end in ("", "-1", "-2")}


def test_no_intact_checkpoint_is_no_fresh_start(two_saved):
    for step in (4, 8):
        (two_saved.folder / f"step-00000{step}/state/state.json").unlink()
    for _ in range(2):  # and not the second time either
        with pytest.raises(UserError, match=r"no checkpoint is intact(?s:.*)-000008(?s:.*)-000004"):
            two_saved.newest_intact()
    assert two_saved.names() == ["step-000008", "step-000004"]
    for step in (4, 8):
        (two_saved.folder / f"step-00000{step}").rename(two_saved.folder / f"damaged-step-{step}")
    with pytest.raises(UserError, match="no checkpoint is intact"):
        two_saved.newest_intact()


def test_planted_pickle_is_never_loaded(backbone, two_saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/executed",)

    newest = two_saved.folder / "step-000008"
    (newest / "state/optimizer.bin").write_bytes(pickle.dumps(Evil()))
    assert find_defect(newest) == "state/optimizer.bin does not belong to it"
    (newest / "state/optimizer.bin").unlink()
    # In the place of a file, with a manifest that fits it:
    detector, optimizer = make(backbone)
    loads = {
        "model/trainable.safetensors": lambda folder: load_model(folder, detector.model),
        "state/optimizer.safetensors": lambda folder: load_optimizer(
            folder, detector.model, optimizer
        ),
        "state/state.json": load_state,
        "state/best.json": read_best,
    }
    for file, load in loads.items():
        (newest / file).write_bytes(pickle.dumps(Evil()))
        write_manifest(newest)
        assert find_defect(newest) is None
        with pytest.raises(UserError, match="not a"):
            load(newest)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("moment", ["writing", "between the renames", "removing"])
def test_leftovers_of_a_kill_are_put_right(checkpoints, moment):
    save(checkpoints, 4)
    save(checkpoints, 8)
    folder = checkpoints.folder
    if moment == "writing":
        shutil.copytree(folder / "step-000008", folder / ".writing-step-000009")
        (folder / ".writing-step-000009/manifest.json").unlink()
    elif moment == "between the renames":
        (folder / "step-000008").rename(folder / ".replaced-step-000008")
    else:
        (folder / "step-000004").rename(folder / ".removing-step-000004")
        shutil.rmtree(folder / ".removing-step-000004/model")
    found, notes = checkpoints.newest_intact()
    assert found.name == "step-000008"
    assert notes == (
        ["step-000009 was being written when the run ended: removed"] if moment == "writing" else []
    )
    assert not list(folder.glob(".*"))


def test_manifest_lists_sizes_and_checksums(checkpoints):
    save(checkpoints, 4)
    folder = checkpoints.folder / "step-000004"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert sorted([*listed, "manifest.json"]) == files_of(folder)
    assert all(listed[f]["bytes"] == (folder / f).stat().st_size for f in listed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_snapshot_of_a_model_on_a_gpu(backbone, checkpoints):
    """Pinned copies, ready before the next update, and AdamW's counters back on the CPU."""
    detector, optimizer = make(backbone)
    detector.model.cuda()
    labels = [
        {
            "class_labels": torch.tensor([0]).cuda(),
            "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]).cuda(),
        }
    ]
    images = torch.ones(1, 3, 64, 64).cuda()
    for _ in range(3):
        detector.model(pixel_values=images, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    before = {n: t.detach().cpu().clone() for n, t in trainable_tensors(detector.model).items()}
    tensors = checkpoint_tensors(detector.model, optimizer, {}, RNG)
    checkpoints.save(tensors, state_of(3), Config())
    checkpoints.wait_for_copy()
    with torch.no_grad():
        for tensor in trainable_tensors(detector.model).values():
            tensor.zero_()
    checkpoints.wait()
    other, other_optimizer = make(backbone)
    other.model.cuda()
    folder, _ = checkpoints.newest_intact()
    load_model(folder, other.model)
    load_optimizer(folder, other.model, other_optimizer)
    keep_counters_on_cpu(other_optimizer)
    loaded = trainable_tensors(other.model)
    assert all(torch.equal(t.cpu(), before[n]) for n, t in loaded.items())
    assert {s["step"].device.type for s in other_optimizer.state.values()} == {"cpu"}
