"""The submission scripts on a real SLURM cluster of two nodes, with one CPU process on each."""

import json
import shlex
import signal
import sys
from pathlib import Path

import psutil
import pytest

from builders import ROOT, metrics_lines, tiny_run
from large import write_large
from tests.slurm.cluster import Cluster, missing
from tools import check_data, check_ranges

pytestmark = pytest.mark.slow

TWO_NODES = ["--nodes", "2", "--cpus-per-task", "1"]
STEPS, CHECKPOINT_EVERY = 200, 50
"""After the first checkpoint there is still time to interrupt the run"""
START_S, RUN_S = 180.0, 300.0
"""Time-outs: until the first checkpoint, and until a job's end"""


@pytest.fixture(scope="module")
def cluster():
    if reason := missing():
        pytest.skip(reason)
    with Cluster(nodes=2, gpus=1) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _cancel_what_a_failed_test_left(cluster):
    yield
    cluster.command("scancel", "--user", "root")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the dataset, the backbone and all runs of these tests lie."""
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="module")
def reference(cluster, folder):
    """A run that nothing interrupted."""
    job = submit_train(cluster, folder, "reference")
    finish(cluster, job, folder / "reference", restarts=0)
    return folder / "reference"


def submit_train(cluster, folder, name, *options, environment=None, **keys):
    """Submit train.sbatch with the tiny run; options are sbatch's."""
    values = {"train__steps": STEPS, "train__checkpoint_every": CHECKPOINT_EVERY, **keys}
    arguments = tiny_run(folder, **values)
    command = [*TWO_NODES, *options, "slurm/train.sbatch", folder / name, *arguments]
    return cluster.submit(command, ROOT, environment)


def wait_for_checkpoint(cluster, job, run):
    cluster.until(job, (run / "checkpoints" / "last").is_symlink, START_S, "a checkpoint")


def wait_for_requeue(cluster, job, timeout_s):
    cluster.until(job, lambda: cluster.job(job)["Restarts"] == "1", timeout_s, "being requeued")


def finish(cluster, job, run, restarts):
    """Wait for the job, which has to end well after so many restarts."""
    fields = cluster.wait(job, RUN_S)
    result = fields["JobState"], fields["Restarts"], (run / "DONE").exists()
    assert result == ("COMPLETED", str(restarts), True), cluster.output(job)


def refused(cluster, job):
    """Output of a job that has to fail at once."""
    fields = cluster.wait(job, START_S)
    output = cluster.output(job)
    assert (fields["JobState"], fields["Restarts"]) == ("FAILED", "0"), output
    return output


def assert_same_training(run, reference):
    rows, expected = (
        [row for row in metrics_lines(r) if "train/loss" in row] for r in (run, reference)
    )
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for key in ("train/image_ids", "train/loss", "train/lr"):
        assert [row[key] for row in rows] == [row[key] for row in expected]
    weights = Path("checkpoints/last/model/trainable.safetensors")
    assert (run / weights).read_bytes() == (reference / weights).read_bytes()


def test_time_limit_requeues_and_goes_on_exactly(cluster, folder, reference):
    run = folder / "limit"
    job = submit_train(cluster, folder, "limit")
    wait_for_checkpoint(cluster, job, run)
    # SLURM looks at time limits every 30 s; the run would be done by then.
    workers = [worker_of(cluster, job, rank) for rank in (0, 1)]
    for worker in workers:
        worker.suspend()
    # 2 to 3 minutes are left now, and --signal asks for USR1 at 3.
    hours, minutes, _ = map(int, cluster.job(job)["RunTime"].split(":"))
    set_time_limit(cluster, job, 60 * hours + minutes + 3)
    notice = "SIGUSR1, asking the training to save and stop"
    cluster.until(job, lambda: notice in cluster.output(job), 60, "the signal")
    for worker in workers:
        worker.resume()
    wait_for_requeue(cluster, job, 60)
    set_time_limit(cluster, job, 60)
    finish(cluster, job, run, restarts=1)
    assert_same_training(run, reference)


