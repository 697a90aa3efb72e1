import json

import numpy as np
import pytest
from PIL import Image

from errors import UserError
from tools.predict import drawing_names


def images(folder, *names):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / name)
    return sorted(folder.iterdir())


def test_drawings_never_take_the_place_of_an_image(tmp_path):
    """Neither of one that is read, before or after it was, nor of one that lies there."""
    files = images(tmp_path / "photos", "a.png", "c.jpg", "c.png", "d.jpg")
    assert [p.name for p in drawing_names(files, tmp_path / "photos")] == [
        "a-2.png",
        "c-2.png",
        "c-3.png",
        "d.png",
    ]
    assert [p.name for p in drawing_names(files[1:2], tmp_path / "photos")] == ["c-2.png"]


def test_links_to_an_image_are_seen_through(tmp_path):
    files = images(tmp_path / "photos", "a.png")
    (tmp_path / "out").symlink_to(tmp_path / "photos")
    assert drawing_names(files, tmp_path / "out")[0].name == "a-2.png"


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
