"""That the device that is not there refuses and waits like one that is."""

import json

import pytest

from builders import launch


@pytest.fixture(scope="module")
def found():
    result = launch([], script="tests/device/probes.py")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


REFUSED = {
    "adding_to_a_tensor_of_the_host": "same device",
    "joining_with_a_number_of_the_host": "expected all tensors on fake, found one on cpu",
    "reading_as_an_array": "numpy",
    "drawing_by_a_generator_of_the_host": "expected a fake generator",
    "changing_pinned_memory_too_early": "changed while it was being copied",
}
WAITS = {
    "multiplying_by_a_number_of_the_host": [],
    "copying_pinned_memory": [],
    "copying_other_memory": ["a copy of memory that is not pinned"],
    "copying_and_waiting": ["a copy"],
    "making_a_tensor_of_numbers": ["a copy"],
    "reading_a_number": ["_local_scalar_dense"],
    "deciding": ["_local_scalar_dense"],
    "reading_as_a_list": ["a copy"],
    "finding_what_is_not_zero": ["nonzero"],
    "choosing_by_a_mask": ["nonzero"],
    "writing_values_at_a_mask": ["a mask as an index"],
    "writing_a_number_at_a_mask": [],
    "choosing_by_an_index_of_the_host": ["a copy"],
    "writing_at_an_index_of_the_host": ["an index on the CPU"],
    "choosing_by_an_index_of_the_device": [],
    "writing_a_number_at_indices": ["a number into chosen places"],
    "writing_a_number_at_a_place": ["a number into chosen places"],
    "writing_a_number_into_a_slice": [],
    "gradient_of_a_product": ["_local_scalar_dense"],
    "values_before_and_after_the_wait": ["synchronize"],
    "a_step": ["a copy"] * 2,  # of weight and bias, when the layer moves
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(found, what):
    assert REFUSED[what] in found[what]


@pytest.mark.parametrize("what", WAITS)
def test_waits(found, what):
    assert found[what] == WAITS[what]


def test_every_probe_is_looked_at(found):
    assert set(found) == {*REFUSED, *WAITS}
