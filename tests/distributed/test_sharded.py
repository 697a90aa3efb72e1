"""Weights in parts (train.parallel fsdp2) train as DDP does, and their checkpoints and exports are DDP's."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import tools.evaluate
from builders import TINY_HEAD, VARIANTS, launch, tiny_run
from errors import UserError
from lives import Strike
from run.log import DONE
from runs import ids, losses, norms
from settings.checks import check_config
from settings.keys import Config, DataConfig, ModelConfig, TrainConfig

CASES = ["detr dinov3_vit none", "deformable_detr convnext stages:2"]
MORE_CASES = [
    *VARIANTS,
    *("deformable_detr resnet none", "deformable_detr swin none", "deformable_detr pvt_v2 none"),
    *("deformable_detr vitdet none", "mask2former convnext none", "maskformer hgnet_v2 stages:2"),
    "deformable_detr dinov2_with_registers stages:2",
]
"""What a run of two processes is too long for `make test` with"""


def steps_by_both(folder, processes, micros, cases):
    """How steps with parts differ from DDP's, by case and images per pass."""
    arguments = [str(folder), micros, *cases]
    result = launch(arguments, processes, script="tests/distributed/sharded_worker.py")
    assert result.returncode == 0, result.stderr
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def assert_equal_steps(told, processes):
    for case, values in told.items():
        for name in ("loss", "norm", "weights", "moments", "average", "scores"):
            assert values[name] < 1e-10, (case, name)  # in fp64
        for held in values["held"]:  # one row more of each tensor at most, none of them wide
            assert values["all"] / processes <= held < 1.1 * values["all"] / processes + 200, case


def test_steps_are_those_of_ddp_and_each_process_holds_its_part(tmp_path):
    told = steps_by_both(tmp_path, 2, "1", CASES)
    assert len(told) == len(CASES)
    assert_equal_steps(told, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "micros"), [(2, "2,1"), (4, "1")])
def test_steps_of_every_head_are_those_of_ddp(tmp_path, processes, micros):
    cases = [*CASES, *MORE_CASES]
    told = steps_by_both(tmp_path, processes, micros, cases)
    assert len(told) == len(micros.split(",")) * len(cases)
    assert_equal_steps(told, processes)


def run_of(folder, name, parallel, **keys):
    """Four steps of a detector that trains whole, with dropout, flips and an average; saved after two and four."""
    values = {
        "run__output_dir": folder / name,
        "model__freeze": "none",
        "model__head_args": json.dumps({**TINY_HEAD["deformable_detr"], "dropout": 0.1}),
        "data__augment": '[{"HorizontalFlip": {"p": 0.5}}]',
        "optim__schedule": "constant",
        "train__steps": 4,
        "train__parallel": parallel,
        "train__micro_batch_size": 1,
        "train__checkpoint_every": 2,
        "train__ema_decay": 0.9,
        "eval__batch_size": 2,  # one batch more for rank 0
    }
    return tiny_run(folder, **{**values, **keys})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, lives):
    """Runs of two processes: `ddp`, and `fsdp2`."""
    folder = tmp_path_factory.mktemp("sharded")
    for parallel in ("ddp", "fsdp2"):
        lives.finish(run_of(folder, parallel, parallel), 2)
    return folder


def tensors_of(run, step):
    """Every tensor of a checkpoint but random states, which are of the ranks that there were."""
    checkpoint = run / "checkpoints" / f"step-{step:06d}"
    files = {f.relative_to(checkpoint): load_file(f) for f in checkpoint.rglob("*.safetensors")}
    return {
        f"{file}: {name}": tensor
        for file, tensors in files.items()
        for name, tensor in tensors.items()
        if file.name != "rng.safetensors"
    }


def assert_same_tensors(run, other, step):
    own, others = tensors_of(run, step), tensors_of(other, step)
    assert own.keys() == others.keys()
    assert len(own) > 100
    for name, tensor in own.items():
        assert tensor.equal(others[name]), name


def assert_near(run, other, steps):
    assert losses(run)[-steps:] == pytest.approx(losses(other)[-steps:], rel=1e-5)
    assert norms(run)[-steps:] == pytest.approx(norms(other)[-steps:], rel=1e-4)
    assert ids(run)[-steps:] == ids(other)[-steps:]


def test_run_is_that_of_ddp(folder):
    assert_near(folder / "fsdp2", folder / "ddp", 4)
    own, others = (tensors_of(folder / name, 4) for name in ("fsdp2", "ddp"))
    assert own.keys() == others.keys()
    for part in ("trainable", "average", "exp_avg/"):
        one, other = (
            torch.cat(
                [tensor.double().flatten() for name, tensor in all_of.items() if part in name]
            )
            for all_of in (own, others)
        )
        assert (one - other).norm() < 1e-5 * other.norm(), part
    files = [
        sorted(p.relative_to(folder / name) for p in (folder / name).rglob("*") if p.is_file())
        for name in ("fsdp2", "ddp")
    ]
    assert files[0] == files[1]


def test_killed_run_goes_on_to_the_same_bits(folder, lives):
    killed = folder / "killed"
    arguments = run_of(folder, "killed", "fsdp2", run__resume="auto")
    for strike in (Strike("manifest", 1), Strike("step", 4, rank=1)):
        assert any(lives.live(arguments, 2, (strike,)))
    lives.finish(arguments, 2)
    assert losses(killed) == losses(folder / "fsdp2")
    assert norms(killed) == norms(folder / "fsdp2")
    assert_same_tensors(killed, folder / "fsdp2", 4)
    export = "export/model.safetensors"
    assert (killed / export).read_bytes() == (folder / "fsdp2" / export).read_bytes()


