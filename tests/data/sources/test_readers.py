import json
import shutil

import numpy as np
import pytest
from PIL import Image

from builders import BOXES, SIZES, write_coco, write_imagefolder
from data.build import build_data
from data.images.decode import decode
from errors import UserError
from formats import NAMES, write_parquet
from settings.keys import DataConfig


def coco_cfg(root, **changes):
    return DataConfig(**{"source": "coco", "path": str(root), "val_split": "val", **changes})


def write_both(root, writer=write_coco):
    writer(root, 8)
    writer(root, 4, "val", seed=1)
    return root


def write_hub(root, category="category"):
    """The same images as a local folder in Hub format (parquet)."""
    image_folder = write_both(root / "files", write_imagefolder)
    for split in ("train", "val"):
        write_parquet(root / "hub", image_folder / split, split, category)
    return root / "hub"


def assert_expected(data):
    assert len(data.train) == 8
    assert len(data.val) == 4
    for index, record in enumerate(data.train.records):
        assert record.image_id == index + 10
        assert (record.width, record.height) == SIZES[index % 4]
        assert record.objects.boxes.tolist() == BOXES[index % 4]
        assert record.objects.classes.tolist() == [0] * len(BOXES[index % 4])
        image = decode(data.train.images[index], record.where)
        assert image.shape == (record.height, record.width, 3)
        for x, y, w, h in record.objects.boxes.astype(int):
            assert image[y + h // 2, x + w // 2].tolist() == pytest.approx([250, 240, 30], abs=12)


def test_coco(tmp_path):
    data = build_data(coco_cfg(write_both(tmp_path)), seed=0)
    assert_expected(data)
    assert data.taxonomy.names == ("class1",)


def test_imagefolder(tmp_path):
    write_both(tmp_path, write_imagefolder)
    data = build_data(coco_cfg(tmp_path, source="imagefolder", labels=["plate"]), seed=0)
    assert_expected(data)
    assert data.taxonomy.names == ("plate",)


@pytest.mark.parametrize("category", ["category", "category_id"])
def test_hub_format(tmp_path, monkeypatch, category):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    cfg = coco_cfg(write_hub(tmp_path, category), source="hub", val_split="validation")
    data = build_data(cfg, seed=0)
    assert_expected(data)
    assert data.taxonomy.names == NAMES


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (1, 3, 17)])
def test_category_ids_become_indices(tmp_path, ids):
    write_coco(tmp_path, ids=ids)
    data = build_data(coco_cfg(tmp_path, val_split=None, val_fraction=0.3), seed=0)
    assert data.taxonomy.category_ids == ids
    assert data.taxonomy.id2label == {i: f"class{c}" for i, c in enumerate(ids)}
    used = np.concatenate([r.objects.classes for r in data.train.records])
    assert set(used) <= {0, 1, 2}
    for record in data.train.records:  # box k of an image has category ids[k]
        assert record.objects.classes.tolist() == list(range(len(record.objects.boxes)))


def test_validation_split_is_a_function_of_the_seed(tmp_path):
    write_coco(tmp_path, 40)
    cfg = coco_cfg(tmp_path, val_split=None, val_fraction=0.2)
    first, again, other = (build_data(cfg, seed) for seed in (0, 0, 1))
    ids = [[r.image_id for r in d.val.records] for d in (first, again, other)]
    assert len(ids[0]) == 8
    assert ids[0] == ids[1] != ids[2]
    train = {r.image_id for r in first.train.records}
    assert len(train) == 32
    assert not train & set(ids[0])
    record = first.val.records[3]
    assert str(first.val.images[3]) == record.where


def change(root, edit, split="train"):
    file = root / "annotations" / f"{split}.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def first_image_elsewhere(content):
    content["images"][0]["file_name"] = "../../secret.jpg"


def annotation_without_image(content):
    content["annotations"][0]["image_id"] = 999


def image_without_file(content):
    content["images"][0]["file_name"] = "absent.jpg"


def unknown_category(content):
    content["annotations"][1]["category_id"] = 7


