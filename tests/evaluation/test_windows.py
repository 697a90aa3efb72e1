"""Masks that windows have found, as masks of the whole images."""

import numpy as np
import pytest

from builders import tiny_detector
from data.boxes import from_corners
from data.canvas import CanvasRule
from data.masks import encode, mask_column, pixels_of
from data.objects import Objects
from data.strips import Strips
from data.tiles import Tiles, windows_of
from errors import UserError
from evaluation.predictions import Predictions
from evaluation.windows import on_images
from export.detector import LoadedDetector, load_detector
from settings.keys import ImageSizeConfig, TilesConfig

SIZE = (40, 70)
TILES = Tiles(
    np.array([0, 0, 0]),
    np.array([[0, 0, 40, 40], [30, 0, 40, 40], [0, 0, 70, 40]]),
    np.array([SIZE]),
)
"""Two windows that share 10 columns, and the whole image"""


def filled(*boxes, size=SIZE):
    """A mask that covers some xywh boxes."""
    plane = np.zeros(size, bool)
    for x, y, w, h in boxes:
        plane[y : y + h, x : x + w] = True
    return plane


def found_on(rows):
    """What a model has found: (window, plane of the whole image, score, class) each."""
    masks, places = [], []
    for number, plane, _, _ in rows:
        x, y, w, h = TILES.windows[number].tolist()
        masks.append(encode(plane[y : y + h, x : x + w]))
        places.append(Strips.of(masks[-1], (h, w)).corners())
    return Objects(
        from_corners(np.array(places)),
        np.array([row[3] for row in rows]),
        image=np.array([row[0] for row in rows]),
        scores=np.array([row[2] for row in rows]),
        masks=mask_column(masks),
    )


def left_of(*rows, most=100):
    """(plane, score) of what is left on the image."""
    predictions = Predictions(found_on(rows), flat=Objects.none())
    together = on_images(predictions, TILES, most)
    assert together.flat is None
    objects = together.objects
    assert objects.image.tolist() == [0] * len(objects)
    planes = []
    for mask, box in zip(objects.masks, objects.boxes, strict=True):
        assert mask.size == SIZE
        plane = np.zeros(SIZE, bool)
        plane[pixels_of(mask, SIZE)] = True
        np.testing.assert_array_equal(from_corners(Strips.of(mask, SIZE).corners()[None])[0], box)
        planes.append(plane)
    return list(zip(planes, objects.scores.tolist(), strict=True))


def test_a_cut_mask_gives_way_to_the_whole_one_of_its_neighbour():
    plane = filled((32, 5, 20, 10), (32, 5, 3, 20))
    ((mask, score),) = left_of((0, plane, 0.9, 0), (1, plane, 0.6, 0))
    assert score == 0.6
    assert np.array_equal(mask, plane)


def test_masks_that_two_windows_have_alike_are_one():
    plane, nearly = filled((31, 5, 8, 10)), filled((31, 5, 8, 8))
    ((mask, score),) = left_of((0, nearly, 0.6, 0), (1, plane, 0.7, 0))
    assert score == 0.7
    assert np.array_equal(mask, plane)
    assert len(left_of((0, nearly, 0.6, 0), (1, plane, 0.7, 1))) == 2


def test_masks_that_share_no_pixel_are_two_though_their_boxes_are_the_same():
    """Two angles, one in the other: as boxes they would be one object, as masks they are none that is twice."""
    one, other = filled((31, 5, 8, 1), (31, 5, 1, 10)), filled((32, 14, 7, 1), (38, 6, 1, 9))
    assert [score for _, score in left_of((0, one, 0.9, 0), (1, other, 0.8, 0))] == [0.9, 0.8]


def test_a_part_is_one_by_its_pixels_and_not_by_its_box():
    """What the first window cuts lies in the box of the whole angle, and hardly on its pixels."""
    angle = filled((32, 5, 30, 2), (32, 5, 2, 30))
    other = filled((34, 10, 10, 20))
    kept = left_of((1, angle, 0.9, 0), (0, other, 0.8, 0))
    assert [score for _, score in kept] == [0.9, 0.8]
    assert np.array_equal(kept[1][0], other & filled((0, 0, 40, 40)))


def test_an_object_larger_than_a_window_is_that_of_the_whole_image():
    plane = filled((5, 5, 60, 10))
    ((mask, score),) = left_of((0, plane, 0.9, 0), (1, plane, 0.8, 0), (2, plane, 0.5, 0))
    assert score == 0.5
    assert np.array_equal(mask, plane)
    parts = left_of((0, plane, 0.9, 0), (1, plane, 0.8, 0))  # where nobody has seen it whole
    assert [score for _, score in parts] == [0.9, 0.8]


def test_the_best_masks_of_an_image_are_left():
    rows = [(0, filled((4 * n, 4, 3, 3)), 0.1 * n, 0) for n in range(6)]
    assert [score for _, score in left_of(*rows, most=2)] == pytest.approx([0.5, 0.4])


def test_a_model_whose_every_pixel_has_a_class_is_not_used_on_windows(tmp_path):
    detector = tiny_detector(tmp_path / "backbone", "linear")
    for part in (detector.model, detector.trainable.processor):
        part.save_pretrained(tmp_path / "export")
    (tmp_path / "export/permafrost.json").write_text('{"tiles": {"size": 40}}')
    with pytest.raises(UserError, match="windows, which semantic_segmentation does not have"):
        load_detector(str(tmp_path / "export"))


class Finding(LoadedDetector):
    """Finds a part in the first window, and with a lower score the whole object in the second one."""

    def find(self, samples, threshold):
        plane = filled((32, 5, 12, 10))
        found = found_on([(0, plane, 0.6, 0), (1, plane, 0.4, 0)])
        return found.take(found.scores > threshold).by_image(len(samples))


def test_prediction_puts_masks_together_as_evaluation_does():
    tiles = TilesConfig(size=40, overlap=0.25)
    np.testing.assert_array_equal(windows_of(*SIZE, tiles), TILES.windows[:2])
    detector = Finding(None, CanvasRule(ImageSizeConfig(40, fit="stretch")), tiles=tiles)
    views = detector.views(np.zeros((*SIZE, 3), np.uint8))
    assert len(detector.find_on([views], 0.5)[0]) == 0
    (whole,) = detector.find_on([views], 0.3)
    assert whole.boxes.tolist() == [[32, 5, 12, 10]]
    assert whole.masks[0] == encode(filled((32, 5, 12, 10)))
    assert len(detector.find_on([views], 0.7)[0]) == 0
