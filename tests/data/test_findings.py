"""Each kind of defect is found, named by its place, and does not keep the rest from being read."""

import json
from dataclasses import replace

import pytest

from builders import write_images
from data.build import build_data
from errors import UserError
from formats import write_format
from found import edit_json, found
from settings.keys import DataConfig


# --- whole folders -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["coco", "imagefolder", "voc", "voc folders"])
def test_images_that_nothing_lists_are_noted(tmp_path, name):
    cfg = write_format(tmp_path, name)
    folder = tmp_path / ("JPEGImages" if name == "voc" else "train")
    write_images(tmp_path / "more", 1)
    (tmp_path / "more/000.jpg").rename(folder / "extra.jpg")
    kind = "image without annotation"
    listed, data = found(cfg)
    assert set(listed) == {(kind, str(folder / "extra.jpg"))}
    assert len(data.train) == 8
    build_data(replace(cfg, strict=True), 0)  # it is no defect


def test_splits_that_share_a_folder_list_each_others_images(tmp_path):
    write_format(tmp_path, "coco")
    for split in ("train", "val"):
        for file in sorted((tmp_path / split).iterdir()):
            (tmp_path / "all").mkdir(exist_ok=True)
            file.rename(tmp_path / "all" / f"{split}{file.name}")

        def rename(content, split=split):
            for image in content["images"]:
                image["file_name"] = split + image["file_name"]

        edit_json(tmp_path / f"annotations/{split}.json", rename)
    cfg = DataConfig(
        source="coco",
        path=str(tmp_path),
        train_split="all",
        val_split="all",
        train_annotations="annotations/train.json",
        val_annotations="annotations/val.json",
    )
    listed, data = found(cfg)
    assert not listed
    assert (len(data.train), len(data.val)) == (8, 4)


@pytest.mark.parametrize("name", ["coco", "imagefolder", "voc", "yolo"])
def test_links_out_of_the_dataset_are_refused_and_those_inside_read(tmp_path, name):
    root = tmp_path / "set"
    cfg = write_format(root, name)
    files = sorted(root.rglob("*.jpg"))
    inside, outside = files[0], files[1]
    inside.rename(root / "store.jpg")
    inside.symlink_to(root / "store.jpg")
    outside.rename(tmp_path / "elsewhere.jpg")
    outside.symlink_to(tmp_path / "elsewhere.jpg")
    listed, data = found(cfg)
    assert [kind for kind, _ in listed if kind != "image without annotation"] == [
        "path leaves the folder"
    ]
    assert len(data.train) == 7


def test_folder_that_the_configuration_names_may_be_a_link(tmp_path):
    """As a snapshot in the Hub's cache, or a split folder on another disk."""
    cfg = write_format(tmp_path / "set", "coco")
    (tmp_path / "set/train").rename(tmp_path / "disk")
    (tmp_path / "set/train").symlink_to(tmp_path / "disk")
    snapshot = tmp_path / "cache/snapshots/0123"
    write_format(snapshot, "imagefolder")
    (tmp_path / "cache/blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.rglob("*.jpg"))):
        blob = tmp_path / f"cache/blobs/{number}"
        file.rename(blob)
        file.symlink_to(blob)
    assert not found(cfg)[0]
    assert not found(replace(cfg, source="imagefolder", path=str(snapshot)))[0]


UNREADABLE = {
    "coco": (
        "annotations/train.json",
        [b"", b"[]", b"{}", b'{"images": []}', b"[" * 10**6, b"\xff"],
    ),
    "imagefolder": ("train/metadata.jsonl", [b"", b"\n \n"]),
    "voc": ("ImageSets/Main/train.txt", [b"", b"\n"]),
    "yolo": (
        "data.yaml",
        [
            b"",
            b"[",
            b"train: x",
            b"{val: images/val}",
            b"[" * 10**5,
            b"train: &a images/train\nval: *a\nnames: [car, plate]",
            b"a" * 2 * 10**6,
        ],
    ),
}


@pytest.mark.parametrize(
    ("name", "content"), [(n, c) for n, (_, cs) in UNREADABLE.items() for c in cs]
)
def test_source_that_cannot_be_read_at_all(tmp_path, name, content):
    cfg = write_format(tmp_path, name)
    (tmp_path / UNREADABLE[name][0]).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        build_data(cfg, 0)


@pytest.mark.parametrize("name", ["coco", "imagefolder", "voc", "voc folders", "yolo"])
def test_missing_folders(tmp_path, name):
    cfg = write_format(tmp_path / "set", name)
    with pytest.raises(UserError, match="absent: no such folder"):
        build_data(replace(cfg, path=str(tmp_path / "absent")), 0)
    with pytest.raises(UserError, match="data.train_split|data.train_annotations"):
        build_data(replace(cfg, train_split="absent"), 0)


def test_boxes_annotated_in_another_size_are_scaled(tmp_path):
    from builders import write_coco

    root = write_coco(tmp_path, 4)
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    content["images"][0] |= {"width": 192, "height": 128}  # it has 96 x 64 px
    content["annotations"][0]["bbox"] = [20, 24, 60, 40]
    content["annotations"][0]["area"] = 2400
    file.write_text(json.dumps(content))
    write_coco(tmp_path, 4, "val", seed=1)
    data = build_data(DataConfig(source="coco", path=str(root), val_split="val"), 0)
    assert data.train.records[0].objects.boxes.tolist() == [[10, 12, 30, 20]]
    assert data.train.records[0].objects.areas.tolist() == [600]
    assert data.findings.counts()["size differs from annotation"] == 1


def test_names_for_ids_of_unknown_base_are_refused(tmp_path):
    from builders import write_imagefolder

    root = write_imagefolder(tmp_path, 8)
    file = root / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["objects"]["category"] = [1 + n % 2 for n in range(len(row["objects"]["bbox"]))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = DataConfig(source="imagefolder", path=str(root), labels=["cat", "dog", "bird"])
    with pytest.raises(UserError, match="whether ids begin at 0 or 1 cannot be told"):
        build_data(cfg, 0)
