"""Masks of COCO files: every way to write them, every way to get them wrong."""

import json
import random
import resource

import numpy as np
import pytest
from pycocotools import mask as reference

from builders import write_coco
from data.build import build_data, read_data
from data.findings import Findings
from data.masks import Polygons, Rle, pixels_of, to_rle
from data.sources.segmentations import mask_of_segmentation
from errors import UserError
from formats import write_format
from settings.keys import DataConfig
from tools import check_data

SIZE = (64, 96)
TRIANGLE = [[10.0, 10, 60, 12, 30, 50]]


def as_rle(polygons, size=SIZE, compressed=True):
    rle = reference.merge(reference.frPyObjects(polygons, *size))
    counts = rle["counts"].decode()
    if compressed:
        return {"size": list(size), "counts": counts}
    flat = reference.decode(rle).ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(size), "counts": np.diff([0, *changes, len(flat)]).tolist()}


WAYS = {
    "polygons": TRIANGLE,
    "one polygon": TRIANGLE[0],
    "compressed": as_rle(TRIANGLE),
    "run lengths": as_rle(TRIANGLE, compressed=False),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_a_mask_gives_the_same_pixels(way):
    mask = mask_of_segmentation(WAYS[way], SIZE)
    wanted = reference.decode({**as_rle(TRIANGLE)})
    plane = np.zeros(SIZE, np.uint8)
    plane[pixels_of(mask, SIZE)] = 1
    np.testing.assert_array_equal(plane, wanted)
    assert to_rle(mask, SIZE).counts.decode() == as_rle(TRIANGLE)["counts"]


BROKEN = {
    "none": (None, "no mask"),
    "empty list": ([], "no mask"),
    "a text": ("mask", "broken mask"),
    "odd numbers": ([[1, 2, 3, 4, 5, 6, 7]], "broken mask"),
    "texts": ([["1", "2", "3", "4", "5", "6"]], "broken mask"),
    "nan": ([[1, 2, 3, 4, 5, float("nan")]], "broken mask"),
    "infinite": ([[1, 2, 3, 4, 5, float("inf")]], "broken mask"),
    "two corners": ([[1, 2, 3, 4]], "mask without area"),
    "counts beyond the picture": ({"size": [4, 4], "counts": [10, 10]}, "broken mask"),
    "negative counts": ({"size": [4, 4], "counts": [10, -3, 5]}, "broken mask"),
    "no counts": ({"size": [4, 4]}, "broken mask"),
    "size of one": ({"size": [4], "counts": [16]}, "broken mask"),
    "size of zero": ({"size": [0, 4], "counts": []}, "broken mask"),
    "huge size": ({"size": [10**6, 10**6], "counts": [10**12]}, "broken mask"),
    "characters that are none": ({"size": [4, 4], "counts": "é~"}, "broken mask"),
    "nothing covered": ({"size": [4, 4], "counts": [16]}, "mask without area"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_mask_is_said(case):
    segmentation, kind = BROKEN[case]
    assert mask_of_segmentation(segmentation, SIZE) == kind


def edited(tmp_path, edit):
    write_coco(tmp_path, 8)
    file = tmp_path / "annotations/train.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return DataConfig(source="coco", path=str(tmp_path), val_fraction=0.25)


PLANTED = {
    "no mask": lambda a: a.pop("segmentation"),
    "mask without area": lambda a: a.update(segmentation=[[1, 1, 5, 5]]),
    "mask of another size": lambda a: a.update(segmentation=as_rle(TRIANGLE, (50, 300))),
    "mask outside the image": lambda a: a.update(segmentation=[[500, 500, 600, 500, 600, 600]]),
    "mask and box disagree": lambda a: a.update(segmentation=[[60, 40, 90, 40, 90, 60]]),
    "broken mask": lambda a: a.update(segmentation=[[1, 2, 3]]),
    "mask ring without area": lambda a: a["segmentation"].append([1, 1, 5, 5]),
}
KEPT = {"mask and box disagree", "mask ring without area"}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_defects_are_named_once_and_by_their_annotation(tmp_path, kind):
    cfg = edited(tmp_path, lambda content: PLANTED[kind](content["annotations"][0]))
    findings = Findings()
    data = read_data(cfg, 0, findings, labels="masks")
    ((found),) = [f for f in findings if "mask" in f.kind]
    assert found.kind == kind
    assert "000.jpg, annotation 1" in found.where
    kept = sum(len(record.objects) for record in [*data.train.records, *data.val.records])
    assert kept == (8 if kind in KEPT else 7)
    if kind == "broken mask":
        with pytest.raises(UserError, match=r"000.jpg, annotation 1: broken mask"):
            build_data(cfg, 0, labels="masks")


@pytest.mark.parametrize("thin", [[], [7, 7], [1, 1, 5, 5]])
def test_rings_that_are_left_out_are_counted_and_change_nothing_else(tmp_path, thin):
    def plant(content):
        first = content["annotations"][0]
        first["segmentation"] = [*first["segmentation"], thin, [50, 50, 60, 50, 60, 60], thin]

    data = read_data(edited(tmp_path, plant), 0, findings := Findings(), labels="masks")
    ((found),) = [f for f in findings if "ring" in f.kind]
    assert (found.remedy, found.detail) == ("repaired", "2 of 4 outlines, place 1")
    record = next(r for r in data.train.records if "000.jpg" in r.where)
    assert [len(ring) for ring in record.objects.masks[0].rings] == [5, 3]


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [500, 500, 5, 5], [float("nan")] * 4])
def test_a_good_mask_with_a_bad_box_is_kept_and_gives_the_box(tmp_path, box):
    cfg = edited(tmp_path, lambda content: content["annotations"][0].update(bbox=box, area=0))
    data = read_data(cfg, 0, findings := Findings(), labels="masks")
    record = next(r for r in data.train.records if "000.jpg" in r.where)
    np.testing.assert_allclose(record.objects.boxes, [[10, 12, 30, 20]])
    (mask,) = record.objects.masks
    assert record.objects.areas.tolist() == [len(pixels_of(mask, (64, 96))[0])]
    assert [f.kind for f in findings] == ["mask and box disagree"]


def test_segmentations_of_any_kind_do_not_matter_to_detection(tmp_path):
    cfg = write_format(tmp_path, "imagefolder")
    file = tmp_path / "train/metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["objects"]["segmentation"] = {"size": [1, 2], "counts": "x"}
    rows[2]["objects"]["segmentation"] = [1]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_data(cfg, 0, Findings()).train.objects) == 8
    read_data(cfg, 0, findings := Findings(), labels="masks")
    assert {f.where.split(", ")[1] for f in findings if f.kind == "broken row"} == {
        "line 1",
        "line 3",
    }


