"""What is predicted on: folders, patterns, videos, damaged files; and COCO results."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import tools.predict
from builders import launch, tiny_detector, write_coco
from errors import UserError
from export.recommended import FILE
from tools.predict import arguments, predict
from tools.prediction_files import is_drawing


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported folder of random weights, whose scores lie below one half."""
    folder = tmp_path_factory.mktemp("model")
    detector = tiny_detector(folder / "backbone", "deformable_detr")
    detector.model.save_pretrained(folder / "export")
    detector.trainable.processor.save_pretrained(folder / "export")
    return folder / "export"


def photo(file, seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


def video(file, frames=7, size=(64, 48)):
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, size)
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), 30 * number, np.uint8))
    writer.release()
    return file


def call(model, *words, threshold=0.0):
    extra = [] if threshold is None else ["--threshold", str(threshold)]
    return predict(arguments(["--model", str(model), *map(str, words), *extra]))


def images_of(outcome):
    return [row["image"] for row in outcome.results]


def test_a_damaged_input_is_named_the_others_are_done_and_the_status_is_1(model, tmp_path):
    photos = tmp_path / "photos"
    names = ["a.jpg", "deep/er/b.png", "c d.webp"]
    for seed, name in enumerate(names):
        photo(photos / name, seed)
    (photos / "broken.jpg").write_bytes(photo(photos / "x.jpg").read_bytes()[:400])
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / ".hidden.jpg").write_bytes(b"no image")
    (photos / "notes.txt").write_text("no image")
    words = ["--model", str(model), str(photos), "--out", str(photos), "--threshold", "0"]
    done = launch(["tools.predict", *words, "--json", str(tmp_path / "x.json")], script="-m")
    assert done.returncode == 1, done.stderr
    assert f"skipped: {photos}/broken.jpg: cannot decode" in done.stderr
    assert f"skipped: {photos}/gone.jpg" in done.stderr
    assert "4 image(s) drawn" in done.stdout
    assert "2 input(s) could not be read, named above" in done.stdout
    rows = json.loads((photos / "predictions.json").read_text())
    assert [row["image"] for row in rows] == [
        str(photos / name) for name in ("a.jpg", "c d.webp", "x.jpg", "deep/er/b.png")
    ]
    assert all(len(row["objects"]) > 0 for row in rows)
    for row in rows:
        assert is_drawing(photos / row["drawing"])
    # what was drawn is not predicted on again, also where the list of it is lost
    again = call(model, photos, "--out", photos)
    assert again.results == rows
    (photos / "predictions.json").unlink()
    assert images_of(call(model, photos, "--out", photos)) == [row["image"] for row in rows]
    assert not (photos / "a-3.jpg").exists()


def test_patterns_and_repeated_names(model, tmp_path, monkeypatch):
    for name in ("a.jpg", "b.jpg", "c.png", "deep/d.jpg"):
        photo(tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path)
    words = ("--out", tmp_path / "out")
    assert images_of(call(model, "photos/*.jpg", "photos/a.jpg", *words)) == [
        "photos/a.jpg",
        "photos/b.jpg",
    ]
    assert len(images_of(call(model, "photos/**/*.jpg", *words))) == 3
    assert len(images_of(call(model, "phot*", *words))) == 4
    with pytest.raises(UserError, match="no image, video or folder fits"):
        call(model, "photos/*.gif", *words)
    odd = photo(tmp_path / "photos/odd[1].jpg")  # a name, though it looks like a pattern
    assert images_of(call(model, odd, *words)) == [str(odd)]


