import json
import shutil
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from builders import launch
from run.build import start_processes
from tools.selftest import lives, machine, snapshot, steps
from tools.selftest.report import Line, Report, Verdict
from training.checkpoint import Checkpoints
from training.state import Snapshot

HEAD = "deformable_detr"
WORKER = str(Path(__file__).with_name("selftest_worker.py"))
HOLDS, BROKEN = Verdict.HOLDS.value, Verdict.BROKEN.value


@pytest.fixture(scope="module")
def on_two(tmp_path_factory):
    """Verdicts of two processes, by way in which the code is broken."""
    file = tmp_path_factory.mktemp("selftest") / "found.json"
    done = launch([str(file)], processes=2, script=WORKER)
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())


def test_a_step_holds_on_two_processes(on_two):
    assert set(on_two["nothing"].values()) == {HOLDS}
    assert len(on_two["nothing"]) == 5


@pytest.mark.parametrize(
    ("way", "lines"),
    [
        ("counts", {"micro-batches, fp32", "processes, fp32"}),
        ("noise", {"repeatable kernels"}),
        ("average", {"processes, fp32"}),
        ("order", {"processes, fp32", "same images"}),
        ("no reduction", {"processes, fp32", "same gradient"}),
    ],
)
def test_each_broken_promise_is_seen(on_two, way, lines):
    assert {name for name, verdict in on_two[way].items() if verdict == BROKEN} == lines


@pytest.fixture
def bench(fresh_accelerator):
    start_processes(steps.configured(HEAD, 1))
    ((_, bench),) = steps.benches("no", [HEAD], 1)
    return bench


def test_a_torn_snapshot_is_seen(bench, tmp_path):
    (line,) = snapshot.snapshot_under_load(bench, tmp_path / "whole")
    assert line.verdict == Verdict.HOLDS
    take = Snapshot.take

    def late(self, files):
        time.sleep(0.5)
        take(self, files)

    with patch.object(Snapshot, "take", late):
        (line,) = snapshot.snapshot_under_load(bench, tmp_path / "late")
        assert line.verdict == Verdict.HOLDS
        with patch.object(Checkpoints, "wait_for_copy", lambda self: None):
            (line,) = snapshot.snapshot_under_load(bench, tmp_path / "torn")
    assert line.verdict == Verdict.BROKEN
    assert "were changed before they were copied" in line.found


def test_too_little_shared_memory_is_seen(bench):
    (line,) = machine.data_workers(bench)
    assert line.verdict == Verdict.HOLDS
    usage = shutil.disk_usage("/")
    with patch(
        "data.feed.worker_memory.shutil.disk_usage", lambda _: usage._replace(free=3_000_000)
    ):
        (line,) = machine.data_workers(bench)
    assert line.verdict == Verdict.BROKEN
    assert "has 3.0 MB free" in line.found


def test_the_report_is_for_people_and_for_programs():
    lines = [
        Line.of("one", True, "1 of 1", "nothing"),
        Line.of("two", False, "0 of 1", "set this"),
        Line("three", Verdict.UNKNOWN, "no GPU"),
    ]
    report = Report({"python": "3"}, lines, 1.5)
    assert not report.holds
    assert report.summary() == "1 hold, 1 do not hold, 1 cannot be told here; 2 s"
    assert json.loads(report.json())["lines"][1] == {
        **{"name": "two", "verdict": "does not hold", "found": "0 of 1", "advice": "set this"}
    }
    assert str(lines[1]).splitlines()[1].strip() == "-> set this"
    assert "cannot be told here: no GPU" in str(lines[2])


def test_a_question_that_fails_is_an_answer_and_the_others_are_asked(tmp_path):
    code = (
        "import sys, tools.selftest.__main__ as t\n"
        "def fails(accelerator): raise RuntimeError('NCCL error\\nmore')\n"
        "t.all_reduce, t.BOUNDS = fails, {}\n"
        "sys.exit(t.main(sys.argv[1:]))\n"
    )
    script = tmp_path / "failing.py"
    script.write_text(code)
    done = launch(["--quick", "--json", str(tmp_path / "report.json")], script=str(script))
    assert done.returncode == 1, done.stderr
    assert "FAIL all-reduce             RuntimeError: NCCL error" in done.stdout
    assert "ok   snapshot under load" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert [line["verdict"] for line in report["lines"]] == [BROKEN, HOLDS, HOLDS]
    assert not report["holds"]


def test_what_cannot_be_written_is_told_before_the_test(tmp_path):
    done = launch(
        ["--json", str(tmp_path / "no/report.json")], script="tools.selftest", module=True
    )
    assert done.returncode == 2
    assert "no/report.json" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_all_of_it_on_two_processes(tmp_path):
    done = launch(
        ["--json", str(tmp_path / "report.json")], 2, script="tools.selftest", module=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["holds"]
    assert {line["name"] for line in report["lines"] if line["verdict"] == HOLDS} == {
        *(
            f"{what}, {precision}"
            for what in ("micro-batches", "processes")
            for precision in steps.NAMES.values()
        ),
        *("same images", "same gradient", "repeatable kernels", "data workers"),
        *("snapshot under load", "kill and resume", "export against log"),
    }
    assert [line["name"] for line in report["lines"] if line["verdict"] == "measured"] == [
        "all-reduce",
        "where time goes",
    ]
    assert "ignored" not in done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    lives.undisturbed(folder)
    return folder


@pytest.mark.slow
def test_a_resume_that_is_not_exact_is_seen(whole, tmp_path):
    start = lives.start

    def another_rate(*arguments):
        return start(
            *arguments,
            *(
                ["--optim.lr", "0.002", "--run.allow_changes", "true"]
                if "--run.resume" in arguments
                else []
            ),
        )

    with patch.object(lives, "start", another_rate):
        line = lives.kill_and_resume(tmp_path / "run", whole)
    assert line.verdict == Verdict.BROKEN
    assert "differ in" in line.found


@pytest.mark.slow
def test_an_export_that_is_not_what_was_measured_is_seen(whole):
    assert lives.export_as_logged(whole).verdict == Verdict.HOLDS
    file = whole / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [{**row, **({"eval/AP": 0.9} if "eval/AP" in row else {})} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert lives.export_as_logged(whole).verdict == Verdict.BROKEN


@pytest.mark.slow
def test_a_child_that_fails_says_why():
    with pytest.raises(lives.ChildError, match=r"status 2: .*train.steps"):
        lives.finish(lives.start("--train.steps", "-1"))