def test_run_lengths_of_another_size_of_the_picture_are_scaled(tmp_path):
    def double(content):
        twice = [[2 * v for v in TRIANGLE[0]]]
        content["annotations"][0]["segmentation"] = as_rle(twice, (128, 192))

    data = read_data(edited(tmp_path, double), 0, findings := Findings(), labels="masks")
    assert not [f for f in findings if "size" in f.kind]
    (mask,) = next(r for r in data.train.records if "000.jpg" in r.where).objects.masks
    assert mask.size == (128, 192)
    wanted = int(reference.area(as_rle(TRIANGLE)))
    assert len(pixels_of(mask, SIZE)[0]) == pytest.approx(wanted, abs=40)


def test_boxes_alone_are_no_dataset_for_masks(tmp_path):
    cfg = edited(tmp_path, lambda c: [a.pop("segmentation") for a in c["annotations"]])
    with pytest.raises(UserError, match="not one valid mask"):
        read_data(cfg, 0, Findings(), labels="masks")
    assert len(read_data(cfg, 0, Findings()).train.objects)


def test_other_masks_are_another_dataset(tmp_path):
    cfg = edited(tmp_path, lambda content: None)
    before = build_data(cfg, 0, labels="masks").fingerprint()
    assert build_data(cfg, 0, labels="masks").fingerprint() == before
    other = edited(tmp_path, lambda c: c["annotations"][0]["segmentation"][0].__setitem__(0, 11))
    assert build_data(other, 0, labels="masks").fingerprint() != before


def test_sources_without_masks_say_so(tmp_path):
    with pytest.raises(UserError, match=r"ImageSets/Segmentation/train.txt: does not exist"):
        read_data(DataConfig(source="voc", path=str(tmp_path)), 0, Findings(), labels="masks")


