"""Loss terms and gradient of one step do not depend on the world or on micro-batches."""

import pytest
from safetensors.torch import load_file

from backbones import PARTLY_FROZEN
from builders import FOUR_IMAGES, VARIANTS, launch
from weighted import WEIGHTED

CASES = [
    f"{head}-{dtype}-{boxes}"
    for head in VARIANTS
    for dtype in ("float64", "float32")
    for boxes in FOUR_IMAGES
    if dtype == "float64" or boxes == "uneven"  # rounding is seen in the hard one
]
CASES += [f"{name}-float64-uneven" for name in PARTLY_FROZEN]
MIXED = [
    f"{head}-{precision}-uneven"
    for head in ("detr", "deformable_detr_two_stage")
    for precision in ("fp16", "bf16")
]
CASES += MIXED
OF_EACH_CRITERION = [
    "detr",
    "deformable_detr_two_stage",
    "d_fine",
    "rf_detr_seg",
    "maskformer",
    "linear",
]
CASES += [f"{head}-float64-uneven{WEIGHTED}" for head in OF_EACH_CRITERION]
CASES += [f"{head}-float64-empty{WEIGHTED}" for head in ("detr", "linear")]
WORLDS = {"1x4": (1, 1), "2x2": (2, 1), "4x1": (4, 1), "2x1": (2, 2)}
"""(processes, images per micro-batch) by processes x accumulation"""
ALL_WORLDS = {"1x1": (1, 4), **WORLDS}
CLASS_TERMS = ("term/loss_ce", "term/loss_vfl")
LIMITS = {"float64": 1e-10, "float32": 1e-5, "fp16": 2**-9, "bf16": 2**-6}
"""For fp16 and bf16 four times the rounding of one number: each micro-batch rounds its gradient of each matrix"""
SAME_PASSES = 1e-6
"""For them where the images of each pass are the same: what is added up is in fp32"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """Values of every case in every world, from one launch per number of processes."""
    folder = tmp_path_factory.mktemp("steps")
    for processes in {processes for processes, _ in ALL_WORLDS.values()}:
        micros = ",".join(str(m) for other, m in ALL_WORLDS.values() if other == processes)
        own = folder / str(processes)
        own.mkdir()
        arguments = [str(own), micros, *CASES]
        result = launch(arguments, processes, script="tests/distributed/step_worker.py")
        assert result.returncode == 0, result.stderr
    found = {}
    for name, (processes, micro) in ALL_WORLDS.items():
        files = folder / str(processes) / str(micro)
        found[name] = {case: load_file(files / f"{case}.safetensors") for case in CASES}
        assert {int(v.pop("world")) for v in found[name].values()} == {processes}
    return found


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", CASES)
def test_step_equals_the_one_of_one_process_and_one_batch(steps, case, world):
    wanted, values = steps["1x1"][case], steps[world][case]
    assert values.keys() == wanted.keys()
    for name, value in values.items():
        difference, scale = (value - wanted[name]).norm(), wanted[name].norm().clamp(min=1e-12)
        assert difference / scale < LIMITS[case.split("-")[1]], name


@pytest.mark.parametrize("world", ["2x2", "4x1"])
@pytest.mark.parametrize("case", MIXED)
def test_a_mixed_step_of_the_same_passes_is_the_same_on_any_world(steps, case, world):
    wanted, values = steps["1x4"][case], steps[world][case]
    for name, value in values.items():
        difference, scale = (value - wanted[name]).norm(), wanted[name].norm().clamp(min=1e-12)
        assert difference / scale < SAME_PASSES, name


@pytest.mark.parametrize("case", MIXED)
def test_a_mixed_step_is_rounded(steps, case):
    """As its bounds are wide, it must be seen that it is not the one in fp32, and near it."""
    head, precision, boxes = case.split("-")
    value, wanted = (
        steps["1x1"][f"{head}-{p}-{boxes}"]["gradient"] for p in (precision, "float32")
    )
    rounding = LIMITS[precision] / 4
    assert rounding < (value - wanted).norm() / wanted.norm() < 0.5


@pytest.mark.parametrize("head", OF_EACH_CRITERION)
def test_weights_of_classes_change_the_terms_of_classes_alone(steps, head):
    plain, weighted = (steps["1x1"][f"{head}-float64-uneven{w}"] for w in ("", WEIGHTED))
    changed = {name for name in plain if (plain[name] - weighted[name]).norm() > 1e-12}
    assert "gradient" in changed
    of_classes = changed - {"gradient", "term/loss"}
    assert all(name.startswith(CLASS_TERMS) for name in of_classes)
    assert of_classes or head == "linear"  # whose classes are all alike at the start


def test_the_case_is_a_hard_one(steps):
    """The gradient is not zero, and uneven boxes give another one than even boxes."""
    for head in VARIANTS:
        uneven, even = (steps["1x1"][f"{head}-float64-{b}"]["gradient"] for b in ("uneven", "even"))
        assert uneven.norm() > 0.1
        assert (uneven - even).norm() > 0.1 * uneven.norm()
