"""What some heads have to know of the backbone's maps before the first step."""

import torch

from data.dataset import Data
from data.feed.collate import collate
from data.feed.loader import EvalDataset
from model.build import Detector

MEASURED_IMAGES = 32
"""Training images that a head sees before the first step, if it has to know what features are like"""
MEASURED_AT_ONCE = 8


def measure(detector: Detector, data: Data, device: torch.device) -> None:
    """Let the head see some training images, the same on every rank, before the first step."""
    if detector.family.prepare is None:
        return
    shown = EvalDataset(data.train, detector.rule)
    places = list(range(min(MEASURED_IMAGES, len(shown))))
    firsts = range(0, len(places), MEASURED_AT_ONCE)
    trainable = detector.trainable.to(device)
    trainable.prepare(
        collate([shown[place] for place in places[first : first + MEASURED_AT_ONCE]]).to(device)
        for first in firsts
    )
