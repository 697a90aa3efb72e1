"""What only drawing masks shows."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import write_coco
from data.build import read_data
from data.check.masks import crosses_itself, mask_defects
from data.findings import Findings
from settings.keys import DataConfig

SQUARE = [(10, 10), (40, 10), (40, 40), (10, 40)]
OUTLINES = {
    "square": (SQUARE, False),
    "bow tie": ([(10, 10), (40, 40), (40, 10), (10, 40)], True),
    "back on its own edge": ([(10, 10), (40, 10), (40, 40), (40, 20), (40, 40), (10, 40)], False),
    "star": ([(30, 0), (48, 56), (0, 20), (60, 20), (12, 56)], True),
    "triangle": (SQUARE[:3], False),
    "comb": ([(0, 0), (9, 0), (9, 9), (6, 9), (6, 2), (3, 2), (3, 9), (0, 9)], False),
}


@pytest.mark.parametrize("case", OUTLINES)
def test_outlines(case):
    points, wanted = OUTLINES[case]
    for turned in (points, points[::-1], [*points[2:], *points[:2]]):
        assert crosses_itself(np.array(turned, dtype=float)) == wanted


@given(st.integers(3, 60), st.integers(0, 10**6))
def test_outline_around_a_point_never_crosses_itself(corners, seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    if np.diff(np.append(angles, angles[0] + 2 * np.pi)).max() >= np.pi:
        return  # the point would lie outside
    radii = rng.uniform(5, 50, corners)[:, None]
    assert not crosses_itself(radii * np.column_stack([np.cos(angles), np.sin(angles)]))


def test_planted_masks_are_named_once_and_clean_ones_are_not(tmp_path):
    write_coco(tmp_path, 8)
    write_coco(tmp_path, 5, "val", seed=1)
    cfg = DataConfig("coco", str(tmp_path), val_split="val")
    data = read_data(cfg, 0, Findings(), "masks")
    assert not any(map(mask_defects, [*data.train.records, *data.val.records]))
    file = tmp_path / "annotations/train.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    x, y, w, h = first["bbox"]
    first["segmentation"] = [[x, y, x + w, y + h, x + w, y, x, y + h]]
    double = {**content["annotations"][1], "id": 900}
    content["annotations"].append(double)
    file.write_text(json.dumps(content))
    data = read_data(cfg, 0, Findings(), "masks")
    found = [defect for record in data.train.records for defect in mask_defects(record)]
    assert [kind for kind, _, _ in found] == ["mask crosses itself", "masks of one object"]
    assert f"annotation {first['id']}" in found[0][1]
    assert "annotation 900" in found[1][1]
    assert found[1][2] == f"IoU 1.00 with annotation {content['annotations'][1]['id']}"
    assert not any(map(mask_defects, data.val.records))
