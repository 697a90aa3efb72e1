import shutil
import subprocess

import pytest
import torch

from checkpoints import SMALL, save, state_of
from settings.keys import Config
from training.checkpoint import Checkpoints
from training.manifest import find_defect
from training.shelf import Best, read_best
from training.state import (
    TrainState,
    load_state,
)


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
    checkpoints.save(SMALL, state_of(60, evaluated_step=60), Config(), wait=True)
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
    assert (
        "(step-000004 is intact): it takes 3 MB, and 2 MB are free. Make room"
        in checkpoints.failure
    )
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


def test_the_best_stays_while_a_newer_one_is_found_during_a_save(tmp_path, monkeypatch):
    """The thread that writes prunes by the best of its own save, not by one that is nowhere yet."""
    import threading

    import training.checkpoint

    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    save(checkpoints, 5, metric=0.5)
    go_on, write = threading.Event(), training.checkpoint.save_file
    monkeypatch.setattr(
        training.checkpoint, "save_file", lambda *args: (go_on.wait(60), write(*args))
    )
    checkpoints.save(SMALL, state_of(10), Config())
    checkpoints.record(0.9, 12)
    go_on.set()
    checkpoints.wait()
    assert checkpoints.names() == ["step-000010", "step-000005"]
    with monkeypatch.context() as broken:
        broken.setattr(training.checkpoint, "save_file", lambda *_: 1 / 0)
        checkpoints.save(SMALL, state_of(12, 12), Config(), wait=True)
    checkpoints.give_up()
    assert checkpoints.best_folder().name == "step-000005"
