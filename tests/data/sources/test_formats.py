"""The same images in every format are the same dataset."""

import json
import shutil

import datasets
import numpy as np
import pytest
from PIL import Image

from builders import BOXES, SIZES, write_imagefolder
from data.build import build_data, read_data
from data.findings import Findings
from data.images.decode import decode
from data.sources.store import _content
from errors import UserError
from formats import NAMES, WRITERS, categories_of, voc_xml, write_format, write_parquet
from settings.keys import DataConfig


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def described(split):
    """Everything of a split but its ids."""
    for index, record in enumerate(split.records):
        pixels = decode(split.images[index], record.where)
        yield (record, pixels, (record.width, record.height))


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_dataset(tmp_path, name):
    data = build_data(write_format(tmp_path / "set", name), seed=0)
    reference = build_data(write_format(tmp_path / "reference", "imagefolder"), seed=0)
    assert not list(data.findings)
    assert data.taxonomy.names == reference.taxonomy.names == NAMES
    for ours, theirs, number in (
        (data.train, reference.train, 8),
        (data.val, reference.val, 4),
    ):
        assert len(ours) == len(theirs) == number
        pairs = zip(described(ours), described(theirs), strict=True)
        for index, ((a, pixels, size), (b, same_pixels, same_size)) in enumerate(pairs):
            assert size == same_size == SIZES[index % 4]
            np.testing.assert_array_equal(pixels, same_pixels)
            np.testing.assert_allclose(
                a.objects.boxes, np.reshape(BOXES[index % 4], (-1, 4)), atol=1e-9
            )
            np.testing.assert_allclose(a.objects.areas, b.objects.areas, atol=1e-6)
            assert a.objects.classes.tolist() == b.objects.classes.tolist() == categories_of(index)
            assert a.objects.iscrowd.tolist() == b.objects.iscrowd.tolist()


def test_unlabelled_images_are_background(tmp_path):
    data = build_data(write_format(tmp_path, "yolo"), seed=0)
    assert [len(record.objects.boxes) for record in data.train.records] == [1, 0, 2, 1] * 2


@pytest.mark.parametrize("box_format", ["pascal_voc", "albumentations", "yolo"])
@pytest.mark.parametrize("source", ["imagefolder", "hub"])
def test_box_formats(tmp_path, source, box_format):
    def converted(box, width, height):
        x, y, w, h = box
        corners = [x, y, x + w, y + h]
        sides = [width, height, width, height]
        if box_format == "pascal_voc":
            return corners
        if box_format == "yolo":
            corners = [x + w / 2, y + h / 2, w, h]
        return [value / side for value, side in zip(corners, sides, strict=True)]

    for split in ("train", "val"):
        write_imagefolder(tmp_path, 4, split)
        file = tmp_path / split / "metadata.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["objects"]["bbox"] = [
                converted(box, row["width"], row["height"]) for box in row["objects"]["bbox"]
            ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_parquet(tmp_path / "hub", tmp_path / split, split)
    cfg = DataConfig(
        source=source,
        path=str(tmp_path / "hub" if source == "hub" else tmp_path),
        val_split="validation" if source == "hub" else "val",
        box_format=box_format,
    )
    data = build_data(cfg, seed=0)
    for index, record in enumerate(data.train.records):
        np.testing.assert_allclose(
            record.objects.boxes, np.reshape(BOXES[index], (-1, 4)), atol=1e-4
        )


def test_part_of_a_hub_split(tmp_path):
    cfg = write_format(tmp_path, "hub", train_split="train[:50%]", val_split="train[50%:]")
    data = build_data(cfg, seed=0)
    assert [r.image_id for r in data.train.records] == [10, 11, 12, 13]
    assert [r.image_id for r in data.val.records] == [14, 15, 16, 17]


def test_stream_is_stored_once_and_again_when_the_dataset_changed(tmp_path):
    cfg = write_format(tmp_path / "set", "hub streamed")
    first = build_data(cfg, seed=0)
    stored = sorted((tmp_path / "cache").rglob("*.jpg"))
    assert len(stored) == 12
    times = [file.stat().st_mtime_ns for file in stored]
    assert build_data(cfg, seed=0).fingerprint() == first.fingerprint()
    assert [file.stat().st_mtime_ns for file in stored] == times
    assert not list((tmp_path / "cache").rglob(".writing-*"))
    parquet = tmp_path / "set/hub/data/train-00000-of-00001.parquet"
    parquet.write_bytes((tmp_path / "set/hub/data/validation-00000-of-00001.parquet").read_bytes())
    assert len(build_data(cfg, seed=0).train) == 4


