"""Every kind of metrics, measured by all ranks together and by each alone: started by torchrun."""

import sys
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from data.masks import Polygons, mask_column, to_rle
from data.objects import Objects
from data.record import Record
from data.schema import Split
from data.taxonomy import Taxonomy
from evaluation.metrics import measure
from evaluation.predictions import NOTHING, Predictions

SIZE = (48, 64)
CLASSES = 5
TAXONOMY = Taxonomy(tuple(f"class{c}" for c in range(CLASSES)), tuple(range(CLASSES)))


def triangles(rng, images, num):
    """`num` on each of some images; of classes of which the last one is rare."""
    image = np.repeat(images, num)
    corners = rng.uniform(0, SIZE[0], (len(image), 3, 2))
    low, high = corners.min(1), corners.max(1)
    masks = [to_rle(Polygons(SIZE, (ring,)), SIZE) for ring in corners]
    classes = rng.choice(CLASSES, len(image), p=[0.5, 0.25, 0.15, 0.08, 0.02])
    boxes = np.column_stack([low, high - low])
    return Objects(boxes, classes, image, masks=mask_column(masks))


def case(num_images, seed):
    """A split, and predictions on most of its images: some right, some moved, some wrong."""
    rng = np.random.default_rng(seed)
    truth = triangles(rng, np.arange(num_images), 4)
    n = len(truth)
    truth = Objects(
        *(truth.boxes, truth.classes, truth.image, truth.boxes[:, 2:].prod(1)),
        *(rng.uniform(size=n) < 0.05, np.arange(1, n + 1)),
        masks=truth.masks,
    )
    right = truth.take(rng.uniform(size=n) < 0.6)
    found = Objects.concat([right, triangles(rng, np.arange(0, num_images, 2), 3)])
    scores = rng.uniform(size=len(found))
    found = Objects(found.boxes, found.classes, found.image, scores=scores, masks=found.masks)
    found = found.take(np.lexsort((-found.scores, found.image)))
    records = [
        Record(i, f"{i}.jpg", SIZE[1], SIZE[0], objects)
        for i, objects in enumerate(truth.by_image(num_images))
    ]
    return Split(records, [], {}), found


def main(out):
    accelerator = Accelerator(cpu=True)
    for num_images, seed in ((23, 0), (1, 1)):  # of one image the other rank has none
        split, found = case(num_images, seed)
        boxes = Objects(found.boxes, found.classes, found.image, scores=found.scores)
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
            total = next(iter(told[0].values()))
            assert (total == 0) if labels == "nothing" else (0.05 < total < 0.95), (labels, total)
    (out / str(accelerator.process_index)).touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
