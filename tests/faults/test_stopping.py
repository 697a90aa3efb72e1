"""Runs that are asked to stop, that lose their disk, and that go on elsewhere or otherwise."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from builders import ROOT, TINY_HEAD, metrics_lines, tiny_run, write_coco
from lives import Strike
from training.manifest import find_defect
from training.stopping import EXIT_INTERRUPTED, EXIT_STOPPED

SIGNALS = [(signal.SIGTERM, 1), (signal.SIGUSR1, 2), (signal.SIGINT, 1), (signal.SIGHUP, 2)]
"""(signal, number of processes)"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, lives):
    """An uninterrupted run of 12 steps, and the folder with its data and backbone."""
    folder = tmp_path_factory.mktemp("whole")
    write_coco(folder / "data", 24)
    write_coco(folder / "data", 6, "val", seed=1)
    lives.finish(short_run(folder))
    return folder


def short_run(folder, output="whole", **keys):
    values = {
        "run__output_dir": folder / output,
        "run__draw_batches": 0,
        "train__steps": 12,
        "train__checkpoint_every": 5,
        "train__evaluate_every": 6,
        "train__micro_batch_size": 1,
        "eval__batch_size": 2,
    }
    return tiny_run(folder, **{**values, **keys})


def numbers(run):
    """Numbers of metrics.jsonl, but times; lists of losses and of everything else."""
    rows = metrics_lines(run)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    ids = [sorted(row["train/image_ids"]) for row in rows if "train/loss" in row]
    return losses, ids, [(r["step"], r["eval/AP"]) for r in rows if "eval/AP" in r]


@pytest.fixture
def run(whole):
    yield whole / "run"
    shutil.rmtree(whole / "run", ignore_errors=True)


@pytest.mark.parametrize(("number", "world"), SIGNALS)
def test_signal_saves_at_the_next_step_and_resumes(whole, run, lives, number, world):
    """Only the last rank gets the signal; all leave after the step it came in."""
    strike = Strike("step", 4, rank=world - 1, signal=number)
    statuses = lives.live(short_run(whole, "run"), world, (strike,))
    assert statuses == [EXIT_STOPPED] * world, lives.outputs[-1]
    assert [p.name for p in (run / "checkpoints").glob("step-*")] == ["step-000004"]
    assert not (run / "DONE").exists()
    output = lives.outputs[-1]
    assert "stopping after step 4: " in output
    assert "stopped with a checkpoint of step 4; --run.resume auto continues" in output
    lives.finish(short_run(whole, "run", run__resume="auto"), world)
    assert (run / "DONE").exists()
    (losses, *rest), (wanted, *others) = numbers(run), numbers(whole / "whole")
    assert losses == (wanted if world == 1 else pytest.approx(wanted, rel=1e-5))
    assert rest[0] == others[0]


@pytest.mark.parametrize("world", [1, 2])
def test_signal_while_evaluating(whole, run, lives, world):
    """The evaluation is given up, and made again, in full, after the resume."""
    strike = Strike("evaluate", 1, rank=world - 1, after=True, signal=signal.SIGTERM)
    statuses = lives.live(short_run(whole, "run"), world, (strike,))
    assert statuses == [EXIT_STOPPED] * world, lives.outputs[-1]
    last = run / "checkpoints/last"
    state = json.loads((last / "state/state.json").read_text())
    assert (state["step"], state["evaluated_step"]) == (6, 0)
    assert not (run / "eval").exists()
    lives.finish(short_run(whole, "run", run__resume="auto"), world)
    (losses, *rest), (wanted, *others) = numbers(run), numbers(whole / "whole")
    assert losses == (wanted if world == 1 else pytest.approx(wanted, rel=1e-5))
    assert rest == others


@pytest.mark.parametrize(("moment", "world"), [("report", 1), ("metrics", 2)])
def test_kill_between_predictions_and_files(whole, run, lives, moment, world):
    """The evaluation is made again: no checkpoint said that it was there."""
    strike = Strike(moment, 1, after=True)
    assert -signal.SIGKILL in lives.live(short_run(whole, "run"), world, (strike,))
    assert [p.name for p in (run / "checkpoints").glob("step-*")] == ["step-000005"]
    lives.finish(short_run(whole, "run", run__resume="auto"), world)
    (losses, *rest), (wanted, *others) = numbers(run), numbers(whole / "whole")
    assert losses == (wanted if world == 1 else pytest.approx(wanted, rel=1e-5))
    assert rest == others
    assert {p.name for p in (run / "eval").iterdir()} == {"step-000006", "step-000012"}