def test_stream_that_breaks_leaves_nothing_behind(tmp_path):
    cfg = write_format(tmp_path / "set", "hub streamed", train_split="absent")
    with pytest.raises(UserError, match="split absent"):
        build_data(cfg, seed=0)
    (lock,) = (tmp_path / "cache/permafrost").iterdir()
    assert lock.read_bytes() == b""


def test_stream_of_images_in_an_archive(tmp_path):
    """The rows of such a stream name files inside the archive; elsewhere they are not followed."""
    write_format(tmp_path / "set", "imagefolder")
    folder = tmp_path / "zipped"
    folder.mkdir()
    (tmp_path / "secret.jpg").write_bytes((tmp_path / "set/train/000.jpg").read_bytes())
    shutil.make_archive(str(folder / "train"), "zip", tmp_path / "set/train")
    cfg = DataConfig(source="hub", path=str(folder), val_fraction=0.3, streaming=True)
    data = build_data(cfg, seed=0)
    assert not list(data.findings)
    assert len(data.train) + len(data.val) == 8
    assert _content({"bytes": None, "path": str(tmp_path / "secret.jpg")}, cfg) is None
    assert _content({"bytes": None, "path": f"zip://a::{tmp_path}/b.zip"}, cfg) is None
    assert _content({"bytes": None, "path": "http://localhost/a.jpg"}, cfg) is None


def test_voc_corners_are_one_based_and_inclusive(tmp_path):
    """A box of the whole image, and one of a single pixel."""
    cfg = write_format(tmp_path, "voc folders")
    boxes = [("car", (0, 0, 96, 64), ""), ("car", (5, 7, 1, 1), "<difficult>1</difficult>")]
    xml = voc_xml("000.jpg", (96, 64), boxes)
    assert "<xmin>1</xmin><ymin>1</ymin><xmax>96</xmax><ymax>64</ymax>" in xml
    (tmp_path / "train/000.xml").write_text(xml)
    data = build_data(cfg, seed=0)
    assert data.train.records[0].objects.boxes.tolist() == [[0, 0, 96, 64], [5, 7, 1, 1]]
    assert data.train.records[0].objects.iscrowd.tolist() == [False, True]
    assert not list(data.findings)


def test_voc_classes_follow_data_labels_and_the_file_name_may_be_stale(tmp_path):
    cfg = write_format(tmp_path, "voc folders", labels=["plate", "car"])
    file = tmp_path / "train/002.xml"
    file.write_text(file.read_text().replace("002.jpg", "from_another_tool.png"))
    data = build_data(cfg, seed=0)
    assert data.taxonomy.names == ("plate", "car")
    assert data.train.records[2].objects.classes.tolist() == [1, 0]
    assert str(data.train.images[2]).endswith("002.jpg")


def test_voc_class_that_only_one_split_has(tmp_path):
    """Ids are places among the names of both splits, not of each."""
    cfg = write_format(tmp_path, "voc folders")
    for file in (tmp_path / "val").glob("*.xml"):
        file.write_text(file.read_text().replace("plate", "bus"))
    data = build_data(cfg, seed=0)
    assert data.taxonomy.names == ("bus", "car", "plate")
    assert data.train.records[2].objects.classes.tolist() == [1, 2]
    assert data.val.records[2].objects.classes.tolist() == [1, 0]


def test_yolo_polygons_lists_and_absent_labels_folder(tmp_path):
    cfg = write_format(tmp_path, "yolo")
    label = tmp_path / "labels/train/001.txt"
    label.write_text("1 0.25 0.25 0.75 0.5 0.5 0.75\n")
    names = "".join(f"images/train/{index:03d}.jpg\n" for index in (1, 2))
    (tmp_path / "some.txt").write_text(names)
    yaml = "train: [some.txt, ../images/val]\nval: images/val\nnames: [car, plate]\n"
    (tmp_path / "data.yaml").write_text(yaml)
    data = build_data(cfg, seed=0)
    width, height = SIZES[1]
    assert len(data.train) == 2 + 4
    np.testing.assert_allclose(
        data.train.records[0].objects.boxes, [[width / 4, height / 4, width / 2, height / 2]]
    )
    assert not list(data.findings)


