"""Every kind of metrics, measured by all ranks together and by each alone: started by torchrun."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from data.masks import Polygons, mask_column, to_rle
from data.objects import Objects
from data.record import Record
from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.metrics import measure
from evaluation.mistakes import analyse
from evaluation.predictions import NOTHING, Predictions

SIZE = (48, 64)
CLASSES = 5
TAXONOMY = Taxonomy(tuple(f"class{c}" for c in range(CLASSES)), tuple(range(CLASSES)))


def triangles(corners, classes, image):
    """Objects with masks, of corners [n, 3, 2] px."""
    low, high = corners.min(1), corners.max(1)
    masks = mask_column([to_rle(Polygons(SIZE, (ring,)), SIZE) for ring in corners])
    return Objects(np.column_stack([low, high - low]), classes, image, masks=masks)


def case(num_images, seed):
    """A split, and predictions: some of its objects moved a little, so that no two shares are equal, and
    others. Of the classes the last is rare."""
    rng = np.random.default_rng(seed)
    n = 4 * num_images
    corners = rng.uniform(0, SIZE[0], (n, 3, 2))
    classes = rng.choice(CLASSES, n, p=[0.5, 0.25, 0.15, 0.08, 0.02])
    image = np.repeat(np.arange(num_images), 4)
    truth = triangles(corners, classes, image)
    truth = replace(
        truth,
        areas=truth.boxes[:, 2:].prod(1),
        iscrowd=rng.uniform(size=n) < 0.05,
        numbers=np.arange(1, n + 1),
    )
    moved = triangles(corners + rng.normal(0, 1.5, corners.shape), classes, image)
    others = triangles(rng.uniform(0, SIZE[0], (n, 3, 2)), classes, image)
    found = Objects.concat([moved.take(rng.uniform(size=n) < 0.8), others])
    found = replace(found, scores=rng.uniform(size=len(found)))
    found = found.take(np.lexsort((-found.scores, found.image)))
    records = [
        Record(i, f"{i}.jpg", SIZE[1], SIZE[0], objects)
        for i, objects in enumerate(truth.by_image(num_images))
    ]
    return Split(records, [], {}), found


def everything(analysis):
    """All that an analysis holds, as arrays."""
    yield analysis.confusion
    for bad in analysis.worst:
        yield from (bad.place, bad.mistakes, bad.rows)
    for part in (analysis.curves, analysis.outcome):
        yield from [] if part is None else vars(part).values()
    yield np.array(list(analysis.totals().values()))


def main(out):
    accelerator = Accelerator(cpu=True)
    for num_images, seed in ((23, 0), (1, 1)):  # of one image the other rank has none
        split, found = case(num_images, seed)
        boxes = replace(found, masks=None)
        kinds = {
            "boxes": Predictions(boxes),
            "masks": Predictions(found, flat=found.take(found.scores > 0.5)),
            "regions": Predictions(found),
            "segments": Predictions(found),
            "nothing": Predictions(NOTHING),
        }
        for labels, predictions in kinds.items():
            told = [
                measure(labels, split, predictions, TAXONOMY, who) for who in (accelerator, None)
            ]
            assert told[0] == told[1], (labels, told)
            seen = [
                analyse(labels, split, predictions, TAXONOMY, who) for who in (accelerator, None)
            ]
            assert seen[0].confusion.sum() > 0
            for one, two in zip(*map(everything, seen), strict=True):
                np.testing.assert_array_equal(one, two)
            if seed == 0 and labels != "nothing":  # or equal numbers would say little
                assert 0.05 < next(iter(told[0].values())) < 0.95, (labels, told)
    (out / str(accelerator.process_index)).touch()
    accelerator.state.destroy_process_group()  # or a thread of it may end the process with an error


if __name__ == "__main__":
    main(Path(sys.argv[1]))
