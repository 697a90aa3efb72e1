import json
import math
import os

import pytest
import torch
from accelerate.state import AcceleratorState

import tools.evaluate
import tools.predict
import train_accelerate
from builders import metrics_lines, tiny_run
from errors import UserError
from runs import losses, train

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def test_bf16_trains_and_is_evaluated_in_fp32(tmp_path):
    train(tiny_run(tmp_path, train__precision="bf16"))
    run = tmp_path / "run"
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is allowed where a GPU is")
def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(UserError, match="fp16: needs a GPU"):
        train(tiny_run(tmp_path, train__precision="fp16"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_trains_on_a_gpu(tmp_path):
    train(tiny_run(tmp_path, train__precision="fp16", train__steps=20))
    assert all(map(math.isfinite, losses(tmp_path / "run")))
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fp16 needs a GPU")
def test_fp16_overflow_advances_nothing(tmp_path, monkeypatch):
    original = train_accelerate.build_run

    def with_huge_scale(cfg, accelerator):
        run = original(cfg, accelerator)
        run.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
        return run

    monkeypatch.setattr(train_accelerate, "build_run", with_huge_scale)
    train(
        tiny_run(
            tmp_path, train__precision="fp16", train__ema_decay=0.9, train__max_skipped_steps=40
        )
    )
    rows = metrics_lines(tmp_path / "run")
    assert any("train/skipped_image_ids" in row for row in rows)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3]
    lrs = [row["train/lr"] for row in rows if "train/loss" in row]
    assert lrs == pytest.approx([1e-4, 1e-4, 5e-5])
