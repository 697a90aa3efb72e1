"""Detectors, steps and checkpoints for tests."""

import torch

from builders import TINY_HEAD, losses_of, make_batch
from data.taxonomy import Taxonomy
from model.build import build_model
from settings.keys import Config, ModelConfig, OptimConfig
from training.optim import build_optimizer
from training.state import (
    TrainState,
)

RNG = {"cpu/0": torch.get_rng_state()}


def make(backbone, freeze="all", head="deformable_detr"):
    cfg = ModelConfig(backbone=str(backbone), head=head, head_args=TINY_HEAD[head], freeze=freeze)
    detector = build_model(cfg, Taxonomy(("a",), (0,)))
    optimizer = build_optimizer(detector.model, detector.backbone_module, OptimConfig(lr=1e-2))
    return detector, optimizer


def take_step(detector, optimizer):
    losses_of(detector.trainable, make_batch([1], num_classes=1)).total.backward()
    optimizer.step()
    optimizer.zero_grad()


SMALL = {"model/trainable.safetensors": {"w": torch.arange(4.0)}, "state/rng.safetensors": RNG}


def state_of(step, evaluated_step=0):
    """As a run has it after `step` steps of 16 images."""
    facts = {"versions": {"torch": "2"}, "world_size": 1, "labels": ["a"]}
    facts |= {"backbone_sha256": "b", "data_sha256": "d"}
    return TrainState(step, 16 * step, evaluated_step, facts=facts)


def save(checkpoints, step=5, metric=None, tensors=SMALL, cfg=None):
    checkpoints.record(metric, step)
    checkpoints.save(tensors, state_of(step), cfg or Config(), wait=True)
