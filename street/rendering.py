"""Render synthetic street scenes as JPEG files.

`python -m street.rendering --seed 99 --num 6 --out scenes`
"""

import argparse
from pathlib import Path

from PIL import Image

from data.sources.synthetic import JPEG_QUALITY
from street.scenes import render_scene


def main() -> None:
    """Write `--num` scenes of `--seed` into `--out`."""
    parser = argparse.ArgumentParser(prog="python -m street.rendering", description=__doc__)
    parser.add_argument("--seed", type=int, default=99, help="seed of the scenes (default: 99)")
    parser.add_argument("--num", type=int, default=6, help="number of scenes (default: 6)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(args.num):
        image = Image.fromarray(render_scene(args.seed, index).image)
        image.save(args.out / f"scene-{index:03d}.jpg", quality=JPEG_QUALITY)


if __name__ == "__main__":
    main()
