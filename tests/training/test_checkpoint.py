"""Checkpoint folders: what is in them, what survives, what is refused."""

import json
import os
import pickle
import shutil
import subprocess

import pytest
import torch
from builders import TINY_HEAD, losses_of, make_batch, save_backbone

from data.taxonomy import Taxonomy
from errors import UserError
from model.build import build_model
from settings.keys import Config, ModelConfig, OptimConfig
from training.checkpoint import Best, Checkpoints, read_best
from training.manifest import find_defect, write_manifest
from training.optim import build_optimizer, keep_counters_on_cpu
from training.state import (
    TrainState,
    checkpoint_tensors,
    load_model,
    load_optimizer,
    load_state,
    trainable_tensors,
)

RNG = {"cpu/0": torch.get_rng_state()}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


def make(backbone, freeze="all", head="deformable_detr"):
    cfg = ModelConfig(backbone=str(backbone), head=head, head_args=TINY_HEAD[head], freeze=freeze)
    detector = build_model(cfg, Taxonomy(("a",), (0,)))
    optimizer = build_optimizer(detector.model, detector.backbone_module, OptimConfig(lr=1e-2))
    return detector, optimizer


def take_step(detector, optimizer):
    losses_of(detector.trainable, make_batch([1], num_classes=1)).total.backward()
    optimizer.step()
    optimizer.zero_grad()


SMALL = {"model/trainable.safetensors": {"w": torch.arange(4.0)}, "state/rng.safetensors": RNG}


def save(checkpoints, step=5, metric=None, tensors=SMALL, cfg=None):
    checkpoints.record(metric, step)
    checkpoints.save(tensors, TrainState(step=step), cfg or Config(), wait=True)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


@pytest.mark.parametrize("freeze", ["all", "none"])
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
    state = TrainState(step=1)
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


def test_best_last_and_limit_over_two_lives(tmp_path):
    """Six saves with keep 2, a resume, three more."""
    folder = tmp_path / "checkpoints"

    def save_all(lives):
        kept = Checkpoints(folder, keep=2)
        found, _ = kept.newest_intact()
        if found is not None:
            best, notes = kept.find_best(found, same_metric=True)
            assert notes == []
            kept.go_on_from(found, load_state(found), best)
        for step, metric in lives:
            save(kept, step, metric)
        assert kept.best == read_best(kept.newest_intact()[0])
        return sorted(p.name for p in folder.iterdir())

    first = save_all([(10, 0.1), (20, 0.5), (30, 0.3), (40, 0.2), (50, None), (60, 0.4)])
    assert first == ["best", "last", "step-000020", "step-000050", "step-000060"]
    assert read_best(folder / "step-000060") == Best(0.5, 20)
    second = save_all([(70, 0.3), (80, 0.6), (90, 0.1)])
    assert second == ["best", "last", "step-000080", "step-000090"]
    assert (folder / "best").readlink().as_posix() == "step-000080"
    assert (folder / "last").readlink().as_posix() == "step-000090"


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


def test_failed_save_costs_neither_the_best_nor_the_stop(checkpoints, monkeypatch):
    """The best is what a checkpoint holds; after a failure the same step is saved again."""
    save(checkpoints, 20, metric=0.5)
    with monkeypatch.context() as broken:
        broken.setattr("training.checkpoint.save_file", lambda *_: 1 / 0)
        save(checkpoints, 40, metric=0.6)
    assert checkpoints.is_best(40)
    assert checkpoints.is_saved(TrainState(step=40))
    assert "step-000020 is intact" in checkpoints.give_up()
    assert checkpoints.failure is None
    assert not checkpoints.is_saved(TrainState(step=40))
    assert checkpoints.best == Best(0.5, 20)
    save(checkpoints, 60, metric=0.55)
    assert checkpoints.is_best(60)
    assert checkpoints.best_folder().name == "step-000060"


def test_other_ranks_keep_the_same_account_and_touch_no_file(tmp_path):
    """Whether to save, and whether it is the best, is decided alike on all of them."""
    folder = tmp_path / "checkpoints"
    main, other = Checkpoints(folder, keep=2), Checkpoints(folder, keep=2, is_main=False)
    for step, metric in [(10, 0.1), (20, float("nan")), (30, 0.3), (40, None), (50, 0.2)]:
        files = sorted(folder.rglob("*"))
        save(other, step, metric, tensors={})
        assert sorted(folder.rglob("*")) == files
        save(main, step, metric)
        assert (main.best, main.is_best(step)) == (other.best, other.is_best(step))
        assert main.is_saved(TrainState(step=step)) == other.is_saved(TrainState(step=step)) is True
    main.give_up()
    other.give_up()
    assert main.best == other.best == Best(0.3, 30)
    assert other.failure is None


def test_best_of_an_older_checkpoint_is_taken_up_where_the_better_one_is_not(checkpoints):
    save(checkpoints, 20, metric=0.5)
    checkpoints.record(0.6, 40)  # its save failed
    checkpoints.save(SMALL, TrainState(step=60, evaluated_step=60), Config(), wait=True)
    newest = checkpoints.folder / "step-000060"
    assert read_best(newest) == Best(0.6, 40)
    assert checkpoints.find_best(newest, True) == (Best(0.5, 20), [])
    best, notes = checkpoints.find_best(newest, False)
    assert best is None
    assert "by another eval.metric" in notes[0]
    shutil.rmtree(checkpoints.folder / "step-000020")
    best, notes = checkpoints.find_best(newest, True)
    assert best is None
    assert "step-000040, the best checkpoint so far, is not here" in notes[0]


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


def test_same_step_again_replaces_it(checkpoints):
    save(checkpoints, 8)
    save(checkpoints, 8, metric=0.5)
    assert read_best(checkpoints.folder / "step-000008") == Best(0.5, 8)
    assert (checkpoints.folder / "best").readlink().as_posix() == "step-000008"
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["best", "last", "step-000008"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


BIG = {"model/trainable.safetensors": {"w": torch.zeros(500_000)}}  # 2 MB


def test_full_disk_leaves_the_older_checkpoint(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=1)
    save(checkpoints, 4, tensors=BIG)
    assert checkpoints.failure is None
    save(checkpoints, 8, tensors=BIG)
    assert "step 8 could not be written" in checkpoints.failure
    assert "it takes 3 MB, and 2 MB are free; step-000004 is intact" in checkpoints.failure
    assert checkpoints.newest_intact()[0].name == "step-000004"


def test_disk_that_fills_up_while_writing(small_disk, monkeypatch):
    """As a quota does: there seems to be room."""
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=1)
    save(checkpoints, 4, tensors=BIG)
    monkeypatch.setattr(Checkpoints, "_check_space", lambda self: None)
    save(checkpoints, 8, tensors=BIG | {"state/optimizer.safetensors": {"w": torch.ones(500_000)}})
    assert "No space left on device" in checkpoints.failure
    assert not list(checkpoints.folder.glob(".writing*"))
    assert checkpoints.newest_intact()[0].name == "step-000004"


def test_read_only_folder_is_a_failed_save(small_disk):
    checkpoints = Checkpoints(small_disk / "checkpoints", keep=1)
    save(checkpoints, 4)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    save(checkpoints, 8)
    assert "Read-only file system" in checkpoints.failure
    assert find_defect(checkpoints.folder / "step-000004") is None


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
    checkpoints.save(tensors, TrainState(step=3), Config())
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
