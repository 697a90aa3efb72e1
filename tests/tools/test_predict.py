import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import tools.predict
from builders import tiny_run
from data.masks import Rle, pixels_of
from errors import UserError
from painted import COLOURS as PAINT
from painted import NAMES, found, labels_of, read_maps, write_folders
from report.palette import COLOURS
from runs import train
from settings.keys import DataConfig
from tools.prediction_files import drawing_names, image_files


def images(folder, *names):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / name)
    return sorted(folder.iterdir())


def test_drawings_never_take_the_place_of_an_image(tmp_path):
    """Neither of one that is read, before or after it was, nor of one that lies there."""
    files = images(tmp_path / "photos", "a.png", "c.jpg", "c.png", "d.jpg")
    assert [p.name for p in drawing_names(files, tmp_path / "photos")] == [
        "a.jpg",
        "c-2.jpg",
        "c-3.jpg",
        "d-2.jpg",
    ]
    assert [p.name for p in drawing_names(files[1:2], tmp_path / "photos")] == ["c-2.jpg"]


def test_links_to_an_image_are_seen_through(tmp_path):
    files = images(tmp_path / "photos", "a.jpg")
    (tmp_path / "out").symlink_to(tmp_path / "photos")
    assert drawing_names(files, tmp_path / "out")[0].name == "a-2.jpg"


def test_equal_stems_get_names_of_their_own(tmp_path):
    files = [*images(tmp_path / "one", "a.jpg"), *images(tmp_path / "two", "a.jpg", "a-2.jpg")]
    names = [p.name for p in drawing_names(files, tmp_path / "out")]
    assert len(set(names)) == 3


def test_the_same_call_again_draws_anew(tmp_path):
    files = images(tmp_path / "photos", "a.jpg")
    out = tmp_path / "out"
    (drawing,) = drawing_names(files, out)
    images(out, drawing.name)
    (out / "predictions.json").write_text(json.dumps([{"drawing": str(drawing)}]))
    assert drawing_names(files, out) == [drawing]


def test_a_predictions_file_of_somebody_else_is_kept(tmp_path):
    files = images(tmp_path / "photos", "a.jpg")
    (tmp_path / "photos/predictions.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="not of an earlier prediction"):
        drawing_names(files, tmp_path / "photos")


def near(pixels, colour):
    """Whether some of them are that colour, up to what a JPEG makes of it."""
    return (abs(pixels - colour).max(-1) < 25).any()


PHOTO = PAINT[labels_of(0)]


def picture(file, pixels):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.mark.parametrize("name", ["a.png", "a_labels.png", "a-mask.tif", "a.labelIds.png"])
@pytest.mark.parametrize("photo", ["a.jpg", "a.webp", "a.bmp"])
def test_label_maps_beside_their_photos_are_skipped_and_counted(tmp_path, name, photo, capsys):
    """Named as the reader of label maps has it; photos may be of a format that keeps numbers as well."""
    picture(tmp_path / photo, PHOTO)
    picture(tmp_path / name, labels_of(0))
    assert list(image_files([tmp_path])) == [tmp_path / photo]
    said = capsys.readouterr().err
    assert f"skipped: 1 label map(s) in {tmp_path}" in said
    assert f"({name} is of {photo})" in said
    assert list(image_files([tmp_path / name])) == [tmp_path / name]  # named explicitly
    assert not capsys.readouterr().err


OTHER_PICTURES = {
    "a colour picture of that name": ("a_labels.png", PHOTO),
    "another number": ("a10.png", labels_of(0)),
    "another shape": ("a_labels.png", labels_of(0)[:-8]),
    "another name": ("b_labels.png", labels_of(0)),
    "a format that keeps no numbers": ("a_labels.jpg", labels_of(0)),
}


@pytest.mark.parametrize("case", OTHER_PICTURES)
def test_photos_whose_names_are_like_those_of_label_maps_are_used(tmp_path, case, capsys):
    name, pixels = OTHER_PICTURES[case]
    picture(tmp_path / "a.jpg", PHOTO)
    picture(tmp_path / name, pixels)
    assert {p.name for p in image_files([tmp_path])} == {"a.jpg", name}
    assert not capsys.readouterr().err


def test_grey_photos_beside_grey_photos_are_used(tmp_path, capsys):
    picture(tmp_path / "scan.png", labels_of(0))
    picture(tmp_path / "scan-2.png", labels_of(0))
    assert len(list(image_files([tmp_path]))) == 2


@pytest.mark.usefixtures("fresh_accelerator")
def test_label_maps_of_predictions_are_read_as_label_maps_of_the_same_classes(tmp_path):
    """Trained on values of the dataset's own; what comes out says what its values are."""
    values = np.zeros(256, np.uint8)
    values[[0, 1, 2, 255]] = [10, 30, 200, 0]
    write_folders(tmp_path / "data", edit=lambda labels: values[labels])
    own = {"labels": json.dumps(NAMES), "label_values": "[10, 30, 200]", "ignore_index": 0}
    keys = {f"data__{key}": value for key, value in {"source": "label_maps", **own}.items()}
    keys |= {"train__steps": 60, "optim__lr": 0.01}
    train(tiny_run(tmp_path, "linear", **keys))
    photos, out = tmp_path / "data/images/val", tmp_path / "out"
    arguments = ["--model", str(tmp_path / "run/export"), str(photos), "--out", str(out)]
    for _ in range(2):  # the second time over what the first one wrote
        results = tools.predict.main(arguments)
        assert sorted(p.name for p in (out / "label_maps").iterdir()) == ["004.png", "005.png"]
        assert len(list(out.iterdir())) == 2 + len(
            ["label_maps", "id2label.json", "predictions.json"]
        )
    cfg = DataConfig("label_maps", str(out), train_annotations="label_maps", val_on_train=True)
    findings, data = found(dataclasses.replace(cfg, train_split=str(photos)))
    assert not findings
    assert data.taxonomy.names == NAMES
    for result, read in zip(results, read_maps(data.train), strict=True):
        for region in result["objects"]:
            rle = region["mask_rle"]
            pixels = pixels_of(Rle(tuple(rle["size"]), rle["counts"].encode()), read.shape)
            assert (read[pixels] == NAMES.index(region["label"]) + 1).all()
        drawn = np.asarray(Image.open(result["drawing"])).astype(int)
        below = drawn[320 * read.shape[0] // max(read.shape) :].reshape(-1, 3)
        shown = {NAMES[kind] for kind in range(3) if near(below, COLOURS[kind])}
        assert shown == {region["label"] for region in result["objects"]}  # the legend
    assert len({region["label"] for result in results for region in result["objects"]}) > 1


@pytest.mark.usefixtures("fresh_accelerator")
def test_names_of_somebody_elses_label_maps_are_kept(tmp_path):
    write_folders(tmp_path / "data")
    keys = {"data__source": "label_maps", "data__labels": json.dumps(NAMES), "train__steps": 2}
    train(tiny_run(tmp_path, "linear", **keys))
    (tmp_path / "data/id2label.json").write_text('["mine"]')
    photo = str(tmp_path / "data/images/val/004.jpg")
    with pytest.raises(UserError, match="id2label.json: is not of an earlier prediction"):
        tools.predict.main(
            ["--model", str(tmp_path / "run/export"), photo, "--out", str(tmp_path / "data")]
        )
    assert (tmp_path / "data/id2label.json").read_text() == '["mine"]'
