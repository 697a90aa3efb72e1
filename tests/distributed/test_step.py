"""Loss terms and gradient of one step do not depend on the world or on micro-batches."""

import pytest
from builders import TINY_HEAD, launch
from safetensors.torch import load_file

WORLDS = [(1, 1), (2, 2), (4, 1)]
"""(processes, images per micro-batch); with 4 images 1x4, 2x1 and 4x1 accumulated"""


def step(tmp_path, head, dtype, case, processes, micro):
    out = tmp_path / f"{head}-{dtype}-{case}-{processes}-{micro}.safetensors"
    arguments = [str(out), head, dtype, case, str(micro)]
    result = launch(arguments, processes, script="tests/distributed/step_worker.py")
    assert result.returncode == 0, result.stderr[-2000:]
    values = load_file(out)
    assert int(values.pop("world")) == processes
    return values


@pytest.mark.parametrize("head", TINY_HEAD)
def test_step_is_the_same_on_one_two_and_four_ranks(tmp_path, head):
    wanted = step(tmp_path, head, "float64", "uneven", 1, 4)
    for processes, micro in WORLDS:
        values = step(tmp_path, head, "float64", "uneven", processes, micro)
        assert values.keys() == wanted.keys()
        for name, value in values.items():
            scale = wanted[name].norm().clamp(min=1e-12)
            assert (value - wanted[name]).norm() / scale < 1e-10, (name, processes, micro)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["uneven", "full", "even", "empty"])
@pytest.mark.parametrize("head", TINY_HEAD)
def test_step_is_the_same_in_fp32(tmp_path, head, case):
    wanted = step(tmp_path, head, "float32", case, 1, 4)
    for processes, micro in [*WORLDS, (2, 1)]:
        values = step(tmp_path, head, "float32", case, processes, micro)
        for name, value in values.items():
            scale = wanted[name].norm().clamp(min=1e-12)
            assert (value - wanted[name]).norm() / scale < 1e-5, (name, processes, micro)