def set_time_limit(cluster, job, minutes):
    cluster.command("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")


def test_killed_worker_requeues_and_goes_on_exactly(cluster, folder, reference):
    run = folder / "killed"
    run.mkdir()
    (run / "STOP").touch()  # of an earlier job
    job = submit_train(cluster, folder, "killed")
    wait_for_checkpoint(cluster, job, run)
    worker_of(cluster, job, rank=1).send_signal(signal.SIGKILL)
    wait_for_requeue(cluster, job, 30)
    finish(cluster, job, run, restarts=1)
    assert_same_training(run, reference)


def worker_of(cluster, job, rank):
    """The process that trains as this rank."""
    return next(
        process
        for process in cluster.processes(job)
        if "train_accelerate.py" in process.cmdline() and process.environ().get("RANK") == str(rank)
    )


def test_scancel_saves_and_does_not_requeue(cluster, folder):
    run = folder / "cancelled"
    # Data workers get the signal as well.
    job = submit_train(
        cluster, folder, "cancelled", train__checkpoint_every=10 * STEPS, data__num_workers=1
    )
    cluster.until(job, (run / "metrics.jsonl").exists, START_S, "a step")
    cluster.command("scancel", job)
    fields = cluster.wait(job, 60)
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0"), cluster.output(job)
    assert (run / "checkpoints" / "last").exists(), cluster.output(job)
    assert not (run / "DONE").exists()
    assert not (run / "STOP").exists()
    psutil.wait_procs(cluster.processes(job), timeout=10)
    assert not cluster.processes(job)


def test_lives_are_limited(cluster, folder):
    run = folder / "lives"
    job = submit_train(cluster, folder, "lives", environment={"MAX_LIVES": "1"})
    wait_for_checkpoint(cluster, job, run)
    cluster.command("scancel", "--batch", "--signal=USR1", job)
    fields = cluster.wait(job, 60)
    assert (fields["JobState"], fields["Restarts"]) == ("FAILED", "0"), cluster.output(job)
    assert not (run / "DONE").exists()


def test_separate_worlds_are_refused(cluster, folder):
    run = folder / "separate"
    launcher = Path(sys.executable).parent / "accelerate"
    # Without --multi_gpu, accelerate starts one process per node, each a world of its own.
    command = (
        f"{launcher} launch --cpu --num_machines 2 --num_processes 2 "
        "--machine_rank $SLURM_NODEID --main_process_ip node1 --main_process_port 29999 "
        f"train_accelerate.py {shlex.join(tiny_run(folder, run__output_dir=run))}"
    )
    wrapped = f"srun --kill-on-bad-exit=1 bash -c {shlex.quote(command)}"
    output = refused(cluster, cluster.submit([*TWO_NODES, "--wrap", wrapped], cwd=ROOT))
    assert "SLURM gave 2 nodes and only 1 process(es) found each other" in output, output
    assert not (run / "metrics.jsonl").exists()


def test_gpus_that_torch_does_not_see_are_refused(cluster, folder):
    run = folder / "gpus"
    run.mkdir()
    (run / "DONE").touch()  # of an earlier job; this one has to fail all the same
    output = refused(cluster, submit_train(cluster, folder, "gpus", "--gpus-per-node", "1"))
    assert "SLURM gave this node 1 GPU(s)" in output, output
    assert not (run / "metrics.jsonl").exists()


def test_debug_job_ends_with_a_result(cluster, folder):
    run = folder / "debug"
    arguments = ["--cpus-per-task", "1", "slurm/debug.sbatch", run, *tiny_run(folder)]
    finish(cluster, cluster.submit(arguments, cwd=ROOT), run, restarts=0)
    assert (run / "export" / "model.safetensors").exists()


def submit_shares(cluster, tool, *arguments):
    """The jobs of an array of two, by their number in it."""
    command = ["--array", "1-2", "--cpus-per-task", "1", "slurm/shares.sbatch", tool, *arguments]
    job = cluster.submit(command, ROOT)
    return {task: f"{job}_{task}" for task in (1, 2)}


