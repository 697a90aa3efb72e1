"""Whole runs on a device that is not there: nothing lies on the wrong one, and each wait of a step is known."""

import json
from collections import Counter

import pytest

from builders import launch

IN_A_STEP = {
    "training/counts.py:agree: a copy": 1,  # the counts of all ranks
    "train_accelerate.py:take_step: _local_scalar_dense": 1,  # whether the gradient is finite
    "devices.py:wait_for: synchronize": 1,  # a checkpoint is made before or after each
}
IN_A_LOGGED_STEP = {
    "training/meter.py:values: a copy": 1,
    "training/meter.py:values: _local_scalar_dense": 1,
}
MATCHES = "model/losses/matching.py:match: a copy"
DEFORMABLE = "transformers/modeling_deformable_detr.py:forward"
IN_A_MICRO_BATCH = {
    "detr": {
        MATCHES: 1,
        "transformers/masking_utils.py:_ignore_bidirectional_mask_sdpa: _local_scalar_dense": 2,
        "transformers/modeling_detr.py:forward: _local_scalar_dense": 1,
    },
    "deformable_detr_two_stage": {
        MATCHES: 2,  # of the proposals, then of the decoder layers
        f"{DEFORMABLE}: a copy": 1,
        f"{DEFORMABLE}: _local_scalar_dense": 1,
    },
    "d_fine": {
        MATCHES: 1,
        "transformers/import_utils.py:torch_compilable_check: _local_scalar_dense": 2,
        "transformers/modeling_d_fine.py:forward: _local_scalar_dense": 1,
        "transformers/modeling_d_fine.py:forward: a number into chosen places": 6,
    },
    "mask2former": {
        MATCHES: 1,
        "transformers/modeling_mask2former.py:forward: a copy": 2,
        "transformers/modeling_mask2former.py:forward: _local_scalar_dense": 1,
    },
}
"""How often each line waits, by variant of a head; what transformers has its tiny layers do is not ours to change"""
ONCE = {
    "model/normalization.py:_per_channel: a copy",
    "model/losses/distribution.py:_values: a copy",
}
"""Constants that stay on the device; in a process that had them before there are none"""
STEPS, MICRO_BATCHES = 2, 2
CRITERION = "model/losses/set_criterion.py:SetCriterion"
PUT = {
    "waiting": [
        (f"{CRITERION}.class_loss", "if self.focal:", "logits.sum().item()"),
        (f"{CRITERION}.cost", "c = self.config", "logits[torch.tensor([0])]"),
    ],
    "not synchronised": [("training/state.py:Snapshot.take", "wait_for(device)", "continue")],
    "mixed": [(f"{CRITERION}.cost", "c = self.config", "logits + torch.ones(1)")],
    "array": [(f"{CRITERION}.cost", "c = self.config", "logits.numpy()")],
}
"""Faults by name: lines that are put before a line of a function"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [(name, "fake", name, []) for name in IN_A_MICRO_BATCH]
    runs += [(f"{name} cpu", "cpu", name, []) for name in IN_A_MICRO_BATCH]
    for name, lines in PUT.items():
        changes = [(place, line, f"{fault}\n    {line}") for place, line, fault in lines]
        runs.append((name, "fake", "detr", changes))
    arguments = [str(folder), json.dumps(runs)]
    result = launch(arguments, script="tests/device/worker.py")
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("variant", IN_A_MICRO_BATCH)
def test_a_run_is_the_same_as_on_the_cpu(found, variant):
    ours, theirs = found[variant]["loss"], found[f"{variant} cpu"]["loss"]
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("variant", IN_A_MICRO_BATCH)
def test_each_line_waits_as_often_as_is_known(found, variant):
    known = Counter(IN_A_LOGGED_STEP)
    for _ in range(STEPS):
        known.update(IN_A_STEP)
        for _ in range(MICRO_BATCHES):
            known.update(IN_A_MICRO_BATCH[variant])
    waits = {line: n for line, n in found[variant]["waits"].items() if line not in ONCE}
    assert waits == known


def test_faults_in_a_step_are_seen(found):
    more = found["waiting"]["waits"].keys() - found["detr"]["waits"].keys()
    assert more == {
        "model/losses/set_criterion.py:class_loss: _local_scalar_dense",
        "model/losses/set_criterion.py:cost: a copy",
    }
    assert "is not finite" in found["not synchronised"]["error"]
    assert "same device" in found["mixed"]["error"]
    assert "numpy" in found["array"]["error"]
