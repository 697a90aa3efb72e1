import itertools
import json
import math
import os

import pytest
import torch
from accelerate.state import AcceleratorState

import tools.evaluate
import tools.predict
import train_accelerate
from builders import TINY_HEAD, VARIANTS, metrics_lines, tiny_run
from lives import Strike
from model.losses.set_criterion import SetCriterion
from runs import ids, losses, norms, train

MIXED_HEADS = ["detr", "deformable_detr_two_stage"]
TOO_HIGH = 2.0**20
"""Loss scale at which their gradients overflow"""

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture
def dtypes(monkeypatch):
    """Of all logits that have reached the criterion; first those of the small step that looks for what trains."""
    seen = []
    original = SetCriterion.__call__

    def call(self, outputs, *rest):
        seen.append(outputs.logits.dtype)
        return original(self, outputs, *rest)

    monkeypatch.setattr(SetCriterion, "__call__", call)
    return seen


def test_bf16_trains_and_is_evaluated_in_fp32(tmp_path, dtypes):
    train(tiny_run(tmp_path, train__precision="bf16"))
    assert dtypes == [torch.float32, *[torch.bfloat16] * 3]
    run = tmp_path / "run"
    assert "train/loss_scale" not in metrics_lines(run)[0]
    assert all(map(math.isfinite, losses(run)))
    arguments = ["--model", str(run / "export"), "--config", str(run / "config.yaml")]
    tools.evaluate.main([*arguments, "--out", str(tmp_path / "again")])
    logged = json.loads((run / "eval/step-000003/predictions.json").read_text())
    again = json.loads((tmp_path / "again/predictions.json").read_text())
    assert [p["score"] for p in logged] == pytest.approx([p["score"] for p in again], abs=1e-6)


def test_averaged_weights_are_evaluated_exported_and_resumed(tmp_path):
    from safetensors.torch import load_file

    keys = {"train__ema_decay": 0.5, "optim__schedule": "constant", "train__checkpoint_every": 2}
    train(tiny_run(tmp_path, train__steps=4, run__output_dir=tmp_path / "whole", **keys))
    checkpoints = tmp_path / "whole/checkpoints"
    weights = [
        load_file(checkpoints / f"step-00000{s}/model/trainable.safetensors") for s in (2, 4)
    ]
    average = load_file(checkpoints / "step-000004/model/average.safetensors")
    export = load_file(tmp_path / "whole/export/model.safetensors")
    name = "model.level_embed"
    assert not torch.equal(average[name], weights[1][name])
    assert torch.equal(export[name], average[name])
    arguments = [
        "--model",
        str(tmp_path / "whole/export"),
        "--config",
        str(tmp_path / "whole/config.yaml"),
    ]
    logged = json.loads((tmp_path / "whole/eval/step-000004/metrics.json").read_text())
    assert tools.evaluate.main(arguments)["AR_100"] == pytest.approx(logged["AR_100"], abs=1e-4)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(tiny_run(tmp_path, train__steps=2, **keys))
    train(tiny_run(tmp_path, train__steps=4, run__resume="auto", **keys))
    resumed = load_file(tmp_path / "run/checkpoints/step-000004/model/average.safetensors")
    assert all(torch.equal(resumed[n], t) for n, t in average.items())


