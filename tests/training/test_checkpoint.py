import json

import pytest
import torch
from accelerate import Accelerator
from builders import TINY_HEAD, save_backbone

from config import Config, ModelConfig, OptimConfig, UserError
from data.schema import Taxonomy
from model.build import build_model
from training.checkpoint import (
    Checkpoints,
    TrainState,
    load_model,
    load_optimizer,
    load_state,
    trainable_tensors,
)
from training.optim import build_optimizer


def make(tmp_path, freeze="all", head="deformable_detr"):
    backbone = tmp_path / "backbone"
    if not backbone.exists():
        save_backbone(backbone)
    cfg = ModelConfig(backbone=str(backbone), head=head, head_args=TINY_HEAD[head], freeze=freeze)
    detector = build_model(cfg, Taxonomy(("a",), (0,)))
    optimizer = build_optimizer(detector.model, detector.backbone_module, OptimConfig(lr=1e-2))
    return detector, optimizer


def take_step(detector, optimizer):
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    detector.model(pixel_values=torch.ones(1, 3, 64, 64), labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("freeze", ["all", "none"])
@pytest.mark.parametrize("head", ["detr", "deformable_detr"])
def test_a_loaded_checkpoint_continues_bit_for_bit(tmp_path, head, freeze):
    accelerator = Accelerator(cpu=True)
    detector, optimizer = make(tmp_path, freeze, head)
    take_step(detector, optimizer)
    saved = Checkpoints(tmp_path / "checkpoints", keep=2)
    saved.save(accelerator, detector.model, optimizer, {}, TrainState(step=1), Config(), best=False)
    take_step(detector, optimizer)

    torch.manual_seed(99)
    other, other_optimizer = make(tmp_path, freeze, head)
    load_model(saved.newest(), other.model)
    load_optimizer(saved.newest(), accelerator, other.model, other_optimizer)
    take_step(other, other_optimizer)
    wanted = detector.model.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in other.model.state_dict().items())


def test_frozen_backbone_is_not_saved(tmp_path):
    detector, _ = make(tmp_path)
    names = set(trainable_tensors(detector.model))
    assert not [n for n in names if ".backbone." in n]
    assert {n for n, p in detector.model.named_parameters() if p.requires_grad} <= names


def test_best_last_and_limit(tmp_path):
    accelerator = Accelerator(cpu=True)
    detector, optimizer = make(tmp_path)
    folder = tmp_path / "checkpoints"
    state = TrainState()
    for step, metric in [(10, 0.1), (20, 0.5), (30, 0.3), (40, 0.2), (50, None), (60, 0.4)]:
        state.step = step
        best = state.is_best(metric)
        Checkpoints(folder, keep=2).save(
            accelerator, detector.model, optimizer, {}, state, Config(), best
        )
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["best", "last", "step-000020", "step-000050", "step-000060"]
    assert (folder / "best").resolve().name == "step-000020"
    assert (folder / "last").resolve().name == "step-000060"
    assert not (folder / "best").readlink().is_absolute()
    assert (state.best_metric, state.best_step) == (0.5, 20)


def test_unfinished_checkpoint_is_not_taken(tmp_path):
    accelerator = Accelerator(cpu=True)
    detector, optimizer = make(tmp_path)
    saved = Checkpoints(tmp_path / "checkpoints", keep=2)
    saved.save(accelerator, detector.model, optimizer, {}, TrainState(step=5), Config(), best=True)
    (tmp_path / "checkpoints" / ".writing-step-000009" / "model").mkdir(parents=True)
    assert saved.newest().name == "step-000005"
    saved.save(accelerator, detector.model, optimizer, {}, TrainState(step=9), Config(), best=False)
    assert saved.newest().name == "step-000009"


def test_checkpoint_of_another_model_is_refused(tmp_path):
    accelerator = Accelerator(cpu=True)
    detector, optimizer = make(tmp_path)
    saved = Checkpoints(tmp_path / "checkpoints", keep=2)
    saved.save(accelerator, detector.model, optimizer, {}, TrainState(step=5), Config(), best=True)
    other, _ = make(tmp_path, head="detr")
    with pytest.raises(UserError, match="was written for another model"):
        load_model(saved.newest(), other.model)


def test_no_checkpoint_file_can_run_code(tmp_path):
    accelerator = Accelerator(cpu=True)
    detector, optimizer = make(tmp_path)
    saved = Checkpoints(tmp_path / "checkpoints", keep=2)
    saved.save(accelerator, detector.model, optimizer, {}, TrainState(step=5), Config(), best=True)
    files = [p for p in saved.newest().rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json", ".yaml"}
    assert load_state(saved.newest()).step == 5
    file = saved.newest() / "state" / "optimizer.safetensors"
    file.write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(UserError, match="optimizer.safetensors: not a readable checkpoint file"):
        load_optimizer(saved.newest(), accelerator, detector.model, optimizer)
    (saved.newest() / "state" / "state.json").write_text(json.dumps({"step": 1})[:-3])
    with pytest.raises(UserError, match="not a checkpoint"):
        load_state(saved.newest())
