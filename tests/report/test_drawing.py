from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.batch import Sample
from data.build import build_data
from data.feed.collate import collate
from data.masks import Planes, encode, mask_column
from data.objects import Objects
from formats import write_format
from report.drawing import draw_batch, draw_objects, legend_of, save_grid, with_legend
from report.palette import COLOURS, TRUTH, colour_of
from report.tags import draw_tags
from report.thumbnails import title_of


def test_box_is_drawn_where_it_is():
    image = np.zeros((400, 600, 3), np.uint8)
    drawn = np.asarray(
        draw_objects(image, Objects(np.array([[100.0, 200.0, 150.0, 80.0]]), np.array([0])), [""])
    )
    assert drawn.shape == image.shape
    rows, columns = np.nonzero((drawn == COLOURS[0]).all(-1))
    assert abs(columns.min() - 100) <= 1
    assert abs(columns.max() - 250) <= 1
    assert abs(rows.min() - 200) <= 1
    assert abs(rows.max() - 280) <= 1


def test_batch_drawing_shows_the_targets_on_the_models_pixels(tmp_path):
    image = np.full((320, 400, 3), 128, np.uint8)
    box = np.array([[40.0, 60.0, 100.0, 50.0]])
    batch = collate([Sample(image, Objects(box, np.array([0])), 1, 0, (320, 400), (352, 416))])
    draw_batch(batch, ["plate"], tmp_path / "x.png")
    drawn = np.asarray(Image.open(tmp_path / "x.png"))[6:358, 6:-6]
    assert drawn.shape == (352, 416, 3)  # padding is shown as well
    drawn = drawn[60:]  # below the tag, which is outside of the box
    rows, columns = np.nonzero((drawn == COLOURS[0]).all(-1))
    rows += 60
    assert abs(columns.min() - 40) <= 1
    assert abs(rows.max() - 110) <= 1


def of_colour(pixels, kind):
    return (pixels == COLOURS[kind]).all(-1)


def test_regions_have_a_legend_and_no_tags_on_top_of_each_other(tmp_path):
    """Thin regions side by side, whose tags would cover them all; of five classes three are there."""
    image = np.full((320, 320, 3), 128, np.uint8)
    ids = np.zeros((1, 320, 320), np.uint8)
    for number in range(3):
        ids[0, 100:110, 40 * number : 40 * number + 40] = number + 1
    planes = Planes(ids)
    regions = Objects(planes.boxes(3)[0], np.array([0, 2, 4]))
    sample = Sample(image, regions, 1, 0, (320, 320), (320, 320), planes=planes)
    batch = collate([sample])
    names = ["sky", "road", "car", "tree", "sign"]
    drawn = {}
    for labels in ("boxes", "regions"):
        draw_batch(batch, names, tmp_path / "x.png", labels)
        drawn[labels] = np.asarray(Image.open(tmp_path / "x.png"))
    inside = slice(6, 326), slice(6, 326)
    tags = drawn["boxes"][inside] != drawn["regions"][inside]
    assert tags.any(-1).sum() > 500
    shown = drawn["regions"][inside]
    np.testing.assert_array_equal(shown[:96], image[:96])
    np.testing.assert_array_equal(shown[112:], image[112:])
    legend = drawn["regions"][332:]
    assert len(legend) > 20
    np.testing.assert_array_equal(drawn["boxes"][332:], legend)
    assert [kind for kind in range(5) if of_colour(legend, kind).sum() > 100] == [0, 2, 4]


def test_legend_of_many_classes_stays_inside_of_the_picture():
    picture = Image.new("RGB", (200, 100))
    names = [f"class {kind}" for kind in range(40)]
    objects = Objects(np.zeros((40, 4)), np.arange(40))
    whole = with_legend(picture, legend_of(names, [objects]), "a note")
    assert whole.width == 200
    assert whole.height >= 100 + 20 * 26  # two to a line at most
    assert with_legend(picture, {}) is picture


def test_tags_lie_outside_of_the_boxes_and_beside_other_tags():
    """Three boxes in a row, one at the upper edge, one at the right: nothing inside of any of them is hidden."""
    image = np.full((400, 600, 3), 128, np.uint8)
    boxes = np.array([[0.0, 0, 90, 60], [100, 100, 80, 50], [190, 100, 80, 50], [520, 200, 79, 50]])
    objects = Objects(boxes, np.arange(4))
    names = ["a long name", "another name", "one more name", "at the edge"]
    drawn = np.asarray(draw_objects(image, objects, names))
    line = 2
    for x, y, w, h in boxes.astype(int):
        inside = drawn[y + line : y + h - line, x + line : x + w - line]
        assert (inside == 128).all()
    for kind in range(4):  # and each tag is there
        outside = of_colour(drawn, kind)
        x, y, w, h = boxes[kind].astype(int)
        outside[y : y + h + 1, x : x + w + 1] = False
        assert outside.sum() > 200