def no_categories(content):
    del content["categories"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            first_image_elsewhere,
            r"train.json, image 10: path leaves the folder \('../../secret.jpg'",
        ),
        (annotation_without_image, r"annotation 1: annotation without image \(of image 999\)"),
        (unknown_category, r"002.jpg, annotation 2: unknown category \(id 7, not among \[1\]\)"),
        (no_categories, "train.json: broken row .no list 'categories'"),
    ],
)
def test_broken_coco_names_the_place(tmp_path, edit, message):
    write_both(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(UserError, match=message):
        build_data(coco_cfg(tmp_path), seed=0)


def test_missing_images_are_left_out_up_to_a_limit(tmp_path):
    write_both(tmp_path)
    change(tmp_path, image_without_file)
    data = build_data(coco_cfg(tmp_path), seed=0, max_bad_images=1)
    assert [r.image_id for r in data.train.records] == list(range(11, 18))
    assert str(data.train.images[0]) == data.train.records[0].where
    assert data.findings.counts() == {"missing image": 1, "image without annotation": 1}
    with pytest.raises(UserError, match="absent.jpg: missing image"):
        build_data(coco_cfg(tmp_path), seed=0, max_bad_images=0)
    with pytest.raises(UserError, match="absent.jpg: missing image"):
        build_data(coco_cfg(tmp_path, strict=True), seed=0)


def test_missing_folder_and_files(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        build_data(coco_cfg(tmp_path / "absent"), seed=0)
    write_coco(tmp_path)
    with pytest.raises(UserError, match=r"val\.json: the COCO annotation file .* does not exist"):
        build_data(coco_cfg(tmp_path), seed=0)
    with pytest.raises(UserError, match=r"metadata\.jsonl: does not exist"):
        build_data(coco_cfg(tmp_path, source="imagefolder"), seed=0)
    with pytest.raises(UserError, match="no folder here, and the Hub cannot be reached"):
        build_data(coco_cfg("nobody/nothing-at-all", source="hub"), seed=0)


def test_broken_metadata_line_is_named(tmp_path):
    write_both(tmp_path, write_imagefolder)
    file = tmp_path / "train" / "metadata.jsonl"
    lines = file.read_text().splitlines()
    row = json.loads(lines[2])
    row["objects"]["category"] = []
    file.write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]))
    with pytest.raises(
        UserError, match=r"metadata.jsonl, line 3: broken row \(2 boxes, 0 categories"
    ):
        build_data(coco_cfg(tmp_path, source="imagefolder"), seed=0)


def test_bad_boxes_are_cleaned_and_counted(tmp_path):
    write_both(tmp_path)

    def plant(content):
        extra = [[5, 5, 0, 10], [200, 5, 10, 10], [80, 50, 100, 100], [5, 5, -3, 4]]
        for number, box in enumerate(extra):
            content["annotations"].append(
                {"id": 90 + number, "image_id": 10, "category_id": 1, "bbox": box}
            )
        content["annotations"].append(
            {"id": 99, "image_id": 10, "category_id": 1, "bbox": [float("nan"), 1, 2, 3]}
        )

    change(tmp_path, plant)
    data = build_data(coco_cfg(tmp_path), seed=0)
    assert data.findings.counts() == {
        "box without area": 1,
        "box with a negative side": 1,
        "box outside the image": 1,
        "box partly outside": 1,
        "box not a number": 1,
    }
    first = next(iter(data.findings))
    assert first.where.endswith("000.jpg, annotation 90")
    assert first.image == ("train", 0)
    assert data.train.records[0].objects.boxes.tolist() == [[10, 12, 30, 20], [80, 50, 16, 14]]


def test_exif_rotation_applies_to_size_and_pixels(tmp_path):
    write_both(tmp_path)
    file = tmp_path / "train" / "000.jpg"
    with Image.open(file) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif, quality=95)
    data = build_data(coco_cfg(tmp_path), seed=0)
    assert (data.train.records[0].width, data.train.records[0].height) == SIZES[0]
    assert_expected(data)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_every_mode_decodes_to_rgb(tmp_path, mode):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (32, 1))
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode == "CMYK":
        image = Image.fromarray(ramp).convert("RGB").convert("CMYK")
    else:
        image = Image.fromarray(ramp).convert(mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(file)
    decoded = decode(file, "x")
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - ramp[..., None]).max() <= 2


def test_truncated_image_is_named(tmp_path):
    write_both(tmp_path)
    file = tmp_path / "train" / "000.jpg"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(UserError, match="train/000.jpg"):
        decode(file, "train/000.jpg")


def test_synthetic_is_written_once_and_depends_on_the_seed(tmp_path):
    cfg = DataConfig(path=str(tmp_path), synthetic_train=6, synthetic_val=3)
    first = build_data(cfg, seed=3)
    files = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.jpg")}
    again = build_data(cfg, seed=3)
    assert len(files) == 9
    assert files == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.jpg")}
    assert first.fingerprint() == again.fingerprint()
    assert first.taxonomy.names == ("license_plate",)
    other = build_data(cfg, seed=4)
    assert other.fingerprint() != first.fingerprint()
    shutil.rmtree(tmp_path)
    assert build_data(cfg, seed=3).fingerprint() == first.fingerprint()


def test_splits_that_disagree_on_a_category_are_refused(tmp_path):
    write_both(tmp_path)

    def rename(content):
        content["categories"][0]["name"] = "cat"

    change(tmp_path, rename, "val")
    with pytest.raises(UserError, match="category id 1 is 'class1' in one split and 'cat'"):
        build_data(coco_cfg(tmp_path), seed=0)


def test_links_to_images_elsewhere_are_read(tmp_path):
    write_both(tmp_path)
    file = tmp_path / "train" / "000.jpg"
    file.rename(tmp_path / "store.jpg")
    file.symlink_to(tmp_path / "store.jpg")
    assert_expected(build_data(coco_cfg(tmp_path), seed=0))


@pytest.mark.parametrize("objects", [5, [1, 2], {"bbox": []}])
def test_objects_of_another_form_are_named(tmp_path, objects):
    write_both(tmp_path, write_imagefolder)
    file = tmp_path / "train" / "metadata.jsonl"
    lines = file.read_text().splitlines()
    row = json.loads(lines[1]) | {"objects": objects}
    file.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]))
    with pytest.raises(UserError, match=r"metadata.jsonl, line 2: broken row \(objects"):
        build_data(coco_cfg(tmp_path, source="imagefolder"), seed=0)
