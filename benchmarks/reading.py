"""Many small images as loose files, packed, and packed at an address: `python -m benchmarks.reading`.

Writes COCO files with copies of 64 different JPEGs of 64 x 64 px (each a file of its own) and packs them; then
each start up to its first batch, and a stretch of the first epoch through the data feed of training (two workers that
read, decode and collate), every one in a process of its own. The address is one of this disk (`file://`): what is
measured of it is our cache, not a network. What is there from an earlier call is not made again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.conditions import conditions

SIDE_PX = 64
DIFFERENT = 64
PER_FOLDER = 1000
BATCH = 64
WORKERS = 2


def write_dataset(root: Path, num: int, boxes: int) -> None:
    """`num` training images with some boxes each, and 1,000 for validation."""
    rng = np.random.default_rng(0)
    contents = []
    root.mkdir(parents=True)
    for number in range(DIFFERENT):
        pixels = rng.integers(0, 255, (SIDE_PX // 8, SIDE_PX // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((SIDE_PX, SIDE_PX)).save(root / "image.jpg", quality=90)
        contents.append((root / "image.jpg").read_bytes() + bytes([number]))  # none like another
    (root / "annotations").mkdir()
    for split, many in (("train", num), ("val", 1000)):
        with (root / "annotations" / f"{split}.json").open("w") as file:
            _write_split(file, root / split, many, boxes, contents)


def _write_split(file, folder: Path, many: int, boxes: int, contents: list[bytes]) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(many)
    names = [f"{index // PER_FOLDER:04d}/{index:08d}.jpg" for index in range(many)]
    for number in range(0, many, PER_FOLDER):
        (folder / names[number]).parent.mkdir(parents=True)
    for index, name in enumerate(names):
        (folder / name).write_bytes(contents[index % DIFFERENT])
    images = [
        {"id": index, "file_name": name, "width": SIDE_PX, "height": SIDE_PX}
        for index, name in enumerate(names)
    ]
    corners = rng.integers(0, 32, (many * boxes, 2)).tolist()
    annotations = [
        {
            **{"id": number, "image_id": number // boxes, "category_id": 1 + number % 10},
            **{"bbox": [x, y, 24, 20], "area": 480, "iscrowd": 0},
        }
        for number, (x, y) in enumerate(corners)
    ]
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 11)]
    json.dump({"images": images, "annotations": annotations, "categories": categories}, file)


def start_and_read(arguments: dict) -> dict[str, float]:
    """Seconds to the first batch, and images a second of the following ones."""
    from data.build import build_data
    from data.canvas import ResizedSizes
    from data.feed.loader import TrainDataset, batches_of, train_loader
    from data.feed.sampler import StepSampler
    from settings.keys import DataConfig, ImageSizeConfig

    read = arguments.pop("read")
    size = ImageSizeConfig(longest=SIDE_PX)
    cfg = DataConfig(
        source="coco", val_split="val", image_size=size, num_workers=WORKERS, **arguments
    )
    begun = time.perf_counter()
    data = build_data(cfg, 0)
    sampler = StepSampler(ResizedSizes(data.train.table.sizes, size), BATCH, BATCH, 0)
    with batches_of(train_loader(TrainDataset(data.train, cfg, 0), sampler, pin=False)) as batches:
        next(batches)
        started = time.perf_counter() - begun
        begun = time.perf_counter()
        for _ in range(read // BATCH):
            next(batches)
        seconds = time.perf_counter() - begun
    return {"start": started, "rate": read // BATCH * BATCH / max(seconds, 1e-9)}


def held(folder: Path) -> str:
    """Bytes on the disk, and inodes."""
    size = count = 0
    for parent, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        size += sum(os.lstat(os.path.join(parent, name)).st_blocks * 512 for name in files)
    return f"{size / 1e9:.2f} | {count:,}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="for what is made, to be kept; default: none")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--boxes", type=int, default=2, help="of an image")
    parser.add_argument("--read", type=int, default=100_000, help="images of the stretch")
    parser.add_argument("--only", choices=("write", "pack", "read"), help="one of the parts")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(start_and_read(json.loads(args.child))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        measure(args, Path(args.folder or temporary).resolve())


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Make what is asked for, and print what it took."""
    data, packed, cache = folder / "data", folder / "packed", folder / "cache"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    if args.only in (None, "write") and not data.exists():
        begun = time.perf_counter()
        write_dataset(data, args.images, args.boxes)
        print(f"written in {time.perf_counter() - begun:.0f} s", flush=True)
    if args.only in (None, "pack"):
        first = json.dumps({"path": str(data), "read": 0})
        found = json.loads(_run("benchmarks.reading", "--child", first))
        print(f"read and checked, to the first batch, in {found['start']:.0f} s", flush=True)
        begun = time.perf_counter()
        keys = ("--data.source", "coco", "--data.path", str(data), "--data.val_split", "val")
        _run("tools.pack", *keys, "--out", str(packed))
        print(f"packed in {time.perf_counter() - begun:.0f} s", flush=True)
    if args.only in (None, "read"):
        table(args, data, packed, cache)


def table(args: argparse.Namespace, data: Path, packed: Path, cache: Path) -> None:
    """Start, read and print."""
    address = {"packed": f"file://{packed}", "packed_cache_folder": str(cache / "pieces")}
    rows = {
        "files": ({}, data),
        "packed": ({"packed": str(packed)}, packed),
        "address, first start": (address, None),
        "address, later": (address, cache / "pieces"),
    }
    print(f"{conditions()}\n")
    print(
        "| | Start, s | Images a second | An epoch, s | GB on disk | Inodes |\n|---|---|---|---|---|---|"
    )
    for name, (keys, folder) in rows.items():
        given = {"path": str(data), "read": args.read, **keys}
        found = json.loads(_run("benchmarks.reading", "--child", json.dumps(given)))
        told = f"{found['start']:.1f} | {found['rate']:.0f} | {args.images / found['rate']:.0f}"
        print(f"| {name} | {told} | {' | ' if folder is None else held(folder)} |", flush=True)


def _run(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", module, *arguments]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return found.stdout.strip().rpartition("\n")[2]


if __name__ == "__main__":
    main()