def finish_shares(cluster, jobs):
    """Wait for jobs that have to end well; what each has printed."""
    fields = {task: cluster.wait(job, RUN_S) for task, job in jobs.items()}
    printed = {task: cluster.output(found["JobId"]) for task, found in fields.items()}
    for task, found in fields.items():
        assert found["JobState"] == "COMPLETED", printed[task]
    return printed


def kill_one(cluster, jobs, tool, made):
    """Kill the process of the second job as soon as it has made a file."""
    cluster.until(jobs[2], made, START_S, "a file")
    job = cluster.job(jobs[2])["JobId"]
    (worker,) = (
        process
        for process in cluster.processes(job)
        if f"tools.{tool}" in process.cmdline() and process.parent().name() == "slurmstepd"
    )
    worker.send_signal(signal.SIGKILL)


def test_the_jobs_of_an_array_store_features_that_a_run_finds(cluster, folder):
    arguments = tiny_run(folder, data__cache_features=2, data__cache_folder=folder / "features")
    printed = finish_shares(cluster, submit_shares(cluster, "cache_features", "--yes", *arguments))
    assert all(f"(share {task} of 2)" in text for task, text in printed.items())
    made = {f: f.stat().st_mtime_ns for f in (folder / "features").rglob("*.safetensors")}
    assert len(made) == 3
    run = folder / "with-features"
    finish(
        cluster,
        cluster.submit(["--cpus-per-task", "1", "slurm/debug.sbatch", run, *arguments], cwd=ROOT),
        run,
        restarts=0,
    )
    assert {f: f.stat().st_mtime_ns for f in (folder / "features").rglob("*.safetensors")} == made


def test_a_check_by_an_array_with_a_killed_process_is_that_of_a_pool(
    cluster, tmp_path, capsys, monkeypatch
):
    write_large(tmp_path / "data", 120)
    arguments = [*tiny_run(tmp_path), "--range-images", "5"]
    ours, theirs, report = tmp_path / "ours", tmp_path / "theirs", tmp_path / "found.json"
    assert check_data.main([*arguments, "--ranges", str(ours), "--json", str(report)]) == 0
    one, content = capsys.readouterr().out, report.read_bytes()
    jobs = submit_shares(cluster, "check_data", "--workers", 1, "--ranges", theirs, *arguments)
    kill_one(
        cluster,
        jobs,
        "check_data",
        lambda: len([f for f in theirs.glob("range-*") if int(f.name[6:12]) % 2]) >= 2,
    )
    printed = finish_shares(cluster, jobs)
    assert "shares.sbatch: life 1 was killed" in printed[2]
    assert "shares.sbatch" not in printed[1]
    assert {f.name: f.read_bytes() for f in theirs.iterdir()} == {
        f.name: f.read_bytes() for f in ours.iterdir()
    }
    monkeypatch.setattr(check_ranges, "examined", nothing_left)
    assert check_data.main([*arguments, "--ranges", str(theirs), "--json", str(report)]) == 0
    assert capsys.readouterr().out == one
    assert report.read_bytes() == content


def nothing_left(splits, ranges, *_):
    assert not ranges
    return iter(())


def test_the_self_test_holds_on_two_nodes(cluster, folder):
    report = folder / "report.json"
    command = [*TWO_NODES, "slurm/selftest.sbatch", "--json", report]
    job = cluster.submit(command, ROOT)
    fields = cluster.wait(job, RUN_S)
    assert fields["JobState"] == "COMPLETED", cluster.output(job)
    found = json.loads(report.read_text())
    assert len(found["machine"]["processes"]) == 2
    verdicts = {line["name"]: line["verdict"] for line in found["lines"]}
    assert verdicts["processes, fp32"] == verdicts["kill and resume"] == "holds"
    assert found["holds"], cluster.output(job)
