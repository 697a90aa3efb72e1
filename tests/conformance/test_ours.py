"""What docs/conformance.md says of this repository, and that the experiments can tell when it is not so."""

import dataclasses

import pytest

from conformance import faults
from conformance.__main__ import EXPERIMENTS, main, measure
from conformance.adapters.ours import Ours
from conformance.launch import Bench, Job, Seen, of_rank
from conformance.table import table
from conformance.verdicts import Verdict, apart


class OtherSeed(Ours):
    """On two processes it is another run."""

    def command(self, job: Job, out):
        seed = job.seed + 1 if job.processes == 2 else job.seed
        return super().command(dataclasses.replace(job, seed=seed), out)


class Forgetful(Ours):
    """It begins anew where it should go on."""

    def command(self, job: Job, out):
        if job.resume:
            out, job = out / "anew", dataclasses.replace(job, resume=False)
            out.mkdir(exist_ok=True)
        return super().command(job, out)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(Ours(), tmp_path_factory.mktemp("ours"))


@pytest.fixture(autouse=True)
def _briefly(monkeypatch):
    """The storm of kills is in tests/faults, resumes with augmentation and dropout in tests/run."""
    monkeypatch.setattr(faults, "KILLS", 1)
    monkeypatch.setattr(faults, "KINDS", ({},))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_experiment_holds(bench, name):
    verdict = measure(bench, name)
    assert verdict.state == "holds", verdict.figure


@pytest.mark.slow
def test_another_seed_on_two_processes_does_not_hold(bench):
    alone = {key: done for key, done in bench.done.items() if key[0].processes == 1}
    other = Bench(OtherSeed(), bench.folder, alone)
    assert measure(other, "processes").state == "does not hold"
    assert measure(other, "schedule").state == "holds"


@pytest.mark.slow
def test_a_resume_that_begins_anew_does_not_hold(bench):
    verdict = measure(Bench(Forgetful(), bench.folder, bench.done), "resume_elsewhere")
    assert verdict.state == "does not hold"
    assert "began after step 0 of 6" in verdict.figure


@pytest.mark.slow
def test_a_command_that_does_not_run_is_not_measured(tmp_path):
    class Nothing(Ours):
        def command(self, job: Job, out):
            return ["-c", "0"]

    verdict = measure(Bench(Nothing(), tmp_path), "processes")
    assert verdict.state == "not measured"


def test_micro_batches_count_once_their_gradient_was_taken():
    image = {"kind": "images", "learning": True}
    step = {"kind": "step", "norm": 1.0, "lr": 0.1, "weights": "w"}
    events = [
        *({**image, "images": ["trial"]}, {"kind": "backward", "loss": 9.0}, {"kind": "dropped"}),
        *({**image, "images": ["a"]}, {"kind": "dropped"}, {"kind": "backward", "loss": 1.0}),
        *({**image, "images": ["looked at"], "learning": False},),
        *({**image, "images": ["b"]}, {"kind": "backward", "loss": 2.0}, step),
    ]
    (row,) = of_rank(events)
    assert row["images"] == ["a", "b"]
    assert row["loss"] == 3.0
    seen = Seen(0, "", [events, events])
    assert seen.steps[0]["images"] == ["a", "a", "b", "b"]
    assert seen.steps[0]["loss"] == 3.0


def test_table_has_promises_as_rows_and_frameworks_as_columns():
    verdicts = {"ours": {"resume": Verdict("holds", "bit-equal")}, "peer": {}}
    lines = table(verdicts, {"resume": "A resumed run"}).splitlines()
    assert lines[0] == "| Promise | ours | peer |"
    assert lines[2] == "| A resumed run (`resume`) | **holds**: bit-equal | not measured |"


def test_differences_are_relative():
    assert apart([1.0, 200.0], [1.0, 100.0]) == 0.5
    assert apart([], []) == 0


def test_unknown_peer_is_named():
    with pytest.raises(SystemExit, match="known are transformers-trainer"):
        main(["--peer", "nothing=/x"])