def test_stop_file_is_honoured_once(whole, run, lives):
    run.mkdir()
    (run / "STOP").touch()
    keys = {"run__resume": "auto"}
    assert lives.live(short_run(whole, "run", **keys)) == [EXIT_STOPPED]
    assert f"stopping after step 0: the file {run / 'STOP'}" in lives.outputs[-1]
    assert not (run / "STOP").exists()
    lives.finish(short_run(whole, "run", **keys))
    assert numbers(run) == numbers(whole / "whole")


def test_signal_to_the_whole_process_group_spares_the_workers(whole, run):
    """As scancel and Ctrl-C do; with data workers, by the real command."""
    arguments = short_run(whole, "run", data__num_workers=2, train__steps=5000)
    process = subprocess.Popen(
        [sys.executable, "train_accelerate.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: (run / "checkpoints/last").exists(), process)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED, output
    assert "Traceback" not in output
    assert find_defect(run / "checkpoints/last") is None


def test_second_interrupt_ends_at_once(whole, run):
    """Also inside of one long call of torch, in which Python hears no signal."""
    arguments = short_run(whole, "run", train__steps=5000)
    code = (
        "import sys, torch, train_accelerate\n"
        "torch.set_num_threads(1)\n"
        "def slow(*args):\n"
        "    print('in a step', flush=True)\n"
        "    torch.linalg.matrix_power(torch.randn(3000, 3000), 2**62)\n"
        "train_accelerate.take_step = slow\n"
        "train_accelerate.main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "in a step" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == EXIT_INTERRUPTED


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_other_numbers_of_processes(whole, run, lives):
    """1 -> 2 -> 1 -> 4 processes, each ended by a signal."""
    for world, steps in [(1, 3), (2, 2), (1, 4)]:
        strike = Strike("step", steps, signal=signal.SIGTERM)
        statuses = lives.live(short_run(whole, "run", run__resume="auto"), world, (strike,))
        assert statuses == [EXIT_STOPPED] * world, lives.outputs[-1]
    lives.finish(short_run(whole, "run", run__resume="auto"), 4)
    assert "1 -> 4 processes: same images and gradients" in lives.outputs[-1]
    assert "not exact" not in lives.outputs[-1]
    losses, ids, evaluations = numbers(run)
    wanted_losses, wanted_ids, wanted_evaluations = numbers(whole / "whole")
    assert losses == pytest.approx(wanted_losses, rel=1e-5)
    assert ids == wanted_ids
    assert [step for step, _ in evaluations] == [step for step, _ in wanted_evaluations]


def test_dropout_with_other_micro_batches_is_named(whole, run, lives):
    keys = {
        "model__head_args": json.dumps({**TINY_HEAD["deformable_detr"], "dropout": 0.1}),
        "train__micro_batch_size": "null",
    }
    strike = Strike("step", 2, signal=signal.SIGTERM)
    assert lives.live(short_run(whole, "run", **keys), 1, (strike,)) == [EXIT_STOPPED]
    assert (
        lives.live(short_run(whole, "run", run__resume="auto", **keys), 2, (strike,))
        == [EXIT_STOPPED] * 2
    )
    assert (
        "not exact: dropout masks belong to a micro-batch, and it has 2 images instead of 4"
        in lives.outputs[-1]
    )


def test_changed_keys_are_reported_and_those_that_matter_are_refused(whole, run, lives):
    strike = Strike("step", 2, signal=signal.SIGTERM)
    assert lives.live(short_run(whole, "run"), 1, (strike,)) == [EXIT_STOPPED]
    changed = {
        "run__resume": "auto",
        "optim__lr": 0.01,
        "train__global_batch_size": 8,
        "data__num_workers": 1,
        "train__keep_checkpoints": 7,
    }
    assert lives.live(short_run(whole, "run", **changed)) == [2]
    output = lives.outputs[-1]
    assert "optim.lr: 0.0001 -> 0.01\n" in output
    assert "train.global_batch_size: 4 -> 8\n" in output
    assert "--run.allow_changes true" in output
    assert "num_workers" not in output
    lives.finish(short_run(whole, "run", run__allow_changes=True, **changed))
    output = lives.outputs[-1]
    assert "changed since the checkpoint: optim.lr: 0.0001 -> 0.01 (allowed)" in output
    assert "changed since the checkpoint: data.num_workers: 0 -> 1\n" in output
    assert metrics_lines(run)[2]["train/lr"] == pytest.approx(0.01 * 10 / 11)


def test_fewer_steps_than_were_taken_are_refused(whole, run, lives):
    keys = {"optim__schedule": "constant", "run__resume": "auto"}
    strike = Strike("step", 4, signal=signal.SIGTERM)
    assert lives.live(short_run(whole, "run", **keys), 1, (strike,)) == [EXIT_STOPPED]
    assert lives.live(short_run(whole, "run", train__steps=3, **keys)) == [2]
    assert "step-000004 is at step 4, and train.steps or train.epochs give 3" in lives.outputs[-1]


def test_branch_into_a_run_with_checkpoints_is_refused(whole, run, lives):
    source = whole / "whole/checkpoints/last"
    keys = {"run__resume": source}
    lives.finish(short_run(whole, "run", **keys))  # a branch of a finished run is exported anew
    assert (run / "export/model.safetensors").exists()
    assert lives.live(short_run(whole, "run", **keys)) == [2]
    assert "has checkpoints of its own, up to step-000012" in lives.outputs[-1]


def test_two_runs_in_one_folder_are_refused(whole, run):
    """The second one says so and changes nothing; after a kill the folder is free at once."""
    arguments = short_run(whole, "run", train__steps=5000, run__resume="auto")
    command = [sys.executable, "train_accelerate.py", *arguments]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: (run / "checkpoints/last").exists(), first)
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
        assert second.returncode == 2
        assert "another process is training into it" in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


def test_checkpoint_of_another_dataset_taxonomy_or_backbone_is_refused(whole, run, lives, tmp_path):
    from builders import save_backbone

    strike = Strike("step", 2, signal=signal.SIGTERM)
    assert lives.live(short_run(whole, "run"), 1, (strike,)) == [EXIT_STOPPED]
    write_coco(tmp_path / "other", 24, seed=5)
    write_coco(tmp_path / "other", 5, "val", seed=1)
    save_backbone(tmp_path / "narrow", layer_scale_init_value=0.25)
    cases = {
        "another dataset": {"data__path": tmp_path / "other"},
        "other classes": {"data__labels": '["plate"]'},
        "another backbone": {"model__backbone": tmp_path / "narrow"},
    }
    for message, keys in cases.items():
        keys = {**keys, "run__resume": "auto", "run__allow_changes": True}
        assert lives.live(short_run(whole, "run", **keys)) == [2]
        assert f"was trained with {message}" in lives.outputs[-1]
    lives.finish(short_run(whole, "run", run__resume="auto"))
    assert numbers(run) == numbers(whole / "whole")


@pytest.mark.parametrize("damage", ["flipped byte", "missing manifest"])
def test_damaged_checkpoint_is_named_and_training_goes_on_from_the_one_before(
    whole, run, lives, damage
):
    # When the third checkpoint is on disk and named the last; the links before: 5, 6, and 6 as the best.
    strike = Strike("link", 4, after=True, signal=signal.SIGKILL)
    assert lives.live(short_run(whole, "run"), 1, (strike,)) == [-9]
    names = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    assert names[-2:] == ["step-000006", "step-000010"]
    newest = run / "checkpoints/step-000010"
    if damage == "flipped byte":
        file = newest / "model/trainable.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        (newest / "manifest.json").unlink()
    lives.finish(short_run(whole, "run", run__resume="auto"))
    assert "step-000010 is damaged" in lives.outputs[-1]
    assert "resumed at step 6" in lives.outputs[-1]
    assert (run / "checkpoints/damaged-step-000010").is_dir()
    assert numbers(run) == numbers(whole / "whole")


def test_full_disk_ends_the_run_or_not_as_the_key_says(whole, lives, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        keys = {"run__output_dir": disk / "run", "run__resume": "auto"}
        strike = Strike("step", 7, signal=signal.SIGTERM)
        assert lives.live(short_run(whole, **keys), 1, (strike,)) == [EXIT_STOPPED]
        free = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(b"\0" * (free - 1_000_000))
        assert lives.live(short_run(whole, **keys), 2) == [2, 2]
        output = lives.outputs[-1]
        assert "the checkpoint of step 10 could not be written" in output
        assert "(step-000007 is intact): it takes" in output
        assert "Traceback" not in output
        keys["train__on_failed_save"] = "continue"
        assert lives.live(short_run(whole, **keys)) == [2]
        assert "warning: the checkpoint of step 10" in lives.outputs[-1]
        assert "the checkpoint of step 12 could not be written" in lives.outputs[-1]
        assert find_defect(disk / "run/checkpoints/last") is None
        with contextlib.suppress(OSError), (disk / "ballast").open("ab") as file:
            file.write(b"\0" * shutil.disk_usage(disk).free)  # not a byte is left, for logs either
        assert lives.live(short_run(whole, **keys)) == [2]
        assert "Traceback" not in lives.outputs[-1]
        (disk / "ballast").unlink()
        lives.finish(short_run(whole, **keys))
        losses, ids, evaluations = numbers(disk / "run")
        wanted = numbers(whole / "whole")
        assert losses == pytest.approx(wanted[0], rel=1e-5)
        assert ids == wanted[1]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