def test_coco_boxes_of_segmentations(tmp_path):
    from pycocotools import mask

    rng = np.random.default_rng(0)
    cfg = write_format(tmp_path, "coco")
    file = tmp_path / "annotations/train.json"
    content = json.loads(file.read_text())
    content["annotations"], expected = [], []
    for number in range(60):
        full = np.zeros((64, 96), np.uint8)
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, 60), rng.integers(0, 90)
            full[y : y + rng.integers(1, 70), x : x + rng.integers(1, 20)] = 1
        rle = mask.encode(np.asfortranarray(full))
        expected.append(mask.toBbox(rle).tolist())
        runs = np.diff(np.flatnonzero(np.diff(full.T.reshape(-1), prepend=2, append=2)))
        counts = runs.tolist() if full[0, 0] == 0 else [0, *runs.tolist()]
        rle = {"size": [64, 96], "counts": counts if number % 2 else rle["counts"].decode()}
        content["annotations"].append(
            {"id": number, "image_id": 10, "category_id": 1, "segmentation": rle}
        )
    polygon = [[10, 12, 40, 12, 40, 32], [20, 20, 50.5, 20, 20, 30]]
    for image_id, segmentation in ((10, polygon), (12, polygon)):
        content["annotations"].append(
            {
                "id": 100 + image_id,
                "image_id": image_id,
                "category_id": 1,
                "segmentation": segmentation,
            }
        )
    file.write_text(json.dumps(content))
    data = build_data(cfg, seed=0)
    assert data.train.records[0].objects.boxes.tolist() == [*expected, [10, 12, 40.5, 20]]
    assert data.train.records[2].objects.boxes.tolist() == [[10, 12, 40.5, 20]]
    assert set(data.findings.counts()) <= {"duplicate box"}


def test_image_that_cannot_be_read_counts_in_validation_only(tmp_path):
    cfg = write_format(tmp_path, "coco")
    (tmp_path / "train/002.jpg").unlink()
    (tmp_path / "val/002.jpg").write_bytes(b"")
    file = tmp_path / "annotations/val.json"
    content = json.loads(file.read_text())
    for key in ("width", "height"):
        content["images"][3].pop(key)
    file.write_text(json.dumps(content))
    (tmp_path / "val/003.jpg").unlink()
    findings = Findings()
    data = read_data(cfg, 0, findings)
    assert len(data.train) == 7
    assert not any(record.unreadable for record in data.train.records)
    assert [record.unreadable for record in data.val.records] == [False, False, True, True]
    known, unknown = data.val.records[2:]
    assert (known.width, known.height) == SIZES[2]
    assert (unknown.width, unknown.height) == (1, 1)
    assert unknown.objects.boxes.tolist() == BOXES[3]
    assert findings.counts() == {"missing image": 2, "empty file": 1}


def test_set_aside_images_do_not_depend_on_what_can_be_read(tmp_path):
    cfg = write_format(tmp_path, "coco", val_split="none", val_fraction=0.4)
    before = build_data(cfg, seed=0)
    (tmp_path / "train/000.jpg").unlink()
    (tmp_path / "train/003.jpg").unlink()
    after = build_data(cfg, seed=0)
    assert [r.image_id for r in before.val.records] == [r.image_id for r in after.val.records]
    assert len(before.train) + len(before.val) == 8
    kept = [r.image_id for r in before.train.records if r.image_id not in (10, 13)]
    assert [r.image_id for r in after.train.records] == kept


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "PNG, EXIF last"])
def test_header_gives_the_size_that_is_decoded(tmp_path, kind, orientation):
    from data.images.headers import Header, inspect

    image = Image.new("RGB", (60, 40))
    exif = image.getexif()
    exif[0x0112] = orientation
    file = tmp_path / "x"
    image.save(file, kind.partition(",")[0], exif=exif)
    if "last" in kind:  # behind the pixels, as some tools write it
        content = file.read_bytes()
        start = content.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        rest = content[:start] + content[end:]
        place = rest.index(b"IEND") - 4
        file.write_bytes(rest[:place] + content[start:end] + rest[place:])
    header = inspect(file)
    assert isinstance(header, Header)
    assert (header.height, header.width) == decode(file, "x").shape[:2]
    assert header.exif_orientation == orientation


def test_hub_row_that_names_a_file_elsewhere_is_refused(tmp_path):
    cfg = write_format(tmp_path / "set", "hub")
    outside = tmp_path / "secret.png"
    Image.new("RGB", (64, 48)).save(outside)
    file = next((tmp_path / "set/hub/data").glob("train-*.parquet"))
    rows = datasets.Dataset.from_parquet(str(file))
    features = rows.features
    rows = rows.cast_column("image", datasets.Image(decode=False)).to_list()
    rows[2]["image"] = {"bytes": None, "path": str(outside)}
    _write_undecoded(rows, features, file)
    with pytest.raises(UserError, match=r"row 2: path leaves the folder"):
        build_data(cfg, 0)


def _write_undecoded(rows, features, file):
    """to_parquet would read the named file and put its content in."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = features.arrow_schema
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