def test_the_doctor_names_each_defect_of_masks_once_and_repairs_what_it_can(tmp_path, capsys):
    def plant(content):
        for annotation, edit in zip(content["annotations"], PLANTED.values(), strict=False):
            edit(annotation)

    cfg = edited(tmp_path / "data", plant)
    write_coco(tmp_path / "data", 4, "val", seed=1)
    (tmp_path / "empty.yaml").write_text("train: {epochs: 1}\n")
    arguments = ["--config", str(tmp_path / "empty.yaml"), "--data.source", "coco"]
    arguments += ["--data.val_split", "val", "--model.task", "instance_segmentation"]
    arguments += ["--model.head", "maskformer", "--workers", "1"]
    found = tmp_path / "found.json"
    more = ["--json", str(found), "--repair", str(tmp_path / "copy")]
    assert check_data.main([*arguments, "--data.path", cfg.path, *more]) == 1
    kinds = [f["kind"] for f in json.loads(found.read_text())["findings"] if "mask" in f["kind"]]
    assert sorted(kinds) == sorted(PLANTED)
    again = [*arguments, "--data.path", str(tmp_path / "copy")]
    capsys.readouterr()
    assert check_data.main(again) == 0
    left = [line for line in capsys.readouterr().out.splitlines() if "mask" in line]
    assert not [line for line in left if "[" in line]  # boxes are those of the masks now
    data = read_data(
        DataConfig(source="coco", path=str(tmp_path / "copy")), 0, Findings(), labels="masks"
    )
    before = read_data(cfg, 0, Findings(), labels="masks")
    assert pixels(before) == pixels(data)


@pytest.mark.parametrize("name", ["imagefolder", "hub", "hub streamed", "yolo polygons"])
def test_every_format_gives_the_masks_of_coco(tmp_path, name, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wanted = build_data(write_format(tmp_path / "a", "coco"), 0, labels="masks")
    data = build_data(write_format(tmp_path / "b", name), 0, labels="masks")
    for split, other in ((data.train, wanted.train), (data.val, wanted.val)):
        assert len(split.objects) == len(other.objects) > 0
        for record, twin in zip(split.records, other.records, strict=True):
            size = (record.height, record.width)
            own = [] if record.objects.masks is None else record.objects.masks
            theirs = [] if twin.objects.masks is None else twin.objects.masks
            assert [to_rle(m, size) for m in own] == [to_rle(m, size) for m in theirs]


def pixels(data):
    """Of every mask of a dataset, in no order."""
    return sorted(
        len(pixels_of(mask, (record.height, record.width))[0])
        for record in [*data.train.records, *data.val.records]
        for mask in ([] if record.objects.masks is None else record.objects.masks)
    )


def mutant(rng):
    """Polygons or run lengths with something wrong in them, most of the time."""
    numbers = [0, -1, 1.5, 63, 96, 1e9, -1e9, 1e300, float("nan"), float("inf"), 2**70, None, "7"]
    if rng.random() < 0.5:
        polygons = [
            [rng.uniform(-20, 120) for _ in range(rng.choice([0, 3, 4, 6, 8, 40, 400]))]
            for _ in range(rng.choice([1, 1, 2, 5]))
        ]
        for _ in range(rng.choice([0, 1, 3])):
            polygon = rng.choice(polygons)
            if polygon:
                polygon[rng.randrange(len(polygon))] = rng.choice(numbers)
        return rng.choice([polygons, polygons, polygons[0], [polygons], {"size": polygons}])
    rle = dict(rng.choice([as_rle(TRIANGLE), as_rle(TRIANGLE, compressed=False)]))
    counts = rle["counts"]
    place = rng.randrange(len(counts))
    if isinstance(counts, str):
        piece = "".join(chr(rng.randrange(30, 200)) for _ in range(rng.choice([0, 1, 5, 50])))
        rle["counts"] = counts[:place] + piece + counts[place + rng.choice([0, 1, 9]) :]
    else:
        rle["counts"] = [*counts[:place], rng.choice([*numbers, 5, 100]), *counts[place + 1 :]]
    if rng.random() < 0.3:
        rle["size"] = [rng.choice([*numbers, 64, 96, 1, 10**5]) for _ in range(2)]
    return rle


def test_five_thousand_mutants_are_read_or_refused():
    rng = random.Random(0)
    read = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5000):
        mask = mask_of_segmentation(mutant(rng), SIZE)
        if isinstance(mask, str):
            assert mask in {"no mask", "broken mask", "mask without area"}
            continue
        assert isinstance(mask, (Polygons, Rle))
        rows, columns = pixels_of(mask, SIZE)
        assert ((rows >= 0) & (rows < SIZE[0]) & (columns >= 0) & (columns < SIZE[1])).all()
        assert to_rle(mask, SIZE).size == SIZE
        read += 1
    assert 800 < read < 4000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