def test_fp32_is_no_tf32_and_kernels_are_deterministic_if_asked(tmp_path, monkeypatch):
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    try:
        train(tiny_run(tmp_path, run__deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


def mixed_run(tmp_path, head, name, **keys):
    """Four images a step, one at a time, with dropout."""
    arguments = {**TINY_HEAD[VARIANTS[head][0]], **VARIANTS[head][1], "dropout": 0.1}
    values = {
        "run__output_dir": tmp_path / name,
        "model__head_args": json.dumps(arguments),
        "train__precision": "fp16",
        "train__micro_batch_size": 1,
        "train__ema_decay": 0.9,
    }
    return tiny_run(tmp_path, head, **{**values, **keys})


def scales(run):
    return [row["train/loss_scale"] for row in metrics_lines(run) if "train/loss_scale" in row]


def end_state(run):
    return json.loads((run / "checkpoints/last/state/state.json").read_text())


def assert_same_end(one, other):
    """Bit by bit: weights, average, moments; and every loss on the way."""
    assert losses(one) == losses(other)
    assert norms(one) == norms(other)
    assert ids(one) == ids(other)
    assert scales(one) == scales(other)
    for name in ("model/trainable", "model/average", "state/optimizer"):
        file = f"checkpoints/last/{name}.safetensors"
        assert (one / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.parametrize("head", MIXED_HEADS)
def test_an_overflow_in_fp16_leaves_no_trace(tmp_path, monkeypatch, dtypes, head):
    """Scales that are far too high at each step, against those that fit: dozens of attempts more, and the same run."""
    original, following = train_accelerate.log_step, itertools.repeat(TOO_HIGH)

    def log_step(run, *rest):
        original(run, *rest)
        run.accelerator.scaler.update(next(following))

    monkeypatch.setattr(train_accelerate, "log_step", log_step)
    train(mixed_run(tmp_path, head, "high", train__loss_scale_start=TOO_HIGH))
    high, fitting = len(dtypes), scales(tmp_path / "high")
    assert all(1 <= scale < TOO_HIGH / 8 for scale in fitting)
    following = iter([*fitting[1:], 1.0])
    train(mixed_run(tmp_path, head, "fitting", train__loss_scale_start=fitting[0]))
    assert set(dtypes[1:high]) == {torch.float16}
    more_attempts = sum(math.log2(TOO_HIGH / scale) for scale in fitting)
    assert high - (len(dtypes) - high) == 4 * more_attempts  # of four micro-batches
    assert_same_end(tmp_path / "high", tmp_path / "fitting")
    text = (tmp_path / "high/train.log").read_text()
    assert f"at a loss scale of {TOO_HIGH:g}; taken with {fitting[0]:g}" in text
    assert text.count("fp16 on a CPU is slow") == 1
    assert "skipped" not in text
    rows = [row for row in metrics_lines(tmp_path / "high") if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["train/lr"] for row in rows] == pytest.approx([1e-4, 1e-4, 5e-5])
    state = end_state(tmp_path / "high")
    assert (state["step"], state["samples_seen"]) == (3, 12)


@pytest.mark.parametrize("head", MIXED_HEADS)
def test_killed_while_the_scale_grows_and_on_two_processes(tmp_path, lives, head):
    """Scales and images of one process, and after the kill of one rank bit for bit the run that was not killed."""
    keys = {"train__steps": 4, "train__checkpoint_every": 1, "optim__lr": 1e-5}
    keys |= {"train__loss_scale_start": 2.0**18, "train__loss_scale_growth_steps": 3}
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    for run, world in ((one, 1), (two, 2)):
        lives.finish(mixed_run(tmp_path, head, run.name, **keys), world)
    arguments = mixed_run(tmp_path, head, killed.name, run__resume="auto", **keys)
    assert -9 in lives.live(arguments, 2, (Strike("log", 3, rank=1),)), lives.outputs[-1]
    kept = end_state(killed)
    assert kept["step"] in (1, 2)
    assert kept["scaler"]["_growth_tracker"] > 0
    lives.finish(arguments, 2)
    assert f"resumed at step {kept['step']}" in (killed / "train.log").read_text()
    assert_same_end(killed, two)
    assert end_state(killed)["scaler"] == end_state(two)["scaler"] == end_state(one)["scaler"]
    assert any(later == 2 * scale for scale, later in itertools.pairwise(scales(two)))
    assert scales(one) == scales(two)
    assert ids(one) == ids(two)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    assert norms(two) == pytest.approx(norms(one), rel=1e-3)