@pytest.mark.parametrize(
    ("before", "parallel", "processes"),
    [
        ("ddp", "fsdp2", 2),
        ("fsdp2", "ddp", 1),
        pytest.param("ddp", "fsdp2", 4, marks=pytest.mark.slow),
        pytest.param("fsdp2", "fsdp2", 4, marks=pytest.mark.slow),
    ],
)
def test_checkpoint_is_anyones(folder, lives, before, parallel, processes):
    """A branch saves what it has loaded before its first step."""
    name = f"{before} to {parallel} on {processes}"
    start = folder / before / "checkpoints/step-000002"
    lives.finish(run_of(folder, name, parallel, run__resume=start), processes)
    assert_same_tensors(folder / name, folder / before, 2)
    assert_near(folder / name, folder / before, 2)


def test_export_finds_what_was_evaluated(folder):
    run = folder / "fsdp2"
    arguments = ["--model", str(run / "export"), "--config", str(run / "config.yaml")]
    again = tools.evaluate.main(arguments)
    logged = json.loads((run / "eval/step-000004/metrics.json").read_text())
    for name in ("AP", "AP50", "AR_100"):
        assert again[name] == pytest.approx(logged[name], abs=1e-4)
    average = load_file(run / "checkpoints/step-000004/model/average.safetensors")
    exported = load_file(run / "export/model.safetensors")
    assert sum(name in exported and exported[name].equal(t) for name, t in average.items()) > 50


def test_evaluation_that_came_to_nothing_is_made_anew(folder, lives):
    again = folder / "again"
    shutil.copytree(folder / "fsdp2", again, symlinks=True)
    shutil.rmtree(again / "eval")
    (again / DONE).unlink(missing_ok=True)
    lives.finish(run_of(folder, "again", "fsdp2", run__resume="auto"), 2)
    assert "was made anew" in (again / "train.log").read_text()
    wanted, found = (
        json.loads((run / "eval/step-000004/metrics.json").read_text())
        for run in (folder / "fsdp2", again)
    )
    assert found["AP"] == wanted["AP"]


@pytest.mark.slow
def test_bf16_and_profile(folder, lives):
    for parallel in ("ddp", "fsdp2"):
        keys = {"train__precision": "bf16", "run__profile": 1, "train__steps": 6}
        lives.finish(run_of(folder, f"bf16 {parallel}", parallel, **keys), 2)
    own, other = (losses(folder / f"bf16 {parallel}") for parallel in ("fsdp2", "ddp"))
    assert own == pytest.approx(other, rel=2e-2)
    assert own[:1] == pytest.approx(other[:1], rel=1e-5)
    assert "backbone" in (folder / "bf16 fsdp2/profile/summary.txt").read_text()


def scales(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss_scale"] for row in rows if "train/loss_scale" in row]


FP16 = {
    "train__precision": "fp16",
    "train__loss_scale_start": 2.0**20,
    "train__loss_scale_growth_steps": 1,
    "model__head": "detr",
    "model__head_args": json.dumps({**TINY_HEAD["detr"], "dropout": 0.1}),
}
"""The first step overflows and is made again with less; then the scale grows until the next one does"""
ROUNDING = 2e-3
"""Of a gradient in fp16, as between passes of different sizes (docs/exactness.md)"""


@pytest.fixture(scope="module")
def fp16(folder, lives):
    """Runs of two processes in fp16, by both."""
    for parallel in ("ddp", "fsdp2"):
        lives.finish(run_of(folder, f"fp16 {parallel}", parallel, **FP16), 2)
    return folder


@pytest.mark.slow
def test_fp16_is_that_of_ddp(fp16):
    """Attempts too: an overflow that one process alone has in its part is one of all."""
    own, other = (fp16 / f"fp16 {parallel}" for parallel in ("fsdp2", "ddp"))
    assert scales(own) == scales(other)
    assert scales(own)[0] < FP16["train__loss_scale_start"]
    overflows = [
        [
            line.partition("step ")[2]
            for line in (run / "train.log").read_text().splitlines()
            if "overflow" in line
        ]
        for run in (own, other)
    ]
    assert overflows[0] == overflows[1] != []
    assert losses(own) == pytest.approx(losses(other), rel=ROUNDING)
    assert norms(own)[:2] == pytest.approx(norms(other)[:2], rel=ROUNDING)
    assert losses(own)[:1] == pytest.approx(losses(other)[:1], rel=1e-5)
    states = [
        json.loads((run / "checkpoints/last/state/state.json").read_text())["scaler"]
        for run in (own, other)
    ]
    assert states[0] == states[1]


@pytest.mark.slow
def test_fp16_killed_goes_on_to_the_same_bits_and_scale(fp16, lives):
    killed = fp16 / "fp16 killed"
    arguments = run_of(fp16, "fp16 killed", "fsdp2", run__resume="auto", **FP16)
    assert any(lives.live(arguments, 2, (Strike("step", 4, rank=1),)))
    lives.finish(arguments, 2)
    assert losses(killed) == losses(fp16 / "fp16 fsdp2")
    assert scales(killed) == scales(fp16 / "fp16 fsdp2")
    assert_same_tensors(killed, fp16 / "fp16 fsdp2", 4)


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ({"freeze": "all"}, {}, "model.freeze all: nothing of the backbone trains"),
        ({}, {"micro_batch_size": "auto"}, "micro_batch_size auto"),
    ],
)
def test_what_cannot_be_in_parts_is_refused(model, train, message):
    cfg = Config(
        data=DataConfig(source="synthetic"),
        model=ModelConfig(**{"freeze": "none", **model}),
        train=TrainConfig(steps=5000, parallel="fsdp2", **train),
    )
    with pytest.raises(UserError, match=f"train.parallel fsdp2.*{message}") as caught:
        check_config(cfg, 2)
    assert "\n" not in str(caught.value)
