"""Whole runs on a device that is not there: nothing lies on the wrong one, and each wait of a step is known."""

import json

import pytest

from builders import launch

VARIANTS = ("detr", "deformable_detr_two_stage", "rt_detr_v2", "mask2former")
CRITERION = "model/losses/set_criterion.py:SetCriterion"
PUT = {
    "waiting": [
        (f"{CRITERION}.class_loss", "if self.focal:", "logits.sum().item()"),
        (f"{CRITERION}.cost", "c = self.config", "logits[torch.tensor([0])]"),
    ],
    "mixed": [(f"{CRITERION}.cost", "c = self.config", "logits + torch.ones(1)")],
    "array": [(f"{CRITERION}.cost", "c = self.config", "logits.numpy()")],
}
"""Faults by name: lines that are put before a line of a function"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [(name, "fake", name, []) for name in VARIANTS]
    runs += [(f"{name} cpu", "cpu", name, []) for name in VARIANTS]
    for name, lines in PUT.items():
        changes = [(place, line, f"{fault}\n    {line}") for place, line, fault in lines]
        runs.append((name, "fake", "detr", changes))
    arguments = [str(folder), json.dumps(runs)]
    result = launch(arguments, script="tests/device/worker.py")
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_is_the_same_as_on_the_cpu(found, variant):
    ours, theirs = found[variant]["loss"], found[f"{variant} cpu"]["loss"]
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_faults_in_a_step_are_seen(found):
    more = found["waiting"]["waits"].keys() - found["detr"]["waits"].keys()
    assert more == {
        "model/losses/set_criterion.py:class_loss: _local_scalar_dense",
        "model/losses/set_criterion.py:cost: a copy",
    }
    assert "same device" in found["mixed"]["error"]
    assert "numpy" in found["array"]["error"]
