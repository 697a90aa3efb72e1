"""The check of datasets of which every pixel has a class: its words, its figures, its picture."""

import json
from dataclasses import asdict, replace

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


def notes(folder, cfg, capsys, task="semantic_segmentation"):
    """(kind, where and detail) of what is told of a dataset that has no defect."""
    found = folder / "found.json"
    assert check(folder, cfg, task, "--json", found) == 0
    assert "NO DEFECTS" in capsys.readouterr().out
    findings = json.loads(found.read_text())["findings"]
    return [(f["kind"], f"{f['where']}: {f['detail']}") for f in findings]


def named(root, names):
    (root / "id2label.json").write_text(json.dumps(names))
    return DataConfig("label_maps", str(root), val_split="val")


def test_classes_without_pixels_and_gaps_are_noted(tmp_path, capsys):
    painted.write_folders(tmp_path / "set")
    names = {**dict(enumerate(NAMES)), 4: "tree", 9: "sea"}
    told = notes(tmp_path, named(tmp_path / "set", names), capsys)
    assert told == [
        ("class without pixels", f"{tmp_path}/set, class 'tree': id 4"),
        ("class without pixels", f"{tmp_path}/set, class 'sea': id 9"),
        ("gap in the ids of classes", f"{tmp_path}/set: without a name: 3, 5 to 8"),
    ]


def test_class_of_validation_alone_is_noted_and_one_of_training_alone_is_not(tmp_path, capsys):
    root = tmp_path / "set"
    cfg = painted.write_folders(root)
    painted.write_maps(root / "annotations/train", edit=lambda a: np.where(a == 1, 2, a))
    assert notes(tmp_path, cfg, capsys) == [
        ("class of validation alone", f"{root}, class 'road': id 1")
    ]
    painted.write_maps(root / "annotations/train")
    painted.write_maps(root / "annotations/val", "val", edit=lambda a: np.where(a == 1, 2, a))
    assert notes(tmp_path, cfg, capsys) == []


def test_values_that_the_configuration_gives_have_no_gaps(tmp_path, capsys):
    swaps = np.arange(256, dtype=np.uint8)
    swaps[2] = 100
    cfg = painted.write_folders(tmp_path / "set", edit=lambda a: swaps[a])
    assert notes(tmp_path, replace(cfg, label_values=[0, 1, 100]), capsys) == []


def test_ids_of_panoptic_files_may_have_gaps(tmp_path, capsys):
    cfg = segmented.write_coco(tmp_path / "set")
    for task in ("panoptic_segmentation", "semantic_segmentation"):
        assert notes(tmp_path, cfg, capsys, task) == []


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0.00 %"), (1e-7, "< 0.01 %"), (0.0123, "1.23 %"), (0.5, "50.0 %")]
    + [(1, "100.0 %"), (0.99999, "> 99.99 %")],
)
def test_shares_as_text(share, text):
    assert percent(share) == text
