import numpy as np
from PIL import Image

from data.batch import Sample
from data.feed.collate import collate
from data.masks import Planes
from data.objects import Objects
from report.drawing import draw_batch, draw_objects, legend_of, with_legend
from report.palette import COLOURS, TRUTH, colour_of


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
