"""What prediction costs: `taskset -c 0 python -m benchmarks.prediction`, or with `--model runs/demo/export`.

The command `python -m tools.predict` on photos of 1024 x 576 px, as it is called: start, drawings and files are in its time.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.conditions import conditions
from data.taxonomy import Taxonomy
from disk import ROOT
from model.build import build_model
from settings.load import load_config

SIZE = (1024, 576)
"""(width, height), px"""


def write_photos(folder: Path, number: int) -> None:
    """JPEG files with soft shapes and some grain, of about the size of photos."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for place in range(number):
        soft = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8))
        pixels = np.asarray(soft.resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
        grain = rng.integers(-6, 7, pixels.shape, dtype=np.int16)
        picture = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{place:04d}.jpg", quality=90)


def write_model(folder: Path) -> Path:
    """The model of configs/synthetic.yaml as it begins; it finds as many boxes as it has queries."""
    cfg = load_config(["--config", str(ROOT / "configs/synthetic.yaml")])
    detector = build_model(cfg.model, Taxonomy(("plate",), (0,)), cfg.data.image_size)
    detector.model.save_pretrained(folder)
    detector.trainable.processor.save_pretrained(folder)
    return folder


def timed(arguments: list[str]) -> tuple[float, str]:
    """Seconds that a prediction takes, and the last line that it prints.

    Raises:
        CalledProcessError: if it fails.
    """
    command = [sys.executable, "-m", "tools.predict", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    return time.perf_counter() - start, done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Predict on all photos and on one, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="exported folder (default: the embedded model, not trained)"
    )
    parser.add_argument("--images", type=int, default=100)
    args = parser.parse_args()
    print(f"{conditions()}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.model:
            model = ["--model", str(Path(args.model).resolve())]
        else:
            model = ["--model", str(write_model(folder / "model")), "--threshold", "0"]
        write_photos(folder / "photos", args.images)
        timed([*model, str(folder / "photos/0000.jpg"), "--out", str(folder / "first")])
        one, _ = timed([*model, str(folder / "photos/0000.jpg"), "--out", str(folder / "one")])
        many, line = timed([*model, str(folder / "photos"), "--out", str(folder / "out")])
    print("| Images | s | images/s, start included | without the start | as it says itself |")
    print("|---|---|---|---|---|")
    own = re.search(r"([\d.]+) images/s", line)
    rest = (args.images - 1) / (many - one)
    print(
        f"| {args.images} | {many:.1f} | {args.images / many:.1f} | {rest:.1f} | "
        f"{own[1] if own else '-'} |"
    )
    print(f"\nThe start takes {one:.1f} s.")


if __name__ == "__main__":
    main()