def test_a_video_is_drawn_frame_by_frame(model, tmp_path):
    clip = video(tmp_path / "clip.mp4")
    photo(tmp_path / "z.jpg")
    outcome = call(model, tmp_path, "--out", tmp_path, "--json", tmp_path / "x.json", "--every", 2)
    frames = [row["frame"] for row in outcome.results if "frame" in row]
    assert frames == [0, 2, 4, 6]
    assert len(outcome.results) == 5
    drawn = cv2.VideoCapture(str(tmp_path / "clip.predicted.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert drawn.get(cv2.CAP_PROP_FPS) == 5
    rows = json.loads((tmp_path / "x.json").read_text())
    assert {row.get("frame") for row in rows} == {0, 2, 4, 6, None}
    assert {row["image_id"] for row in rows} == {1, 2, 3, 4, 5}
    again = call(model, tmp_path, "--out", tmp_path, "--every", 2)
    assert again.results == outcome.results
    clip.write_bytes(clip.read_bytes()[:300])
    assert "cannot open the video" in call(model, tmp_path, "--out", tmp_path).unreadable[0]
    assert not list(tmp_path.glob(".writing-*"))


def test_batches_and_threads_change_nothing(model, tmp_path):
    for number in range(5):
        photo(tmp_path / f"photos/{number}.png", number)
    one = call(model, tmp_path / "photos", "--out", tmp_path / "out", "--batch", 1, "--workers", 1)
    many = call(model, tmp_path / "photos", "--out", tmp_path / "out", "--batch", 3)
    assert images_of(one) == images_of(many)
    for left, right in zip(one.results, many.results, strict=True):
        for name in ("score", "box_xywh"):
            np.testing.assert_allclose(
                *([own[name] for own in row["objects"]] for row in (left, right)), atol=0.011
            )


def test_coco_results_have_the_ids_of_an_annotation_file(model, tmp_path):
    data = write_coco(tmp_path / "data", 4, ids=(5, 9, 7))
    file = data / "annotations/train.json"
    content = json.loads(file.read_text())
    names = json.loads((model / "config.json").read_text())["id2label"]
    for entry, number in zip(content["categories"], (2, 0, 1), strict=True):
        entry["name"] = names[str(number)]
    file.write_text(json.dumps(content))
    results = tmp_path / "results.json"
    outcome = call(model, data / "train", "--json", results, "--ids", file)
    truth = COCO(str(file))
    truth.loadRes(str(results))  # asserts that it knows all images
    rows = json.loads(results.read_text())
    assert len(rows) == sum(len(row["objects"]) for row in outcome.results) > 0
    ids = {entry["file_name"]: entry["id"] for entry in content["images"]}
    kinds = {entry["name"]: entry["id"] for entry in content["categories"]}
    place = iter(rows)
    for row in outcome.results:
        for own in row["objects"]:
            other = next(place)
            assert other["image_id"] == ids[row["image"].rpartition("/")[2]]
            assert other["category_id"] == kinds[own["label"]]
            np.testing.assert_allclose(other["bbox"], own["box_xywh"], atol=0.006)
    photo(data / "train/unknown.jpg")
    with pytest.raises(UserError, match=r"--ids .*: has no image .*unknown.jpg"):
        call(model, data / "train", "--json", results, "--ids", file)
    assert json.loads(results.read_text()) == rows


def test_the_threshold_is_the_models_own_unless_given(model, tmp_path):
    words = (photo(tmp_path / "a.jpg"), "--json", tmp_path / "x.json")
    every = call(model, *words).results[0]["objects"]
    assert not call(model, *words, threshold=None).results[0]["objects"]  # 0.5
    lowest = every[2]["score"] - 1e-4
    try:
        (model / FILE).write_text(json.dumps({"threshold": lowest}))
        found = call(model, *words, threshold=None).results[0]["objects"]
        assert found == [own for own in every if own["score"] > lowest]
        assert 3 <= len(found) < len(every)
        (model / FILE).write_text('{"threshold": "high"}')
        with pytest.raises(UserError, match="threshold 'high' is no number from 0 to 1"):
            call(model, *words)
    finally:
        (model / FILE).unlink()


def test_results_of_somebody_else_are_kept(model, tmp_path):
    (tmp_path / "x.json").write_text('[{"image_id": 1, "score": 1}]')
    with pytest.raises(UserError, match="would be replaced"):
        call(model, photo(tmp_path / "a.jpg"), "--json", tmp_path / "x.json")
    assert "score" in (tmp_path / "x.json").read_text()
    with pytest.raises(UserError, match="has another list there"):
        call(model, tmp_path / "a.jpg", "--out", tmp_path, "--json", tmp_path / "predictions.json")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.jpg"], "give --out FOLDER"),
        (["a.jpg", "--out", "o", "--threshold", "1.1"], "must lie between 0 and 1"),
        (["a.jpg", "--out", "o", "--ids", "i.json"], "--ids is for"),
        (["a.jpg", "--out", "o", "--batch", "0"], "--batch 0"),
        (["nowhere.jpg", "--out", "o"], "no such file or folder"),
    ],
)
def test_calls_that_cannot_be(words, message):
    with pytest.raises(UserError, match=message):
        tools.predict.main(["--model", "m", *words])
