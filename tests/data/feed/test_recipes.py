import dataclasses

import numpy as np
import pytest

from builders import write_coco
from data.build import build_data
from data.feed.collate import collate
from data.feed.loader import TrainDataset
from data.feed.sampler import SampleRef
from settings.load import load_config


@pytest.mark.parametrize("recipe", ["light", "medium", "strong"])
def test_augmentation_recipes(tmp_path, recipe):
    """They go on top of any config, and give samples that keep the step's canvas."""
    files = ["--config", "configs/coco.yaml", "--config", f"configs/augment/{recipe}.yaml"]
    write_coco(tmp_path, 8)
    longest = ["--data.image_size.longest", "128"]
    cfg = load_config([*files, "--data.path", str(tmp_path), "--data.val_split", "null", *longest])
    split = build_data(cfg.data, 0).train
    dataset = TrainDataset(split, cfg.data, 0)
    plain = TrainDataset(split, dataclasses.replace(cfg.data, augment=[]), 0)
    changed = 0
    for index in range(len(split)):
        for epoch in range(4):
            ref = SampleRef(index, epoch, (128, 128))
            sample, before = dataset[ref], plain[ref]
            height, width = before.image.shape[:2]
            assert sample.image.shape[0] <= height
            assert sample.image.shape[1] <= width
            assert max(sample.image.shape[0] / height, sample.image.shape[1] / width) > 0.97
            assert sample.image.dtype == np.uint8
            assert bool(len(sample.objects)) == bool(len(before.objects))
            changed += not np.array_equal(sample.image, before.image)
            collate([sample])
    assert changed > 16