def test_twenty_classes_have_colours_that_nobody_mistakes():
    """CIELAB distances, of which 2.3 is just noticed, also from the green of truth."""
    colours = np.array([*(colour_of(kind) for kind in range(20)), TRUTH]) / 255
    linear = np.where(colours > 0.04045, ((colours + 0.055) / 1.055) ** 2.4, colours / 12.92)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = np.cbrt(linear @ to_xyz.T / [0.9505, 1, 1.089])
    lab = np.column_stack(
        [116 * xyz[:, 1], 500 * (xyz[:, 0] - xyz[:, 1]), 200 * (xyz[:, 1] - xyz[:, 2])]
    )
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(21, 1)]
    assert distances.min() > 30


def test_tags_of_boxes_that_are_nearly_one_lie_beside_each_other():
    """Ten boxes that leave no room around them: of each tag all is to be seen."""
    boxes = [(n, n, 388.0 + n, 388.0 + n) for n in range(10)]
    text = "vehicle 0.40 is one too many"
    drawn, alone = Image.new("RGB", (400, 400)), Image.new("RGB", (400, 400))
    draw_tags(drawn, boxes, [text] * 10, COLOURS[:10], 2)
    draw_tags(alone, boxes[:1], [text], COLOURS[:1], 2)
    whole = of_colour(np.asarray(alone), 0).sum()
    assert min(of_colour(np.asarray(drawn), kind).sum() for kind in range(10)) > 0.8 * whole > 500


def test_words_of_a_tag_stand_apart():
    """Columns without ink between two words are more than between two letters."""
    image = np.full((320, 320, 3), 128, np.uint8)
    objects = Objects(np.array([[100.0, 100, 60, 60]]), np.array([0]))
    drawn = np.asarray(draw_objects(image, objects, ["is one"]))[80:99]
    rows, columns = np.nonzero(of_colour(drawn, 0))
    tag = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    empty = of_colour(tag, 0).all(0)
    runs = [len(run) for run in "".join("x "[int(e)] for e in empty).strip().split("x") if run]
    assert sorted(runs)[-1] >= 4


def test_a_tag_stands_beside_the_largest_piece_of_a_scattered_mask():
    image = np.full((400, 400, 3), 128, np.uint8)
    plane = np.zeros((400, 400), np.uint8)
    plane[300:340, 300:360] = 1  # what is looked at
    plane[5:8, 5:8] = 1
    masks = mask_column([encode(plane)])
    objects = Objects(np.array([[5.0, 5, 355, 335]]), np.array([0]), masks=masks)
    drawn = np.asarray(draw_objects(image, objects, ["nucleus"]))
    rows, columns = np.nonzero(of_colour(drawn, 0) & (plane == 0))
    assert rows.min() > 270
    assert columns.min() > 280


def test_tags_leave_small_objects_to_be_seen():
    """Above a box there lies a small one, which its tag would hide; everywhere else it hides more of large ones."""
    image = np.full((400, 400, 3), 128, np.uint8)
    around = [[105.0, 88, 10, 8], [90, 167, 100, 200], [165, 80, 200, 100], [5, 80, 90, 100]]
    objects = Objects(np.array([[100.0, 100, 60, 60], *around]), np.arange(5))
    drawn = np.asarray(draw_objects(image, objects, ["a large one", *[""] * 4]))
    assert of_colour(drawn[88:97, 105:116], 1).sum() > 25
    assert of_colour(drawn, 0).sum() > 700  # the tag is there


def test_the_tag_of_a_part_stays_at_it():
    """A plate on a car, near the car's lower edge: its tag does not leave the car."""
    canvas = Image.new("RGB", (400, 400))
    boxes = [(50.0, 50.0, 350.0, 350.0), (150.0, 300.0, 230.0, 330.0)]
    draw_tags(canvas, boxes, ["", "plate"], COLOURS[:2], 2)
    rows, columns = np.nonzero(of_colour(np.asarray(canvas), 1))
    near = [rows.max() - 300, 330 - rows.min(), columns.max() - 150, 230 - columns.min()]
    assert min(near) >= -2


def test_one_large_image_makes_no_room_around_the_others(tmp_path):
    small, large = Image.new("RGB", (300, 200)), Image.new("RGB", (450, 200))
    for images, width in (
        ([small] * 5 + [large], 3 * 300 + 4 * 6 + 150),
        ([small] * 6, 3 * 300 + 4 * 6),
        ([large] * 3, 3 * 450 + 4 * 6),
        ([small], 312),
    ):
        save_grid(images, tmp_path / "x.png", 3)
        assert Image.open(tmp_path / "x.png").width == width


@pytest.mark.parametrize("written", ["voc", "voc folders", "coco"])
def test_pictures_are_named_by_their_images(tmp_path, written):
    """Also where each image has a file of annotations."""
    data = build_data(write_format(tmp_path, written), 0)
    assert Path(title_of(data.val, 0)).suffix == ".jpg"
    assert title_of(data.val, 0) == f"val: {data.val.file(0).name}"
