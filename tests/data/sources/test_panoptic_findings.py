"""What can be wrong with panoptic label maps: each defect is named once, with its file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import segmented
from found import edit_json, edit_line
from painted import found
from segmented import NUMBERS, as_png, parts_of


@pytest.fixture(autouse=True)
def _own_caches_here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def edit_coco(root, edit):
    """Change the annotation of the second image."""
    edit_json(root / "annotations/train.json", lambda c: edit(c["annotations"][1], "file_name"))


def edit_imagefolder(root, edit):
    lines = root / "train/metadata.jsonl"
    edit_line(lines, 1, lambda row: edit(row, "label_map_file_name"))


FORMS = {
    "coco": (segmented.write_coco, edit_coco, "annotations/train", "train/001.jpg"),
    "imagefolder": (
        segmented.write_imagefolder,
        edit_imagefolder,
        "train/maps",
        "metadata.jsonl, line 2",
    ),
}
"""How to write it, how to change the second image's entry, folder of label maps, what findings name"""


def picture(edit):
    """Put a picture in the place of the second image's label map."""
    return lambda file: edit(parts_of(1)).save(file)


UNREADABLE, SIZE, BOTH = (
    "unreadable label map",
    "label map of another size",
    "segments and label map disagree",
)
FILES = {
    "absent": (lambda file: file.unlink(), "missing label map", "001.png"),
    "no picture": (lambda file: file.write_text("x"), UNREADABLE, "not a picture"),
    "cut off": (lambda f: f.write_bytes(f.read_bytes()[:60]), UNREADABLE, "cannot be decoded"),
    "JPEG": (lambda f: as_png(parts_of(1)).save(f, "JPEG"), UNREADABLE, "a JPEG file"),
    "another shape": (
        picture(lambda a: as_png(a[:-4])),
        SIZE,
        "32 x 44 px, the image has 32 x 48",
    ),
    "turned": (picture(lambda a: as_png(a.T)), SIZE, "48 x 32 px"),
    "number that is not listed": (
        picture(lambda a: Image.fromarray(np.array(as_png(a)) + np.uint8([[[4, 0, 0]]]))),
        BOTH,
        "segment(s) ",
    ),
    "listed one without pixels": (
        picture(lambda a: as_png(np.where(a == 3, 0, a))),
        BOTH,
        "segment(s) 70000 are in one of them alone",
    ),
}
"""What is done to the file, what is found, and what is said"""
KEPT = {"number that is not listed", "listed one without pixels"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", FILES)
def test_defects_of_files(tmp_path, form, case):
    write, _, maps, named = FORMS[form]
    plant, kind, said = FILES[case]
    cfg = write(tmp_path)
    plant(tmp_path / maps / "001.png")
    ((found_kind, text),), data = found(cfg, "segments")
    assert found_kind == kind
    assert named in text
    assert said in text
    assert len(data.train) == (4 if case in KEPT else 3)


def test_link_that_leads_out_of_the_dataset(tmp_path):
    cfg = segmented.write_coco(tmp_path / "set")
    file = tmp_path / "set/annotations/train/001.png"
    file.rename(tmp_path / "elsewhere.png")
    file.symlink_to(tmp_path / "elsewhere.png")
    ((kind, text),), data = found(cfg, "segments")
    assert kind == "path leaves the folder"
    assert "train.json, image 11: " in text
    assert "001.png links to" in text
    assert len(data.train) == 3


def with_segments(edit):
    def change(row, _):
        edit(row["segments_info"])

    return change


def names_a_file(name):
    return lambda row, key: row.update({key: name})


NEEDS = "needs an id of its own and a category_id"
ENTRIES = {
    "no list": (lambda row, _: row.update(segments_info="x"), "broken row", "'x', not a list"),
    "nothing": (lambda row, _: row.update(segments_info=None), "broken row", "None, not a list"),
    "no table": (with_segments(lambda s: s.append(3)), "broken row", f"place 7: 3 {NEEDS}"),
    "id twice": (with_segments(lambda s: s[2].update(id=7)), "broken row", NEEDS),
    "no id": (with_segments(lambda s: s[0].pop("id")), "broken row", "segment at place 0"),
    "id 0": (with_segments(lambda s: s[1].update(id=0)), "broken row", "segment at place 1"),
    "no category": (with_segments(lambda s: s[4].pop("category_id")), "broken row", NEEDS),
    **{
        f"iscrowd {value!r}": (
            with_segments(lambda s, value=value: s[3].update(iscrowd=value)),
            "broken row",
            f"segment at place 3: iscrowd is {value!r}, neither 0 nor 1",
        )
        for value in ("1", "", "no", 0.5, 2, -1)
    },
    "one not listed": (with_segments(lambda s: s.pop(2)), BOTH, "segment(s) 70000 are"),
    "one too many": (
        with_segments(lambda s: s.append({"id": 99, "category_id": 1})),
        BOTH,
        "segment(s) 99 are in one of them alone",
    ),
    "unknown category": (
        with_segments(lambda s: s[2].update(category_id=5)),
        "unknown category",
        "segment 70000: id 5, not among [",
    ),
    "no file": (names_a_file(None), "missing label map", ""),
    "file of a number": (names_a_file(3), "missing label map", ""),
    "file that is not there": (names_a_file("no.png"), "missing label map", "no.png"),
    "file outside": (names_a_file("../../x.png"), "path leaves the folder", "'../../x.png' is not"),
    "file at the root": (names_a_file("/etc/x.png"), "path leaves the folder", "'/etc/x.png' is"),
}
"""What is done to the entry of an image, what is found, and what is said"""
STILL_KEPT = {"one not listed", "one too many", "unknown category"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", ENTRIES)
def test_defects_of_entries(tmp_path, form, case):
    write, edit, _, named = FORMS[form]
    change, kind, said = ENTRIES[case]
    cfg = write(tmp_path)
    edit(tmp_path, change)
    findings, data = found(cfg, "segments")
    stray = [f for f in findings if f[0] == "image without annotation"]
    ((found_kind, text),) = [f for f in findings if f not in stray]
    assert len(stray) == (form == "imagefolder" and "file" in case)  # the label map that was named
    assert found_kind == kind
    assert named in text or (kind == "path leaves the folder" and "train.json, image 11" in text)
    assert said in text
    assert len(data.train) == (4 if case in STILL_KEPT else 3)


@pytest.mark.parametrize("form", FORMS)
def test_iscrowd_of_null_is_not_there_in_a_table_and_broken_in_a_file(tmp_path, form):
    write, edit, *_ = FORMS[form]
    cfg = write(tmp_path)
    edit(tmp_path, with_segments(lambda segments: segments[0].update(iscrowd=None)))
    findings, _ = found(cfg, "segments")
    said = [text for kind, text in findings if kind == "broken row"]
    assert len(said) == len(findings) == (form == "coco")
    assert all("segment at place 0: iscrowd is None" in text for text in said)


@pytest.mark.parametrize("form", FORMS)
def test_pixels_of_no_listed_segment_are_not_known(tmp_path, form):
    write, edit, *_ = FORMS[form]
    cfg = write(tmp_path)
    edit(tmp_path, with_segments(lambda segments: segments.pop(2)))
    _, data = found(cfg, "segments")
    segments, classes = segmented.read_segments(data.train, data.taxonomy)[1]
    expected = np.array([0, 1, 2, 0, 3, 4, 0, 3])[parts_of(1)]
    np.testing.assert_array_equal(segments, expected)
    assert classes.tolist() == [0, 0, 2, 3]


def test_image_without_annotation(tmp_path):
    cfg = segmented.write_coco(tmp_path)
    edit_json(tmp_path / "annotations/train.json", lambda c: c["annotations"].pop(1))
    ((kind, text),), data = found(cfg, "segments")
    assert kind == "missing label map"
    assert "train/001.jpg: no annotation in" in text
    assert len(data.train) == 3


def test_image_that_cannot_be_read_counts_as_missed_in_validation_alone(tmp_path):
    cfg = segmented.write_coco(tmp_path)
    for file in ("train/001.jpg", "val/004.jpg"):
        (tmp_path / file).write_bytes(b"no image")
    findings, data = found(cfg, "segments")
    assert [kind for kind, _ in findings] == ["unreadable image"] * 2
    assert (len(data.train), len(data.val)) == (3, 2)
    assert [record.unreadable for record in data.val.records] == [True, False]
    segments, _ = segmented.read_segments(data.val, data.taxonomy)[0]
    np.testing.assert_array_equal(segments, segmented.wanted(4))


def test_categories_that_do_not_say_what_is_stuff(tmp_path):
    cfg = segmented.write_coco(tmp_path)
    for file in tmp_path.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category.pop("isthing")
        file.write_text(json.dumps(content))
    findings, data = found(cfg, "segments")
    assert findings == []
    assert data.taxonomy.stuff == ()
    segments, classes = segmented.read_segments(data.train, data.taxonomy)[0]
    np.testing.assert_array_equal(segments, np.array([0, 1, 2, 3, 4, 5, 0, 6])[parts_of(0)])
    assert classes.tolist() == [0, 0, 1, 2, 3, 2]
    assert data.train.records[0].objects.numbers.tolist() == list(NUMBERS[1:])


@pytest.mark.parametrize("labels", ["segments", "regions"])
def test_row_without_segments_beside_rows_with_them_is_named(tmp_path, labels):
    """Its numbers of segments would be taken for classes."""
    cfg = segmented.write_imagefolder(tmp_path)
    if labels == "regions":
        cfg = replace(cfg, stuff=[])
    edit_line(tmp_path / "train/metadata.jsonl", 1, lambda row: row.__delitem__("segments_info"))
    ((kind, text),), data = found(cfg, labels)
    assert kind == "broken row"
    assert "metadata.jsonl, line 2: it has no segments_info, and other rows have" in text
    assert len(data.train) == 3


def test_ids_of_segments_classes_are_no_values(tmp_path):
    """What is ignored in label maps of classes does not matter to those of segments."""
    cfg = replace(segmented.write_imagefolder(tmp_path), ignore_index=2)
    findings, data = found(cfg, "segments")
    assert findings == []
    assert data.taxonomy.names == segmented.NAMES
