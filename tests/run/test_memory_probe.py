"""The trial before step 1: what it chooses, and that nothing of it stays."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from builders import TINY_HEAD, tiny_run
from data.feed.loader import batches_of
from errors import UserError
from model.memory import MemoryWatch
from model.trainable import Trainable
from run.build import build_parts, build_run, start_processes
from run.memory_probe import Trial, leaving_no_trace, tried
from run.memory_room import cgroup_rooms, limit_bytes, peak_bytes, restart_peak
from runs import losses, train
from settings.load import load_config

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
CPU = torch.device("cpu")
BATCH_NORMS_DROPOUT_NOISE = {
    "model__head_args": json.dumps({**TINY_HEAD["deimv2"], "dropout": 0.1}),
    "model__freeze": "none",
}


def probed(tmp_path, head="deformable_detr", **keys):
    return tiny_run(tmp_path, head, **{"train__micro_batch_size": "auto", **keys})


def weights(run, step=3):
    return (run / f"checkpoints/step-{step:06d}/model/trainable.safetensors").read_bytes()


def said(run, word):
    text = (run / "train.log").read_text()
    return [line for line in text.splitlines() if line.startswith(word)]


@pytest.fixture
def room(monkeypatch):
    """How many images fit at a time."""
    room = {"images": 2}
    forward = Trainable.forward

    def with_little_memory(self, batch, counts):
        if batch.pixel_mask.shape[0] > room["images"]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch, counts)

    monkeypatch.setattr(Trainable, "forward", with_little_memory)
    return room


def test_nothing_of_the_trial_stays(tmp_path):
    train(probed(tmp_path, "deimv2", **BATCH_NORMS_DROPOUT_NOISE))
    plain = {"train__micro_batch_size": "null", "run__output_dir": tmp_path / "plain"}
    train(probed(tmp_path, "deimv2", **BATCH_NORMS_DROPOUT_NOISE, **plain))
    (line,) = said(tmp_path / "run", "memory")
    assert "auto: 4 image(s) of 64 x 64 px with 2 object(s) each take" in line
    assert said(tmp_path / "plain", "memory") == []
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    assert weights(tmp_path / "run") == weights(tmp_path / "plain")


def test_buffers_gradients_and_random_states_are_put_back():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random = torch.get_rng_state(), np.random.get_state()[2]
    with leaving_no_trace(module, CPU):
        module(torch.rand(2, 3, 4, 4) + np.random.rand()).sum().backward()
        assert not torch.equal(module[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert module[0].weight.grad is None
    assert not module[1].training
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[2] == random[1]


def test_largest_part_that_fits_is_taken_and_kept(tmp_path, room):
    keys = {"optim__schedule": "constant"}
    train(probed(tmp_path, **keys))
    assert said(tmp_path / "run", "batch")[0].endswith("2 per pass x 1 process(es) x 2 accumulated")
    whole = {"run__output_dir": tmp_path / "two", "train__micro_batch_size": 2}
    train(probed(tmp_path, **keys, **whole))
    assert losses(tmp_path / "run") == losses(tmp_path / "two")
    train(probed(tmp_path, **keys, train__steps=5, run__resume="auto"))
    text = (tmp_path / "run/train.log").read_text()
    assert "changed since the checkpoint: train.micro_batch_size" not in text
    assert text.count("auto: 2 image(s)") == 1  # no second trial
    shutil.rmtree(tmp_path / "two")
    train(probed(tmp_path, **keys, **whole, train__steps=5))
    assert weights(tmp_path / "run", 5) == weights(tmp_path / "two", 5)


@pytest.mark.parametrize("head", ["detr", "maskformer"])
def test_no_batch_is_larger_than_the_worst_one(tmp_path, head):
    keys = {"train__global_batch_size": 2, "data__image_size__longest": 96}
    cfg = load_config(probed(tmp_path, head, **keys))
    (tmp_path / "run").mkdir()
    run = build_run(cfg, start_processes(cfg))
    worst = Trial(cfg, run.accelerator, run.data, run.detector, None).worst_batch(2)
    with batches_of(run.train_loader()[0]) as stream:
        batches = list(itertools.islice(stream, 16))
    names = ["pixel_values", "pixel_mask", *(["ignored"] if head == "maskformer" else [])]
    for name in names:
        limit, found = getattr(worst, name), [getattr(batch, name) for batch in batches]
        assert max(tensor.numel() for tensor in found) <= limit.numel()
        assert {tensor.dtype for tensor in found} == {limit.dtype}
    sides = [max(batch.pixel_mask.shape[side] for batch in batches) for side in (1, 2)]
    assert sides == list(worst.pixel_mask.shape[1:])
    assert max(max(batch.num_objects) for batch in batches) == max(worst.num_objects)
    assert {b.objects.masks is None for b in batches} == {worst.objects.masks is None}


def test_given_size_is_tried_and_told(tmp_path, room):
    """As a run on CUDA does with every size."""
    keys = {"train__micro_batch_size": "null", "train__global_batch_size": 8}
    cfg = load_config(probed(tmp_path, **keys))
    accelerator = start_processes(cfg)
    cfg, data, detector = build_parts(cfg, accelerator)
    for images, fits in ((5, 7), (2, 3)):  # 8 do not, and then neither do 4
        room["images"] = images
        found = tried(cfg, accelerator, data, detector, None)
        assert (found.micro_batch_size, found.chosen) == (8, False)
        assert found.fits <= fits
        text = "WARNING: 8 image(s) of 64 x 64 px with 2 object(s) each take"
        assert str(found).startswith(text)
    small = dataclasses.replace(cfg.train, micro_batch_size=2)
    found = tried(dataclasses.replace(cfg, train=small), accelerator, data, detector, None)
    assert found.fits >= 2
    assert 0 < found.peak_bytes < found.limit_bytes
    assert "WARNING" not in str(found)


def test_no_room_for_one_image_is_told_before_training(tmp_path, monkeypatch):
    calls, forward = [], Trainable.forward

    def for_blank_one_alone(self, batch, counts):
        calls.append(batch)
        if len(calls) > 1:  # the first is the detector's own, of one blank image
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, batch, counts)

    monkeypatch.setattr(Trainable, "forward", for_blank_one_alone)
    with pytest.raises(UserError, match="not even one image of 64 x 64 px with 2 object"):
        train(probed(tmp_path))


def test_shortage_names_what_the_trial_found():
    watch = MemoryWatch(CPU, "train.micro_batch_size", 3)
    batch = type("Batch", (), {"pixel_mask": torch.ones(4, 8, 8), "num_objects": [1]})()
    with (
        pytest.raises(UserError, match=r"trial before step 1 found room for 3\)"),
        watch.holds(batch),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_peak_is_that_of_this_block_alone():
    restart_peak(CPU)
    before = peak_bytes(CPU)
    torch.ones(50_000_000)
    assert 190e6 < peak_bytes(CPU) - before < 230e6
    restart_peak(CPU)
    assert peak_bytes(CPU) - before < 50e6
    assert limit_bytes(CPU) > before


def test_room_in_control_groups(tmp_path):
    inner = tmp_path / "job/step"
    inner.mkdir(parents=True)
    for folder, limit, used in ((inner, "max", 40), (inner.parent, "100", 70)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    (inner.parent / "memory.stat").write_text("anon 50\ninactive_file 20\n")
    assert list(cgroup_rooms(tmp_path, "/job/step")) == [50]


@pytest.mark.parametrize("value", ["many", "0"])
def test_other_sizes_are_refused(tmp_path, value):
    with pytest.raises(UserError, match="train.micro_batch_size"):
        load_config(probed(tmp_path, train__micro_batch_size=value))
