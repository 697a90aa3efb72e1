import pytest

from data.build import build_data, read_data
from data.findings import KINDS, Findings
from errors import UserError
from formats import write_format
from found import edit_json, edit_line, found


# --- annotation files ----------------------------------------------------------------------------
def coco(place, value=None, **changes):
    """An edit of train.json: `value` put in place of, or `changes` made in, content[place]."""

    def edit(root):
        def change(content):
            key, index = place
            if changes:
                content[key][index] |= changes
                for name in [n for n, v in changes.items() if v is ABSENT]:
                    del content[key][index][name]
            else:
                content[key][index] = value

        edit_json(root / "annotations/train.json", change)

    return edit


ABSENT = object()


SECOND, IMAGE, CATEGORY = ("annotations", 1), ("images", 1), ("categories", 1)


COCO = {
    "annotation that is no object": (coco(SECOND, 5), "broken row", "annotations at place 1"),
    "no bbox": (coco(SECOND, bbox=ABSENT, segmentation=ABSENT), "broken row", "annotation 2"),
    "bbox of three": (coco(SECOND, bbox=[1, 2, 3]), "broken row", "002.jpg, annotation 2"),
    "bbox of texts": (coco(SECOND, bbox=list("1234")), "broken row", "002.jpg, annotation 2"),
    "bbox with null": (coco(SECOND, bbox=[1, 2, None, 4]), "broken row", "annotation 2"),
    "category that is a list": (coco(SECOND, category_id=[1]), "broken row", "annotation 2"),
    "category beyond int64": (coco(SECOND, category_id=2**70), "broken row", "annotation 2"),
    "area that is a text": (coco(SECOND, area="much"), "broken row", "annotation 2"),
    "iscrowd that is a text": (coco(SECOND, iscrowd="no"), "broken row", "annotation 2"),
    **{
        f"iscrowd that is {value!r}": (coco(SECOND, iscrowd=value), "broken row", "annotation 2")
        for value in ("1", "0", "", 0.5, 2.0, None, [], {}, 2, -1)
    },
    "no image_id": (coco(SECOND, image_id=ABSENT), "broken row", "train.json, annotation 2"),
    "image_id that is a list": (
        coco(SECOND, image_id=[1]),
        "broken row",
        "train.json, annotation 2",
    ),
    "no id": (coco(SECOND, id=ABSENT, bbox=0), "broken row", "002.jpg, annotation at place 1"),
    "empty segmentation": (coco(SECOND, bbox=None, segmentation=[]), "broken row", "annotation 2"),
    "RLE of another size": (
        coco(SECOND, bbox=None, segmentation={"size": [2, 2], "counts": [0, 9]}),
        "broken row",
        "annotation 2",
    ),
    "RLE of no size": (
        coco(SECOND, bbox=None, segmentation={"size": [0, 0], "counts": "0"}),
        "broken row",
        "annotation 2",
    ),
    "unknown category": (coco(SECOND, category_id=7), "unknown category", "002.jpg, annotation 2"),
    "same annotation id": (coco(SECOND, id=1), "duplicate annotation id", "annotation 1"),
    "image that is no object": (coco(IMAGE, None), "broken row", "images at place 1"),
    "image without id": (coco(IMAGE, id=ABSENT), "broken row", "image at place 1"),
    "image without file_name": (coco(IMAGE, file_name=ABSENT), "broken row", "image at place 1"),
    "same image id": (coco(IMAGE, id=10), "duplicate image id", "image at place 1"),
    "other size": (coco(IMAGE, width=65), "size differs from annotation", "001.jpg"),
    "parent folder": (coco(IMAGE, file_name="../a.jpg"), "path leaves the folder", "image 11"),
    "absolute path": (coco(IMAGE, file_name="/etc/a.jpg"), "path leaves the folder", "image 11"),
    "zero byte in a path": (coco(IMAGE, file_name="a\0.jpg"), "path leaves the folder", "image 11"),
    "overlong path": (coco(IMAGE, file_name="a" * 5000), "unreadable image", "aaa"),
    "surrogate in a path": (coco(IMAGE, file_name="\ud800.jpg"), "missing image", r"\ud800.jpg"),
    "category without name": (coco(CATEGORY, {"id": 3}), "broken row", "category at place 1"),
    "category id used twice": (coco(CATEGORY, {"id": 1, "name": "x"}), "broken row", "place 1"),
}


@pytest.mark.parametrize("case", COCO)
def test_coco_defects(tmp_path, case):
    spoil, kind, where = COCO[case]
    cfg = write_format(tmp_path, "coco")
    spoil(tmp_path)
    listed, data = found(cfg)
    assert any(k == kind and where in w for k, w in listed), listed
    assert all(text.isprintable() for pair in listed for text in pair)
    assert len(data.train) >= 7
    if KINDS[kind].remedy == "refused":
        with pytest.raises(UserError, match=kind):
            build_data(cfg, 0)


