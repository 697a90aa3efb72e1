"""Repaired copies of datasets whose label maps give every pixel a class, or a segment."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

import painted
import segmented
from builders import write_coco
from data.build import read_data
from data.check.doctor import check_images
from data.check.forms import ignored_value, keys_of_copy
from data.check.repair import write_repaired
from data.findings import Findings
from data.images.decode import decode
from data.taxonomy import Taxonomy
from errors import UserError
from painted import NAMES, VOID, labels_of, read_maps
from segmented import read_segments
from settings.keys import DataConfig
from tools import check_data


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def copied(cfg, folder, labels):
    """The dataset of `cfg` and its repaired copy; reading and looking at the copy finds nothing."""
    data = read_data(cfg, 0, Findings(), labels)
    findings = [*data.findings, *check_images(data, 1)]
    write_repaired(data, findings, folder)
    copy = read_data(DataConfig(**keys_of_copy(data, folder)), 0, Findings(), labels)
    assert [*copy.findings, *check_images(copy, 1)] == []
    return data, copy


def assert_equal(data, copy, labels):
    """Records, masks, classes and pixels are the same."""
    assert data.taxonomy == copy.taxonomy
    for ours, theirs in ((data.train, copy.train), (data.val, copy.val)):
        assert ours.dense == theirs.dense
        assert len(ours) == len(theirs) > 0
        for index, (a, b) in enumerate(zip(ours.records, theirs.records, strict=True)):
            assert (a.width, a.height) == (b.width, b.height)
            one, other = (decode(split.images[index], "") for split in (ours, theirs))
            np.testing.assert_array_equal(one, other)
            for key in ("boxes", "classes", "areas", "iscrowd"):
                np.testing.assert_array_equal(getattr(a.objects, key), getattr(b.objects, key))
            masks = [[mask.key() for mask in record.objects.masks] for record in (a, b)]
            assert masks[0] == masks[1]
        if labels == "segments":
            pairs = [read_segments(split, data.taxonomy) for split in (ours, theirs)]
            for (numbers, classes), (others, other_classes) in zip(*pairs, strict=True):
                np.testing.assert_array_equal(numbers, others)
                np.testing.assert_array_equal(classes, other_classes)


def ade(root):
    """0 is not known, and every other value is one more than its class."""
    cfg = painted.write_folders(root, edit=lambda a: np.where(a == VOID, 0, a + 1).astype("u1"))
    return replace(cfg, reduce_labels=True)


def black_and_white(root):
    """255 is a class, and 9 is ignored."""
    swaps = np.arange(256, dtype=np.uint8)
    swaps[[2, VOID]] = 255, 9
    cfg = painted.write_folders(root, edit=lambda a: swaps[a])
    return replace(cfg, label_values=[0, 1, 255], ignore_index=9)


def sixteen_bits(root):
    cfg = painted.write_folders(
        root, way="16-bit TIFF", edit=lambda a: np.where(a == 2, 40_000, a.astype(int))
    )
    (root / "id2label.json").write_text(json.dumps({"0": "sky", "1": "road", "40000": "car"}))
    return replace(cfg, labels=None)


def larger_maps(root):
    return painted.write_folders(root, edit=lambda a: a.repeat(3, axis=0).repeat(3, axis=1))


REGIONS = {
    "label_maps": painted.write_folders,
    "palette": lambda root: painted.write_folders(root, way="palette", ending="_mask"),
    "beside": lambda root: painted.write_folders(root, "{split}", "{split}"),
    "reduced": ade,
    "black and white": black_and_white,
    "16 bits": sixteen_bits,
    "larger than images": larger_maps,
    "imagefolder": painted.write_imagefolder,
    "hub": lambda root: painted.write_hub(root / "hub"),
    "hub, streamed": lambda root: painted.write_hub(root / "hub", streaming=True),
    "voc": painted.write_voc,
}


@pytest.mark.parametrize("form", REGIONS)
def test_copy_of_clean_label_maps_is_equal(tmp_path, form):
    data, copy = copied(REGIONS[form](tmp_path / "set"), tmp_path / "copy", "regions")
    assert len(data.train) == 4
    assert_equal(data, copy, "regions")
    assert (tmp_path / "copy/repairs.jsonl").read_text() == ""


SEGMENTS = {
    "coco": segmented.write_coco,
    "imagefolder": segmented.write_imagefolder,
    "hub": lambda root: segmented.write_hub(root / "hub"),
}


@pytest.mark.parametrize("form", SEGMENTS)
def test_copy_of_clean_segments_is_equal(tmp_path, form):
    data, copy = copied(SEGMENTS[form](tmp_path / "set"), tmp_path / "copy", "segments")
    assert_equal(data, copy, "segments")
    assert [record.objects.numbers.tolist() for record in copy.train.records] == [
        list(segmented.NUMBERS[1:])
    ] * 4
    assert copy.train.records[0].objects.iscrowd.sum() == 1


@pytest.mark.parametrize("form", SEGMENTS)
def test_segments_as_regions_keep_their_maps(tmp_path, form):
    cfg = replace(SEGMENTS[form](tmp_path / "set"), stuff=[])
    data, copy = copied(cfg, tmp_path / "copy", "regions")
    for number, labels in zip(range(4), read_maps(copy.train), strict=True):
        np.testing.assert_array_equal(labels, segmented.wanted_regions(number))
    assert data.taxonomy == copy.taxonomy


def test_things_of_a_panoptic_file_are_copied_as_objects(tmp_path):
    data, copy = copied(segmented.write_coco(tmp_path / "set"), tmp_path / "copy", "masks")
    assert data.taxonomy.names == segmented.THINGS
    assert_equal(data, copy, "masks")


def test_masks_of_voc_are_copied_as_objects(tmp_path):
    root = tmp_path / "set"
    cfg = replace(painted.write_voc(root), labels=["road", "car"])
    for split in painted.SPLITS:  # every class on an image is one object
        painted.write_maps(root / "SegmentationObject", split, edit=lambda a: (a % VOID) * 10)
    data, copy = copied(cfg, tmp_path / "copy", "masks")
    assert_equal(data, copy, "masks")
    assert any(record.objects.iscrowd.any() for record in copy.train.records)  # the border


@pytest.mark.parametrize("labels", ["regions", "segments"])
@pytest.mark.parametrize("ids", [(0, 1), (1, 3)])
def test_background_of_objects_is_the_same_class_in_the_copy(tmp_path, ids, labels):
    for split, num in (("train", 4), ("val", 2)):
        write_coco(tmp_path / "set", num, split, ids=ids, seed=num)
    cfg = DataConfig("coco", str(tmp_path / "set"), val_split="val")
    data = read_data(cfg, 0, Findings(), labels)
    write_repaired(data, [], tmp_path / "copy")
    copy = read_data(DataConfig(**keys_of_copy(data, tmp_path / "copy")), 0, Findings(), labels)
    assert data.taxonomy.names[0] == "background"
    assert data.taxonomy == copy.taxonomy


def test_turned_images_are_upright_in_the_copy_and_fit_their_label_maps(tmp_path):
    cfg = painted.write_folders(tmp_path / "set")
    file = tmp_path / "set/images/train/000.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.open(file).rotate(90, expand=True).save(file, exif=exif)
    data = read_data(cfg, 0, Findings(), "regions")
    assert [finding.kind for finding in data.findings] == ["EXIF-rotated image"]
    _, copy = copied(cfg, tmp_path / "copy", "regions")
    assert Image.open(tmp_path / "copy/images/train/000.jpg").size == (48, 32)
    np.testing.assert_array_equal(read_maps(copy.train)[0], painted.wanted(0))


def tree(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_defects_of_label_maps_are_gone_and_the_rest_is_as_it_was(tmp_path):
    root = tmp_path / "set"
    cfg = painted.write_folders(root)
    maps = root / "annotations/train"
    labels = labels_of(1)
    labels[:2, :3] = 77  # no class
    Image.fromarray(labels).save(maps / "001.png")
    Image.fromarray(labels_of(2)[:-8]).save(maps / "002.png")  # of another shape
    (root / "annotations/val/004.png").write_text("no picture")
    Image.open(root / "images/train/003.jpg").save(root / "images/train/more.jpg")
    before = tree(root)
    data, copy = copied(cfg, tmp_path / "copy", "regions")
    assert tree(root) == before
    assert [record.image_id for record in copy.train.records] == ["000.jpg", "001.jpg", "003.jpg"]
    assert [record.image_id for record in copy.val.records] == ["005.jpg"]
    written = {
        n: np.asarray(Image.open(tmp_path / f"copy/annotations/train/{n:03d}.png"))
        for n in (0, 1, 3)
    }
    np.testing.assert_array_equal(written[0], labels_of(0))
    np.testing.assert_array_equal(written[1], np.where(labels == 77, VOID, labels))
    lines = map(json.loads, (tmp_path / "copy/repairs.jsonl").read_text().splitlines())
    assert sorted(line["kind"] for line in lines) == [
        "label map of another size",
        "missing label map",
        "unknown category",
        "unreadable label map",
    ]


def test_defects_of_panoptic_files_are_gone_and_the_rest_is_as_it_was(tmp_path):
    root = tmp_path / "set"
    cfg = segmented.write_coco(root)
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segments_info"].pop(2)  # only on the picture
    content["annotations"][1]["segments_info"].append({"id": 99, "category_id": 1})  # only listed
    content["annotations"][2]["segments_info"][1]["category_id"] = 5  # unknown
    content["annotations"].pop(3)
    file.write_text(json.dumps(content))
    data, copy = copied(cfg, tmp_path / "copy", "segments")
    assert len(data.train) == 3
    assert_equal(data, copy, "segments")
    again = json.loads((tmp_path / "copy/annotations/train.json").read_text())
    numbers = [[s["id"] for s in entry["segments_info"]] for entry in again["annotations"]]
    full = list(segmented.NUMBERS[1:])
    assert numbers == [full[:2] + full[3:], full, full[:1] + full[2:]]


def test_images_of_one_name_and_hidden_ones_keep_their_label_maps(tmp_path):
    """Rows may name a.jpg and a.png; in folders the label map of both would be a.png."""
    cfg = painted.write_imagefolder(tmp_path / "set")
    train = tmp_path / "set/train"
    Image.open(train / "001.jpg").save(train / "000.png")
    (train / "001.jpg").unlink()
    (train / "002.jpg").rename(train / ".hidden.jpg")
    text = (train / "metadata.jsonl").read_text()
    text = text.replace("001.jpg", "000.png").replace("002.jpg", ".hidden.jpg")
    (train / "metadata.jsonl").write_text(text)
    _, copy = copied(cfg, tmp_path / "copy", "regions")
    found = dict(zip([r.image_id for r in copy.train.records], read_maps(copy.train), strict=True))
    names = ("000.jpg", "000-2.png", "hidden.jpg", "003.jpg")
    assert set(found) == set(names)
    for number, name in enumerate(names):
        np.testing.assert_array_equal(found[name], painted.wanted(number))


def test_image_without_any_known_pixel_stays_in(tmp_path):
    cfg = painted.write_folders(tmp_path / "set")
    Image.new("L", (48, 32), VOID).save(tmp_path / "set/annotations/train/000.png")
    data, copy = copied(cfg, tmp_path / "copy", "regions")
    assert_equal(data, copy, "regions")
    assert len(copy.train.records[0].objects) == 0


@pytest.mark.parametrize(
    ("ids", "wanted"), [((0, 1), 255), ((0, 255), 1), (tuple(range(256)), 256)]
)
def test_ignored_value_is_no_class(ids, wanted):
    assert ignored_value(Taxonomy(tuple(map(str, ids)), ids)) == wanted


def test_more_classes_than_a_picture_can_tell_apart_are_refused():
    ids = tuple(range(1 << 16))
    with pytest.raises(UserError, match="65536 classes are more than 16 bits hold"):
        ignored_value(Taxonomy(tuple(map(str, ids)), ids))


def run(folder, cfg, task, *more):
    """The tool on the data of `cfg`."""
    data = {key: value for key, value in asdict(cfg).items() if value != getattr(DataConfig(), key)}
    model = {"task": task, "head": "maskformer", "head_args": {}}
    file = folder / "config.yaml"
    train = {"train": {"steps": 9}, "optim": {"warmup_steps": 1}}
    file.write_text(json.dumps({"data": data, "model": model, **train}))
    return check_data.main(["--config", str(file), "--workers", "1", *map(str, more)])


def test_tool_prints_the_keys_that_read_the_copy(tmp_path, capsys):
    cfg = black_and_white(tmp_path / "set")
    copy = tmp_path / "a copy"
    assert run(tmp_path, cfg, "semantic_segmentation", "--repair", copy) == 0
    told = capsys.readouterr().out
    assert "; what it keeps: the class of every pixel\n" in told
    assert (
        f"train with --data.source label_maps --data.path '{copy}' --data.train_split train "
        "--data.val_split val --data.ignore_index 2\n"
        "and without data.label_values, data.labels, which the original needs"
    ) in told
    own = DataConfig("label_maps", str(copy), val_split="val", ignore_index=2)
    assert run(tmp_path, own, "semantic_segmentation") == 0


def test_tool_repairs_panoptic_files(tmp_path, capsys):
    cfg, copy = segmented.write_coco(tmp_path / "set"), tmp_path / "copy"
    assert run(tmp_path, cfg, "panoptic_segmentation", "--repair", copy) == 0
    assert f"train with --data.source coco --data.path {copy} " in capsys.readouterr().out
    own = DataConfig("coco", str(copy), val_split="val")
    assert run(tmp_path, own, "panoptic_segmentation") == 0


def test_names_are_those_of_the_dataset(tmp_path):
    copied(painted.write_folders(tmp_path / "set"), tmp_path / "copy", "regions")
    names = json.loads((tmp_path / "copy/id2label.json").read_text())
    assert names == {str(value): name for value, name in enumerate(NAMES)}
