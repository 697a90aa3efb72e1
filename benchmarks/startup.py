"""Start-up by number of images: `python -m benchmarks.startup [--images 1000 10000 100000]`.

COCO files with seven boxes an image, each start in a process of its own: seconds from reading the
configuration to the first batch, with no cache at all, with the headers of images alone (annotations are
read and checked anew), with the index, and of shards (`tools.pack`). Then what reading an encoded image takes at a
random place, as a file and in a shard, what a process holds, and by how much a forked worker
grows that looks at every record once, with records as columns and as a list of objects. The images are
hard links to a few small files: what a disk adds by looking at many is not in it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

BOXES = 7
FILES = 64
"""Different images"""
PER_FOLDER = 1000
STARTS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "headers": ("headers-",),
    "index": ("headers-", "dataset-"),
    "packed": ("headers-", "dataset-"),
}
"""What of the cache is left, by name of a start"""
READ = 5000
"""Images that are read at random places"""


def write_dataset(root: Path, num: int) -> None:
    """`num` training images, and a twentieth of them for validation."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    sizes = [(160, 120), (120, 160), (160, 160), (200, 120)]
    for place in range(FILES):
        width, height = sizes[place % 4]
        pixels = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(root / f"{place}.jpg")
    for split, many in (("train", num), ("val", max(FILES, num // 20))):
        images: list[dict] = []
        annotations: list[dict] = []
        boxes = np.round(rng.uniform(8, 60, (many, BOXES, 4)), 2).tolist()
        classes = rng.integers(1, 11, (many, BOXES)).tolist()
        for index in range(many):
            width, height = sizes[index % 4]
            name = f"{index // PER_FOLDER:04d}/{index:08d}.jpg"
            (root / split / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(root / f"{index % FILES}.jpg", root / split / name)
            images.append({"id": index, "file_name": name, "width": width, "height": height})
            for box, category in zip(boxes[index], classes[index], strict=True):
                entry = {"id": len(annotations), "image_id": index, "category_id": category}
                annotations.append({**entry, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, 11)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))


def start(root: str, packed: str | None) -> None:
    """One start up to its first batch; prints seconds, MB and ms."""
    from data.build import build_data
    from data.canvas import resized_sizes
    from data.feed.loader import TrainDataset, batches_of, train_loader
    from data.feed.sampler import StepSampler
    from settings.keys import DataConfig, ImageSizeConfig

    size = ImageSizeConfig(longest=160)
    cfg = DataConfig(
        source="coco", path=root, val_split="val", image_size=size, num_workers=2, packed=packed
    )
    before = psutil.Process().memory_info().rss
    begun = time.perf_counter()
    data = build_data(cfg, 0)
    data.fingerprint()
    sampler = StepSampler(resized_sizes(data.train.table.sizes, size), 16, 16, 0)
    with batches_of(train_loader(TrainDataset(data.train, cfg, 0), sampler, pin=False)) as batches:
        next(batches)
    seconds = time.perf_counter() - begun
    own = (psutil.Process().memory_info().rss - before) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    columns, objects = _growth_mb(data.train.records), _growth_mb(list(data.train.records))
    places = np.random.default_rng(0).integers(0, len(data.train), READ).tolist()
    begun = time.perf_counter()
    for place in places:
        source = data.train.images[place]
        _ = source.read_bytes() if isinstance(source, Path) else source
    read = 1e3 * (time.perf_counter() - begun) / READ
    print(json.dumps([seconds, own, peak, columns, objects, read]))


def _growth_mb(records: Sequence[object]) -> float:
    """Of a forked process that looks at every record once: memory of its own, MB."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        before = psutil.Process().memory_full_info().uss
        for index in np.random.default_rng(0).permutation(len(records)).tolist():
            _ = records[index]
        grown = psutil.Process().memory_full_info().uss - before
        os.write(writing, str(grown).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        return float(stream.read()) / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--packed", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        return start(args.start, args.packed)
    print(
        "| Images | First start, s | Headers known, s | Second start, s | Shards, s | Reading a file, ms | From a shard, ms "
        "| Held by a process, MB | Peak of the first, MB | A worker grows, MB | ... with a list of records, MB |\n"
        f"|{'---|' * 11}"
    )
    for num in args.images:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {num:,} | {row(Path(folder), num, args.rounds)} |", flush=True)
    return None


def row(folder: Path, num: int, rounds: int) -> str:
    """The table's line for `num` images."""
    data, packed = folder / "data", folder / "packed"
    write_dataset(data, num)
    keys = ("--data.source", "coco", "--data.path", str(data), "--data.val_split", "val")
    _run(folder, "tools.pack", *keys, "--out", str(packed))
    cache = folder / "cache" / "permafrost"
    found: dict[str, list[list[float]]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, kept in STARTS.items():
            time.sleep(2.2)  # files that have just changed are not indexed
            for old in cache.glob("[!.]*"):
                if not old.name.startswith(kept or ("nothing",)):
                    subprocess.run(["rm", "-r", old], check=True)
            given = ("--packed", str(packed)) if name == "packed" else ()
            output = _run(folder, "benchmarks.startup", "--start", str(data), *given)
            found[name].append(json.loads(output.splitlines()[-1]))
    seconds = {name: [starts[0] for starts in all_of] for name, all_of in found.items()}
    told = [
        f"{statistics.median(own):.2f} [{min(own):.2f}-{max(own):.2f}]" for own in seconds.values()
    ]
    _, held, _, columns, objects, file = map(statistics.median, zip(*found["index"], strict=True))
    shard = statistics.median(start[5] for start in found["packed"])
    peak = statistics.median(first[2] for first in found["nothing"])
    sizes = (f"{mb:.0f}" for mb in (held, peak, columns, objects))
    return " | ".join([*told, f"{file:.3f}", f"{shard:.3f}", *sizes])


def _run(folder: Path, module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
