"""Padded over real pixels of batches grouped by aspect ratio and of random ones.

`python -m benchmarks.padding`: a photo-like mix of shapes at three sizes, batches of 4 and 16.
"""

import numpy as np

from benchmarks.conditions import conditions
from data.canvas import resized_size, step_canvas
from data.feed.sampler import StepSampler
from settings.keys import ImageSizeConfig

SHAPES = {(480, 640): 0.4, (427, 640): 0.3, (640, 480): 0.12, (360, 640): 0.08, (640, 427): 0.08}
"""(height, width) of the photos and their share; the rest is square"""
NUM_IMAGES = 5000


def waste(sizes: np.ndarray, batches: list[np.ndarray]) -> float:
    """Pixels of the canvases over pixels of the images."""
    padded = sum(len(batch) * np.prod(step_canvas(sizes[batch])) for batch in batches)
    return float(padded / sum(sizes[batch].prod(1).sum() for batch in batches))


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    shapes = [*SHAPES, (640, 640)]
    picks = rng.choice(len(shapes), NUM_IMAGES, p=[*SHAPES.values(), 1 - sum(SHAPES.values())])
    print(f"{conditions()}\n")
    print("| Longest side | Batch | Grouped | Random | Ratio |\n|---|---|---|---|---|")
    for longest in (640, 1024, 1333):
        size = ImageSizeConfig(longest)
        sizes = np.array([resized_size(shapes[pick][0], shapes[pick][1], size) for pick in picks])
        for batch_size in (4, 16):
            sampler = StepSampler(sizes, batch_size, batch_size, seed=0)
            steps = range(2 * NUM_IMAGES // batch_size)
            grouped = [np.array([r.index for r in sampler.global_batch(s)]) for s in steps]
            shuffled = list(
                rng.permutation(NUM_IMAGES)[: NUM_IMAGES // batch_size * batch_size].reshape(
                    -1, batch_size
                )
            )
            ours, theirs = waste(sizes, grouped), waste(sizes, shuffled)
            print(f"| {longest} | {batch_size} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()
