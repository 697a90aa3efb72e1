import json

import numpy as np
import pytest
from PIL import Image

from builders import launch, write_coco
from data.findings import GUESSED_KINDS, KINDS, MASK_KINDS, REMEDIES
from data.images.decode import decode
from errors import UserError
from formats import WRITERS, write_parquet, write_yolo
from painted import write_folders
from planted import NOT_COCO, OF_YOLO, write_clean, write_planted, write_planted_rows
from tools import check_data


def arguments(root, *more, source="coco"):
    empty = root.parent / "empty.yaml"
    empty.write_text("train: {epochs: 1}\ndata: {image_size: {longest: 192}}\n")
    keys = ["--data.source", source, "--data.path", str(root), "--data.val_split", "val"]
    return ["--config", str(empty), *keys, "--workers", "2", *map(str, more)]


def check(root, *more, source="coco"):
    """Exit status and content of the JSON."""
    file = root.parent / "found.json"
    status = check_data.main(arguments(root, "--json", file, *more, source=source))
    return status, json.loads(file.read_text())


def tree(root):
    """Content of every file below `root`."""
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(expected places, findings, text) of the planted set and of the planted rows."""
    import contextlib
    import io

    results = []
    for write, source, more in (
        (write_planted, "coco", ()),
        (write_planted_rows, "imagefolder", ("--data.box_format", "pascal_voc")),
    ):
        root = tmp_path_factory.mktemp("planted") / "data"
        expected = write(root)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status, content = check(root, *more, source=source)
        assert status == content["exit_status"] == 1
        results.append((expected, content["findings"], out.getvalue()))
    return results


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in MASK_KINDS | OF_YOLO | set(GUESSED_KINDS)]
)
def test_every_planted_defect_is_found_at_its_place_and_nowhere_else(planted, kind):
    assert any(kind in expected for expected, _, _ in planted)
    for expected, findings, text in planted:
        found = [f["where"] for f in findings if f["kind"] == kind]
        assert len(found) == (kind in expected)
        if kind in expected:
            assert found[0].endswith(expected[kind]) or f"{expected[kind]}," in found[0]
            assert f"\n{kind}: 1  [{REMEDIES[KINDS[kind].remedy]}]" in text
            assert expected[kind] in text


def test_planted_set_has_defects_enough(planted):
    assert len(planted[0][0]) == len(KINDS) - len(NOT_COCO | MASK_KINDS | set(GUESSED_KINDS)) >= 24


def test_every_kind_is_explained():
    assert all(kind.advice for kind in KINDS.values())
    single = [kind for name, kind in KINDS.items() if name not in GUESSED_KINDS]
    assert all(kind.repaired or kind.remedy == "noted" for kind in single)


def test_clean_twin_has_no_finding(tmp_path, capsys):
    status, content = check(write_clean(tmp_path / "data"))
    assert (status, content["findings"]) == (0, [])
    assert content["splits"]["train"]["boxes"] == content["splits"]["train"]["images"]
    assert capsys.readouterr().out.startswith("NO DEFECTS in 34 train images and 7 val images\n")


@pytest.mark.parametrize("form", ["coco", "yolo", "yolo polygons", "voc", "label maps"])
def test_a_folder_alone_is_recognised(tmp_path, capsys, form):
    """And nothing is said of a configuration that nobody has given."""
    if form == "label maps":
        write_folders(tmp_path)
    else:
        WRITERS[form][0](tmp_path, 8, "train", 0)
        WRITERS[form][0](tmp_path, 4, "val", 1)
    page = tmp_path / "data.html"
    asked = ["--workers", "1", "--data.num_workers", "0", "--html", str(page)]
    assert check_data.main([str(tmp_path), *asked]) == 0
    assert "No --config was given: sizes below" in page.read_text()
    said = capsys.readouterr().out
    assert said.startswith("NO DEFECTS")
    assert "No --config was given: sizes below" in said
    assert "For this configuration" not in said
    assert "queries" not in said
    given = ["--config", "configs/debug.yaml", str(tmp_path), "--workers", "1"]
    if form not in ("label maps", "yolo polygons", "coco"):
        check_data.main(given)
        assert "No --config" not in capsys.readouterr().out


def test_what_is_no_folder_is_told(tmp_path):
    (tmp_path / "a.txt").touch()
    for given, told in (
        (["nothing"], "nothing: no such folder"),
        ([str(tmp_path / "a.txt")], "a file, not a folder"),
        ([str(tmp_path), str(tmp_path)], "name one folder"),
        ([str(tmp_path), "--data.path", "x"], "name one folder"),
        ([str(tmp_path)], "0 images and no labels in a form that is read here"),
    ):
        with pytest.raises(UserError, match=told):
            check_data.arguments(given)


@pytest.mark.parametrize("source", ["coco", "voc", "imagefolder"])
def test_a_folder_of_another_source_is_told(tmp_path, source):
    write_yolo(tmp_path, 8, "train", 0)
    with pytest.raises(UserError, match="this folder looks like yolo .*: set data.source yolo"):
        check_data.main(["--data.source", source, "--data.path", str(tmp_path)])


def test_notes_alone_are_no_defect(tmp_path, capsys):
    write_coco(tmp_path / "data", 8)
    write_coco(tmp_path / "data", 4, "val")  # the same images
    status, content = check(tmp_path / "data")
    assert status == 0
    assert set(content["kinds"]) == {"training image in validation", "duplicate image"}
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("NO DEFECTS in 8 train images and 4 val images; worth a look: ")
    assert "4 x training image in validation" in line


def test_examples_are_few_unless_all_are_asked_for(tmp_path, capsys):
    write_coco(tmp_path / "data", 8)
    write_coco(tmp_path / "data", 16, "val")
    file = tmp_path / "data" / "annotations" / "val.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"][2] = 0
    keep = content["annotations"].pop()
    content["annotations"].append({**keep, "bbox": [1, 1, 5, 5]})
    file.write_text(json.dumps(content))
    check(tmp_path / "data")
    few = capsys.readouterr().out
    check(tmp_path / "data", "--all")
    full = capsys.readouterr().out
    assert few.count("xywh") == 5
    assert "... and 10 more (--all lists them)" in few
    assert full.count("xywh") == 15


def test_repair_round_trip(tmp_path):
    root, copy = tmp_path / "data", tmp_path / "deep" / "copy"
    expected = write_planted(root)
    before = tree(root)
    _, content = check(root, "--repair", copy)
    assert tree(root) == before
    assert not list(copy.parent.glob(".copy-*"))

    lines = [json.loads(line) for line in (copy / "repairs.jsonl").read_text().splitlines()]
    assert sorted(line["kind"] for line in lines) == sorted(
        kind for kind in set(expected) if KINDS[kind].repaired
    )
    assert all(line["what"] == KINDS[line["kind"]].repaired for line in lines)
    places = {line["kind"]: line["where"] for line in lines}
    assert all(expected[kind] in where for kind, where in places.items())

    status, again = check(copy)
    assert status == 0, again["findings"]
    assert set(again["kinds"]) == {
        "duplicate box",
        "duplicate image",
        "training image in validation",
    }
    gone = 2  # truncated, a lying header: the others that cannot be read are no part of the split
    assert again["splits"]["train"]["images"] == content["splits"]["train"]["images"] - gone
    assert again["splits"]["val"] == content["splits"]["val"]


def test_repaired_files_are_copies_or_new_images_with_the_same_pixels(tmp_path):
    root, copy = tmp_path / "data", tmp_path / "copy"
    write_planted(root)
    check(root, "--repair", copy)
    twin = copy / "train" / "plain-4.jpg"
    assert not twin.samefile(root / "train" / "plain-4.jpg")
    assert twin.read_bytes() == (root / "train" / "plain-4.jpg").read_bytes()
    names = {path.name for path in (copy / "train").iterdir()}
    assert {"wrong-extension.png", "palette-image.png", "CMYK-image.jpg"} <= names
    assert not names & {"empty-file.jpg", "truncated-image.jpg", "absurd-size.png"}
    assert "size-differs-from-header.png" not in names
    for name in ("16-bit-image.png", "palette-image.png", "transparent-image.png"):
        ours = Image.open(copy / "train" / name)
        assert (ours.mode, ours.format) == ("RGB", "PNG")
        np.testing.assert_array_equal(np.asarray(ours), decode(root / "train" / name, ""))
    for name in ("EXIF-rotated-image.jpg", "CMYK-image.jpg"):
        ours = Image.open(copy / "train" / name)
        assert (ours.mode, ours.format, ours.size) == ("RGB", "JPEG", (96, 64))
        assert not ours.getexif()
        theirs = decode(root / "train" / name, "").astype(int)
        assert np.abs(np.asarray(ours).astype(int) - theirs).mean() < 8
    content = json.loads((copy / "annotations" / "train.json").read_text())
    for key in ("images", "annotations"):
        ids = [row["id"] for row in content[key]]
        assert ids == list(range(1, len(ids) + 1))
    image = next(i for i in content["images"] if i["file_name"] == "box-partly-outside.jpg")
    boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
    assert boxes[1] == [86, 54, 10, 10]


def test_repair_of_rows_and_of_equal_names(tmp_path):
    root, copy = tmp_path / "data", tmp_path / "copy"
    write_planted_rows(root)
    (root / "train" / "more").mkdir()
    (root / "train" / "plain-3.jpg").rename(root / "train" / "more" / "plain-2.jpg")
    file = root / "train" / "metadata.jsonl"
    file.write_text(file.read_text().replace("plain-3.jpg", "more/plain-2.jpg"))
    check(root, "--repair", copy, "--data.box_format", "pascal_voc", source="imagefolder")
    assert (copy / "train" / "more" / "plain-2.jpg").is_file()
    status, content = check(copy)
    assert status == 0
    assert content["findings"] == []
    assert [c["name"] for c in content["splits"]["train"]["classes"]] == ["plate", "car"]


def test_picture_shows_classes_sizes_and_samples(tmp_path):
    root, file = tmp_path / "data", tmp_path / "new" / "picture.png"
    write_planted(root)
    check(root, "--picture", file)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    assert pixels.shape[1] == 1312
    from report.dataset_charts import CHART_PX, COLOURS
    from report.palette import COLOURS as BOX_COLOURS  # noqa: N811

    charts, samples = pixels[: CHART_PX[1]], pixels[CHART_PX[1] :]
    for part in (charts[:, :656], charts[:, 656:]):
        for colour in COLOURS.values():
            assert (part == colour).all(-1).sum() > 500
    for colour in BOX_COLOURS[:2]:
        assert (samples == colour).all(-1).sum() > 500


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.path", "nowhere"], "nowhere: no such folder"),
        (["--workers", "0"], "--workers 0: must be 1 or more"),
        (["--repair", "."], "must be an empty or absent folder"),
        (["--data.pth", "x"], "unknown configuration keys"),
        (["--json", "/proc/nothing/x.json"], "--json .* cannot be written"),
        (["--picture", "/proc/nothing/x.png"], "--picture .* cannot be written"),
    ],
)
def test_what_cannot_be_run_says_why(tmp_path, more, message):
    root = write_clean(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        check_data.main(arguments(root, *more))


def test_exit_status_of_the_command(tmp_path):
    write_clean(tmp_path / "clean")
    write_planted(tmp_path / "planted", refused=False)
    for root, status in (("clean", 0), ("planted", 1), ("absent", 2)):
        done = launch(arguments(tmp_path / root), script="tools.check_data", module=True)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: data.path")
    assert not (tmp_path / "runs").exists()


def test_findings_are_told_although_the_dataset_cannot_be_used(tmp_path, capsys):
    root = tmp_path / "data"
    write_clean(root)
    file = root / "annotations" / "train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [1, 2, 3]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not one valid box"):
        check_data.main(arguments(root))
    assert "broken row: 34" in capsys.readouterr().out


def write_hub(root):
    """The planted images as a local folder in Hub format (parquet): bytes instead of files."""
    files = root / "files"
    write_planted(files, refused=False)
    for split in ("train", "val"):
        content = json.loads((files / "annotations" / f"{split}.json").read_text())
        lines = []
        for image in content["images"]:
            own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            objects = {
                "id": [a["id"] for a in own],
                "bbox": [a["bbox"] for a in own],
                "area": [a.get("area", 0) for a in own],
                "category": [a["category_id"] - 1 for a in own],
            }
            row = {**image, "image_id": image["id"], "objects": objects}
            del row["id"]
            lines.append(json.dumps(row))
        (files / split / "metadata.jsonl").write_text("\n".join(lines))
        write_parquet(root / "hub", files / split, split)
    return root / "hub"


def test_images_without_files_are_checked_and_copied(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root, copy = write_hub(tmp_path), tmp_path / "copy"
    more = ["--data.val_split", "validation", "--repair", copy]
    status, content = check(root, *more, source="hub")
    assert status == 1
    not_hub = {"wrong extension", "image without annotation", "duplicate annotation id"}
    expected = (
        {kind for kind in KINDS if KINDS[kind].remedy != "refused"}
        - NOT_COCO
        - MASK_KINDS
        - not_hub
    )
    assert set(content["kinds"]) == expected
    status, content = check(copy)
    assert status == 0, content["findings"]
    assert (copy / "val" / "000001.jpg").is_file()
