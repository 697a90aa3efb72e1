"""What a run on up to 1,024 processes would spend beside its steps: `python -m benchmarks.scaling`.

On paper: nobody here has such a machine. What our own code costs is measured on this one; what a step, a link and a
file system take is assumed, printed, and can be given. Nothing is overlapped that is not stated: all-reduces are
counted whole, though they run beside the backward pass.
"""

import argparse
import hashlib
import math
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.coco_metrics import make_case
from benchmarks.conditions import conditions
from data.canvas import ResizedSizes
from data.feed.sampler import StepSampler
from evaluation.coco import coco_metrics
from settings.keys import ImageSizeConfig

WORLDS = (1, 8, 64, 256, 1024)
IMAGES = (1_000_000, 10_000_000, 100_000_000)
MICRO = 16
AGREED_BYTES = 100
COPIES = 4
"""Of what trains, in a checkpoint: weights, AdamW's two, the average"""
AT_ONCE = 1_000_000
FILES_TRIED = 2000
METRICS_IMAGES = 1000
STEPS_TRIED = 34
"""Two windows of the order of an epoch, and the begin of a third"""


def write_sizes(num_images: int, folder: Path) -> np.ndarray:
    """A mapped file of sizes, int64 [N, 2]: one side 640 px, the other one of 300 lengths, as in COCO."""
    sizes = np.memmap(folder / "sizes", np.int64, "w+", shape=(num_images, 2))
    rng = np.random.default_rng(0)
    for start in range(0, num_images, AT_ONCE):
        part = sizes[start : start + AT_ONCE]
        part[:] = 640
        turned = rng.integers(0, 2, len(part))
        part[np.arange(len(part)), turned] = rng.integers(340, 640, len(part))
    return sizes


def pick_ms(sizes: np.ndarray, world: int) -> float:
    """CPU time per step in which a rank finds out which images are its own, epochs' borders left out."""
    resized = ResizedSizes(sizes, ImageSizeConfig(longest=640))
    sampler = StepSampler(resized, MICRO * world, MICRO, seed=0, world=world)
    stream = iter(sampler)
    next(stream)  # where an order is held, it is made here
    begun = time.process_time()
    for _ in range(STEPS_TRIED):
        next(stream)
    return 1e3 * (time.process_time() - begun) / STEPS_TRIED


def stat_us(folder: Path) -> float:
    """Time to look whether a file has changed, on this machine's disk."""
    files = [folder / f"{number}" for number in range(FILES_TRIED)]
    for file in files:
        file.touch()
    begun = time.perf_counter()
    for file in files:
        file.stat()
    return 1e6 * (time.perf_counter() - begun) / FILES_TRIED


def hashed_gb_s() -> float:
    """Rate at which a checkpoint's files are hashed."""
    content = bytes(1 << 27)
    begun = time.perf_counter()
    hashlib.sha256(content).digest()
    return len(content) / 1e9 / (time.perf_counter() - begun)


def metrics_s() -> float:
    """CPU time of COCO's metrics of 200,000 boxes of 80 classes, 100 an image, on one process."""
    case = make_case(METRICS_IMAGES, 80, 100)
    begun = time.process_time()
    coco_metrics(*case)
    return (time.process_time() - begun) * 2000 / METRICS_IMAGES


def all_reduce_ms(num_bytes: float, world: int, gb_s: float, latency_us: float) -> float:
    """By a ring: each byte passes a link twice, less what a rank has itself."""
    if world == 1:
        return 0.0
    moved = 2 * (world - 1) / world * num_bytes
    return 1e3 * moved / (gb_s * 1e9) + 1e-3 * latency_us * math.ceil(math.log2(world))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    give = parser.add_argument
    give(
        "--step-s", type=float, default=0.1, help=f"a step of {MICRO} images on one device, assumed"
    )
    give(
        "--trained-m",
        type=float,
        default=8.8,
        help="million parameters that train (coco.yaml: 8.8)",
    )
    give("--link-gb-s", type=float, default=20.0, help="per process, assumed")
    give("--latency-us", type=float, default=20.0, help="per hop, assumed")
    give("--disk-gb-s", type=float, default=1.0, help="writing checkpoints, assumed")
    give("--network-stat-us", type=float, default=200.0, help="per file on a network disk, assumed")
    give("--val-images", type=int, default=5000)
    give(
        "--largest-class",
        type=float,
        default=0.2,
        help="part of all boxes that are of the most frequent class, which one process measures (1: there is no other)",
    )
    give("--metrics-s", type=float, help="CPU time per 200,000 predictions; default: measured here")
    give("--images", type=int, nargs="+", default=IMAGES)
    args = parser.parse_args()
    if args.metrics_s is None:
        args.metrics_s = metrics_s()
    print(
        f"{conditions()}\n\nAssumed or given: {', '.join(f'{k} {v}' for k, v in vars(args).items())}\n"
    )
    gradient = 4e6 * args.trained_m
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(
            "| Images | Processes | Picking, ms | Agreeing, ms | All-reduce, ms | Beside a step | Steps of an epoch, h |"
        )
        print("|---|---|---|---|---|---|---|")
        for images in args.images:
            sizes = write_sizes(images, folder)
            for world in WORLDS:
                parts = (
                    pick_ms(sizes, world),
                    all_reduce_ms(AGREED_BYTES * world, world, args.link_gb_s, args.latency_us),
                    all_reduce_ms(gradient, world, args.link_gb_s, args.latency_us),
                )
                seconds = args.step_s + sum(parts) / 1e3
                hours = images / (MICRO * world) * seconds / 3600
                share = 100 * sum(parts) / 1e3 / seconds
                cells = " | ".join(f"{part:.2f}" for part in parts)
                print(
                    f"| {images:,} | {world:,} | {cells} | {share:.1f} % | {hours:.2f} |",
                    flush=True,
                )
        local, hashing = stat_us(folder), hashed_gb_s()
    print(
        "\n| Processes | Evaluating, s | of it metrics, s | Checkpoint of rank 0, s |\n|---|---|---|---|"
    )
    for world in WORLDS:
        predicting = args.val_images / world / (MICRO / args.step_s) * 0.5  # no backward pass
        metrics = args.metrics_s * args.val_images * 100 / 200_000
        metrics *= max(1 / world, args.largest_class)
        size = COPIES * gradient
        saving = size / (args.disk_gb_s * 1e9) + size / (hashing * 1e9)
        print(f"| {world:,} | {predicting + metrics:.1f} | {metrics:.1f} | {saving:.2f} |")
    print(f"\n(a file is looked at in {local:.1f} us here, {hashing:.1f} GB/s are hashed)\n")
    print(
        "| Images | Start, files on a disk of the node, s | files on a network disk, s | shards, s |\n|---|---|---|---|"
    )
    for images in args.images:
        shards = images / 2048 * args.network_stat_us * 1e-6
        local_s, network_s = images * local * 1e-6, images * args.network_stat_us * 1e-6
        print(f"| {images:,} | {local_s:.0f} | {network_s:.0f} | {shards:.1f} |")


if __name__ == "__main__":
    main()
