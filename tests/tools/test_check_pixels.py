"""The check of datasets of which every pixel has a class: its words, its figures, its picture."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

import painted
import segmented
from painted import NAMES
from report.dataset_charts import CHART_PX, COLOURS
from report.dataset_text import percent
from settings.keys import DataConfig
from tools import check_data


def check(folder, cfg, task, *more):
    """Exit status of the tool on the data of `cfg`."""
    usual = DataConfig()
    data = {key: value for key, value in asdict(cfg).items() if value != getattr(usual, key)}
    file = folder / "config.yaml"
    content = {
        "data": data,
        "model": {"task": task, "head": "maskformer", "head_args": {}},
        "train": {"steps": 9},
        "optim": {"warmup_steps": 1},
    }
    file.write_text(json.dumps(content))
    return check_data.main(["--config", str(file), "--workers", "1", *map(str, more)])


def row(text, title):
    (line,) = [line for line in text.splitlines() if line.strip().startswith(title)]
    return line.split(title, 1)[1].split("   ")


def test_regions_and_shares_of_pixels_are_told(tmp_path, capsys):
    cfg = painted.write_folders(tmp_path / "set")
    found = tmp_path / "found.json"
    assert check(tmp_path, cfg, "semantic_segmentation", "--json", found) == 0
    text = capsys.readouterr().out
    assert "box" not in text
    figures = json.loads(found.read_text())["splits"]["train"]
    assert figures["unit"] == "regions"
    assert [entry["name"] for entry in figures["classes"]] == list(NAMES)
    total = sum(entry["share"] for entry in figures["classes"]) + figures["ignored_share"]
    assert total == pytest.approx(1)
    for title, share, images in (
        *((c["name"], c["share"], c["images"]) for c in figures["classes"]),
        ("ignored", figures["ignored_share"], figures["ignored_images"]),
    ):
        assert f"{percent(share)} ({images})" in [cell.strip() for cell in row(text, f"{title} ")]
    assert "pixels (images) by class" in text
    assert "one of the regions, % of its image" in text


def test_segments_of_things_stuff_and_groups_are_told(tmp_path, capsys):
    cfg = segmented.write_coco(tmp_path / "set")
    assert check(tmp_path, cfg, "panoptic_segmentation") == 0
    text = capsys.readouterr().out
    assert "box" not in text
    assert [cell.strip() for cell in row(text, "segments of groups (iscrowd)") if cell] == [
        "4",
        "2",
    ]
    assert any("(8 in 4)" in cell for cell in row(text, "person "))
    assert any("(4 in 4)" in cell for cell in row(text, "sky "))


def test_picture_shows_pixels_by_class_and_ignored_ones_dark(tmp_path):
    cfg, file = painted.write_folders(tmp_path / "set"), tmp_path / "picture.png"
    Image.new("RGB", (48, 32), "white").save(tmp_path / "set/images/train/000.jpg")
    check(tmp_path, cfg, "semantic_segmentation", "--picture", file)
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    charts, samples = pixels[: CHART_PX[1]], pixels[CHART_PX[1] + 48 :]
    for part in (charts[:, :656], charts[:, 656:]):
        for colour in COLOURS.values():
            assert (part == colour).all(-1).sum() > 500
    labels = painted.labels_of(0)
    centres = (np.argwhere(labels[4::8, 4::8] >= 0) * 8 + 4) * 320 / max(labels.shape)
    seen = np.array([samples[int(y), int(x) + 8] for y, x in centres]).reshape(4, 6, 3)
    ignored = labels[4::8, 4::8] == painted.VOID
    dark = (seen == 63).all(-1)  # a quarter of white; names of classes cover some
    assert dark[ignored].mean() > 0.6
    assert not dark[~ignored].any()


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.00 %"), (1e-7, "< 0.01 %"), (0.0123, "1.23 %"), (0.5, "50.0 %")]
    + [(1, "100.0 %"), (0.99999, "> 99.99 %")],
)
def test_shares_as_text(share, text):
    assert percent(share) == text
