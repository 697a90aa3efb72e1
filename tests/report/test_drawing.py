import numpy as np

from data.batch import Sample
from data.feed.collate import collate
from data.objects import Objects
from report.drawing import COLOURS, draw_batch, draw_objects


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
    from PIL import Image

    drawn = np.asarray(Image.open(tmp_path / "x.png"))[6:-6, 6:-6]
    rows, columns = np.nonzero((drawn == COLOURS[0]).all(-1))
    assert drawn.shape == (352, 416, 3)  # padding is shown as well
    assert abs(columns.min() - 40) <= 1
    assert abs(rows.max() - 110) <= 1
