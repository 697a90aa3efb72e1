"""run.profile: it finds where the time goes, and the run is as it would be without."""

import gzip
import json
import re
import time

import pytest
import torch

from builders import tiny_run
from data.feed.loader import TrainDataset
from errors import UserError
from report.step_times import Setting, advice
from run.profile import Clock, Span, parts
from runs import losses, train
from settings.keys import Config, DataConfig, ModelConfig

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
WEIGHTS = "checkpoints/step-000008/model/trainable.safetensors"


def profiled(tmp_path, **keys):
    usual = {"train__steps": 8, "train__micro_batch_size": 2, "train__ema_decay": 0.9}
    return tiny_run(tmp_path, **{**usual, "run__profile": 3, **keys})


def rows(run):
    """Seconds and share of the first rank by part, and the text."""
    text = (run / "profile/summary.txt").read_text()
    found = re.findall(r"^ *(?:of it )?([a-z ]+?) +(\d+\.\d+) +(\d+\.\d) %", text, re.M)
    return {part: (float(seconds), float(share)) for part, seconds, share in found}, text


def test_measured_run_is_bit_equal_and_its_parts_add_up(tmp_path, monkeypatch):
    train(profiled(tmp_path, run__output_dir=tmp_path / "plain", run__profile="null"))
    assert not (tmp_path / "plain/profile").exists()
    original = TrainDataset.__getitem__

    def slow(self, ref):
        time.sleep(0.05)
        return original(self, ref)

    monkeypatch.setattr(TrainDataset, "__getitem__", slow)
    train(profiled(tmp_path))
    one, other = tmp_path / "run", tmp_path / "plain"
    assert losses(one) == losses(other)
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
    found, text = rows(one)
    assert found["wait for data"][0] > 0.2  # 4 images
    assert re.search("advice: .*waiting for data.*data.cache_features", text)
    assert all(found[part][0] > 0 for part in ("backbone", "head", "loss", "backward", "optimizer"))
    assert text in (one / "train.log").read_text()
    with gzip.open(one / "profile/trace.json.gz") as stream:
        names = {event.get("name") for event in json.load(stream)["traceEvents"]}
    assert {"backbone", "loss", "backward", "optimizer", "wait for data"} <= names


def test_parts_inside_of_others_are_counted_once():
    clock = Clock(torch.device("cpu"))
    whole = Span("head", 1.0, None, 9.0)
    inner = [Span("backbone", 2.0, whole, 5.0), Span("encoder", 5.0, whole, 6.0)]
    found = parts(clock, 0.0, 10.0, [whole, *inner, Span("loss", 7.0, whole, 8.0)])
    wanted = {"step": 10, "head": 4, "backbone": 3, "encoder": 1, "loss": 1, "rest": 2}
    assert {part: found[part] for part in wanted} == wanted
    assert sum(s for part, s in found.items() if part not in ("step", "encoder")) == 10


BALANCED = {
    **dict.fromkeys(("wait for data", "agree", "copy to device", "optimizer", "rest"), 0.0),
    **{"backbone": 0.2, "head": 0.3, "encoder": 0.1, "loss": 0.1, "backward": 0.4, "step": 1.0},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"backbone": 0.6, "backward": 0.0}, "a backbone that is frozen: data.cache_features 4"),
        ({"head": 0.5, "encoder": 0.45}, "model.head_args.num_feature_levels"),
        ({"optimizer": 0.3}, "larger train.global_batch_size"),
        ({"wait for data": 0.3}, "data.cache_features 4"),
    ],
)
def test_advice_is_given_where_a_remedy_is_known(changes, said):
    cfg = Config(model=ModelConfig(), data=DataConfig(num_workers=512))
    told = advice([{**BALANCED, **changes}], Setting(cfg, lambda: True, (8, 16, 32, 64)))
    assert told is None if said is None else said in told
    if changes.keys() & {"backbone", "wait for data"}:
        assert advice([{**BALANCED, **changes}], Setting(cfg, lambda: False, (8,))) is None


def test_too_few_steps_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"run.profile 5: needs 9 steps, and train.steps is 8"):
        train(profiled(tmp_path, run__profile=5))