def test_all_defects_are_found_in_one_pass_and_twenty_are_listed(tmp_path):
    cfg = write_format(tmp_path, "coco")

    def spoil(content):
        for annotation in content["annotations"]:
            annotation["category_id"] = 99
        content["annotations"] += [{"id": 100 + n, "image_id": 500} for n in range(30)]
        content["images"].append({"id": 50})

    edit_json(tmp_path / "annotations/train.json", spoil)
    with pytest.raises(UserError) as error:
        build_data(cfg, 0)
    lines = str(error.value).splitlines()
    assert lines[0] == "the dataset has 39 defects that training cannot work around:"
    assert len(lines) == 1 + 20 + 2
    assert "and 19 more" in lines[-2]
    assert "tools.check_data" in lines[-1]


def jsonl(**changes):
    def edit(root):
        def change(row):
            for key, value in changes.items():
                target, _, name = key.rpartition("__")
                (row[target] if target else row)[name] = value

        edit_line(root / "train/metadata.jsonl", 2, change)

    return edit


def jsonl_text(text):
    return lambda root: edit_line(root / "train/metadata.jsonl", 2, lambda row: text)


ROWS = {
    "no JSON": (jsonl_text("{"), "broken row", "line 3"),
    "a number": (jsonl_text("5"), "broken row", "line 3"),
    "deep": (jsonl_text("[" * 100_000), "broken row", "line 3"),
    "no file_name": (jsonl(file_name=None), "broken row", "line 3"),
    "no lists": (jsonl(objects__bbox=5), "broken row", "line 3"),
    "other length": (jsonl(objects__area=[1.0]), "broken row", "line 3"),
    "box of three": (jsonl(objects__bbox=[[1, 2, 3], [5, 5, 9, 9]]), "broken row", "at place 0"),
    "name": (jsonl(objects__category=["car", "tram"]), "unknown category", "object at place 1"),
    "category": (jsonl(objects__category=[0, 9]), "unknown category", "object at place 1"),
    "same id": (jsonl(image_id=10), "duplicate image id", "line 3"),
    "id": (jsonl(image_id=[]), "broken row", "line 3"),
    "size": (jsonl(width=7), "size differs from annotation", "line 3"),
    "path": (jsonl(file_name="../val/000.jpg"), "path leaves the folder", "line 3"),
}


@pytest.mark.parametrize("case", ROWS)
def test_imagefolder_defects(tmp_path, case):
    spoil, kind, where = ROWS[case]
    cfg = write_format(tmp_path, "imagefolder")
    spoil(tmp_path)
    listed, data = found(cfg)
    assert any(k == kind and where in w for k, w in listed), listed
    assert len(data.train) >= 7


def test_names_as_categories_of_an_image_folder(tmp_path):
    cfg = write_format(tmp_path, "imagefolder")
    jsonl(objects__category=["plate", "car"])(tmp_path)
    listed, data = found(cfg)
    assert not listed
    assert data.train.records[2].objects.classes.tolist() == [1, 0]


def voc(old, new, count=1):
    def edit(root):
        file = root / "Annotations/train_002.xml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, count))

    return edit


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation>'


VOC = {
    "no XML": (voc("</annotation>", ""), "broken row", "train_002.xml"),
    "entities": (voc("<annotation>", BOMB), "broken row", "train_002.xml"),
    "deep": (voc("<object>", "<a>" * 100_000), "broken row", "train_002.xml"),
    "other root": (voc("annotation>", "note>", 2), "broken row", "train_002.xml"),
    "no name": (voc("<name>car</name>", ""), "broken row", "train_002.xml, object 1"),
    "no corner": (voc("<ymax>", "<ymin>"), "broken row", "train_002.xml"),
    "corner": (voc("<xmin>6<", "<xmin>six<"), "broken row", "train_002.xml, object 1"),
    "not a number": (voc("<xmin>6<", "<xmin>nan<"), "box not a number", "object 1"),
    "inverted": (voc("<xmin>6<", "<xmin>60<"), "box inverted", "train_002.xml, object 1"),
    "size": (voc("<width>96<", "<width>97<"), "size differs from annotation", "train_002.xml"),
    "path": (voc("train_002.jpg", "/etc/a.jpg"), "path leaves the folder", "train_002.xml"),
}


