"""A run that is killed again and again is, in the end, the run that was not (longer)."""

import json
import random
import shutil

import pytest
from safetensors.torch import load_file

from builders import TINY_HEAD, metrics_lines, tiny_run, write_coco
from lives import Strike
from training.checkpoint import Checkpoints
from training.manifest import find_defect
from training.shelf import read_best, step_of

KILLS = 26
MOMENTS = {
    "time": 1500,
    "decode": 60,
    "step": 12,
    "log": 12,
    "evaluate": 6,
    "metrics": 2,
    "report": 2,
    "write": 12,
    "manifest": 4,
    "flush": 40,
    "rename": 6,
    "link": 8,
    "remove": 8,
}
"""Moments of a kill, and the highest number of the call (ms for "time") that is struck"""
STORM = {
    # (world, data workers, head)
    "one process": (1, 0, "deformable_detr"),
    "two data workers": (1, 2, "deformable_detr"),
    "two processes": (2, 0, "deformable_detr"),
    "masks": (1, 2, "maskformer"),
}


def storm_run(tmp_path, folder, variant="deformable_detr", **keys):
    """240 steps, 6 per epoch; saved every 2, evaluated every 6; dropout, flips and an average."""
    if not (tmp_path / "data").exists():
        write_coco(tmp_path / "data", 24)
        write_coco(tmp_path / "data", 6, "val", seed=1)
    head = json.dumps({**TINY_HEAD[variant], "dropout": 0.1})
    values = {
        "run__output_dir": folder,
        "run__resume": "auto",
        "run__draw_batches": 0,
        "data__augment": '[{"HorizontalFlip": {"p": 0.5}}]',
        "model__head_args": head,
        "optim__lr": 0.003,
        "optim__warmup_steps": 10,
        "train__steps": 240,
        "train__micro_batch_size": 2,
        "train__ema_decay": 0.9,
        "train__checkpoint_every": 2,
        "train__evaluate_every": 6,
        "eval__batch_size": 2,
    }
    return tiny_run(tmp_path, variant, **{**values, **keys})


def numbers(run):
    """Everything in metrics.jsonl but times."""
    return [
        {k: v for k, v in row.items() if not k.startswith("time/") and k != "eval/seconds"}
        for row in metrics_lines(run)
    ]


def assert_same_runs(run, whole):
    assert numbers(run) == numbers(whole)
    for link in ("last", "best"):
        target = (whole / "checkpoints" / link).readlink()
        assert (run / "checkpoints" / link).readlink() == target
        for file in sorted((whole / "checkpoints" / link).rglob("*.safetensors")):
            if file.name == "rng.safetensors":
                continue
            own = load_file(
                run / "checkpoints" / link / file.relative_to(whole / "checkpoints" / link)
            )
            wanted = load_file(file)
            assert own.keys() == wanted.keys()
            assert all((own[name] == wanted[name]).all() for name in wanted), file
    states = [
        json.loads((r / "checkpoints/last/state/state.json").read_text()) for r in (run, whole)
    ]
    for key in ("step", "samples_seen", "evaluated_step"):
        assert states[0][key] == states[1][key]
    assert read_best(run / "checkpoints/last") == read_best(whole / "checkpoints/last")


@pytest.mark.slow
@pytest.mark.parametrize("case", STORM)
def test_kill_storm(tmp_path, lives, case):
    world, workers, head = STORM[case]
    keys = {"data__num_workers": workers}
    lives.finish(storm_run(tmp_path, tmp_path / "whole", head, **keys), world)

    run = tmp_path / "run"
    arguments = storm_run(tmp_path, run, head, **keys)
    rng = random.Random(case)
    killed: dict[str, int] = {}
    resumed_at = []
    while sum(killed.values()) < KILLS:
        moment = rng.choice(list(MOMENTS))
        strike = Strike(
            moment,
            rng.randint(1, MOMENTS[moment]),
            rank=rng.randrange(world) if moment in ("time", "decode", "step", "evaluate") else 0,
            after=rng.random() < 0.5,
        )
        before = Checkpoints(run / "checkpoints", 2).names()
        statuses = lives.live(arguments, world, (strike,))
        output = lives.outputs[-1]
        # A rank that lost its data worker, or the other rank, may end with an error of its own. torch
        # says "killed by signal" or, where the queue broke first, "exited unexpectedly".
        lost_worker = "a data worker has ended from outside" in output
        struck = -9 in statuses or (moment == "decode" and lost_worker)
        assert "damaged" not in output
        if (run / "DONE").exists():  # too early: this life met no kill
            pytest.fail(f"the run ended after {killed}")
        assert struck or statuses == [0] * world, output
        if not struck:
            continue
        killed[moment] = killed.get(moment, 0) + 1
        # Only what was being written may be gone.
        checkpoints = Checkpoints(run / "checkpoints", 2)
        shutil.copytree(run / "checkpoints", tmp_path / "look", symlinks=True)
        look = Checkpoints(tmp_path / "look", 2)
        found, _ = look.newest_intact()
        shutil.rmtree(tmp_path / "look")
        if before:
            assert step_of(found.name) >= step_of(before[0])
        assert all(find_defect(checkpoints.folder / n) is None for n in checkpoints.names())
        resumed_at.append(step_of(found.name) if found else 0)
    lives.finish(arguments, world)
    print(case, killed, resumed_at)
    same_epoch = [
        a for a, b in zip(resumed_at, resumed_at[1:], strict=False) if a and a // 6 == b // 6
    ]
    assert same_epoch, "a second resume within one epoch"
    assert len(killed) >= 8
    assert_same_runs(run, tmp_path / "whole")
