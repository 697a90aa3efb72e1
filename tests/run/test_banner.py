"""What a run says before its first step about data that its maps are too coarse for."""

import re

import numpy as np
import pytest

from backbones import FLAT, KINDS, write_backbone
from builders import tiny_run
from data.canvas import resized_size
from run.banner import early_layer, small_objects
from run.build import build_parts, start_processes
from settings.load import load_config

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def told(tmp_path, variant="deformable_detr", **keys):
    cfg = load_config(tiny_run(tmp_path, variant, **keys))
    cfg, data, detector = build_parts(cfg, start_processes(cfg))
    return list(small_objects(detector, data)), data, cfg


def test_objects_that_are_smaller_than_places_of_the_finest_map(tmp_path):
    (line,), data, cfg = told(tmp_path, data__image_size__longest=32)
    size = cfg.data.image_size
    sides = []
    for record in data.train.records:
        height, _ = resized_size(record.height, record.width, size)
        sides += [np.sqrt(w * h) * height / record.height for _, _, w, h in record.objects.boxes]
    said, stride = map(int, re.findall(r"smaller than (\d+) px.*every (\d+) px", line)[0])
    assert abs(said - np.median(sides)) < 1.5  # sides of images are whole pixels
    assert said < stride == 16


@pytest.mark.parametrize(
    "keys",
    [
        {"data__image_size__longest": 256},
        {"data__image_size__longest": 32, "model__out_features": "[stage1]"},
    ],
    ids=["larger images", "finer map"],
)
def test_what_the_advice_says_ends_the_warning(tmp_path, keys):
    lines, _, _ = told(tmp_path, **keys)
    assert not lines


def test_where_every_pixel_has_a_class_nothing_is_small(tmp_path):
    lines, _, _ = told(tmp_path, "linear", data__image_size__longest=32)
    assert not lines


@pytest.mark.parametrize("kind", KINDS)
def test_reading_nothing_of_the_later_layers_of_a_vision_transformer(tmp_path, kind):
    backbone = write_backbone(tmp_path / "other", kind)
    for stages, told in (('["stage1"]', kind in FLAT), ('["stage4"]', False)):
        flags = {"model__backbone": backbone, "model__out_features": stages}
        cfg = load_config(tiny_run(tmp_path, "linear", **flags))
        _, _, detector = build_parts(cfg, start_processes(cfg))
        said = early_layer(detector)
        assert (said is not None) == told
        assert not told or "of its 4 layers nothing after the layer 1 is read" in said