@pytest.mark.parametrize("case", VOC)
def test_voc_defects(tmp_path, case):
    spoil, kind, where = VOC[case]
    cfg = write_format(tmp_path, "voc")
    spoil(tmp_path)
    listed, data = found(cfg)
    assert any(k == kind and where in w for k, w in listed), listed
    assert len(data.train) >= 7


def test_voc_inverted_corners_are_swapped(tmp_path):
    cfg = write_format(tmp_path, "voc")
    file = tmp_path / "Annotations/train_000.xml"
    text = file.read_text().replace("<xmin>11<", "<xmin>40<").replace("<xmax>40<", "<xmax>11<")
    file.write_text(text)
    _, data = found(cfg)
    assert data.train.records[0].objects.boxes.tolist() == [[10, 12, 30, 20]]


def test_voc_image_sets(tmp_path):
    cfg = write_format(tmp_path, "voc", labels=["car"])
    names = tmp_path / "ImageSets/Main/train.txt"
    names.write_text("train_000  1\ntrain_002 -1\nabsent\ntrain_000\n../../x\ntrain_003\n")
    (tmp_path / "Annotations/train_003.xml").unlink()
    listed, data = found(cfg)
    assert [r.image_id for r in data.train.records] == ["train_000", "train_002"]
    assert [kind for kind, _ in listed] == [
        "unknown category",  # plate in train_002
        "broken row",  # absent
        "duplicate image id",
        "path leaves the folder",
        "image without annotation",  # train_003
        "unknown category",  # plate in val_002
    ]


def yolo(text):
    return lambda root: (root / "labels/train/000.txt").write_text(text)


def yolo_orphan(root):
    (root / "labels/train/999.txt").write_text("0 .5 .5 .1 .1\n")


def yolo_names(root):
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: car, x: y}")


YOLO = {
    "text": (yolo("0 a b c d\n"), "broken row", "000.txt"),
    "four numbers": (yolo("\n0 .5 .5 .1\n"), "broken row", "labels/train/000.txt, line 2"),
    "odd polygon": (yolo("0 .5 .5 .1 .1 .2 .2 .3\n"), "broken row", "labels/train/000.txt, line 1"),
    "class": (yolo("0.5 .5 .5 .1 .1\n"), "broken row", "labels/train/000.txt, line 1"),
    "negative class": (yolo("-1 .5 .5 .1 .1\n"), "broken row", "labels/train/000.txt, line 1"),
    "unknown class": (yolo("7 .5 .5 .1 .1\n"), "unknown category", "labels/train/000.txt, line 1"),
    "bytes": (
        lambda root: (root / "labels/train/000.txt").write_bytes(b"\xff\xfe"),
        "broken row",
        "",
    ),
    "pixels": (yolo("0 50 50 10 10\n"), "box outside the image", "labels/train/000.txt, line 1"),
    "nan": (yolo("0 nan .5 .1 .1\n"), "box not a number", "labels/train/000.txt, line 1"),
    "negative": (
        yolo("0 .5 .5 -.1 .1\n"),
        "box with a negative side",
        "labels/train/000.txt, line 1",
    ),
    "twice": (yolo("0 .5 .5 .1 .1\n" * 2), "duplicate box", "labels/train/000.txt, line 2"),
    "label without image": (yolo_orphan, "annotation without image", "999.txt"),
    "names": (yolo_names, "broken row", "data.yaml, names"),
}


@pytest.mark.parametrize("case", YOLO)
def test_yolo_defects(tmp_path, case):
    spoil, kind, where = YOLO[case]
    cfg = write_format(tmp_path, "yolo")
    spoil(tmp_path)
    listed, data = found(cfg)
    assert any(k == kind and where in w for k, w in listed), listed
    assert len(data.train) == 8


def test_yolo_lists_that_lead_out(tmp_path):
    cfg = write_format(tmp_path, "yolo")
    (tmp_path / "some.txt").write_text("images/train/000.jpg\n/etc/a.jpg\n../b.jpg\n")
    text = "path: /nowhere\ntrain: some.txt\nval: images/val\nnames: [car, plate]"
    (tmp_path / "data.yaml").write_text(text)
    listed, data = found(cfg)
    kind = "path leaves the folder"
    assert listed == [(kind, f"{tmp_path}/some.txt, line {n}") for n in (2, 3)]
    assert len(data.train) == 1


def test_messages_cannot_move_the_cursor(tmp_path):
    cfg = write_format(tmp_path, "coco")
    coco(IMAGE, file_name="\x1b[2Jgone\n.jpg")(tmp_path)
    findings = Findings()
    read_data(cfg, 0, findings)
    assert [str(f) for f in findings if f.kind == "missing image"] == [
        f"{tmp_path}/train/\\x1b[2Jgone\\n.jpg: missing image"
    ]
