"""The check of a dataset by engine: `python -m benchmarks.check [--images 20000] [--range-images 1024]`.

Small images (160 x 120 px and alike, hard links to 64 files), boxes alone; each call of `tools.check_data` is a process of
its own, with the index of the dataset made before. Ray's cluster is this machine, and is started and ended within the call.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.conditions import conditions
from benchmarks.startup import write_dataset
from disk import ROOT

CALLS: dict[str, tuple[str, ...]] = {
    "one process": ("--workers", "1"),
    "pool of 2": ("--workers", "2"),
    "pool of 2, the second call": (),
    "half of it (`--share 1/2`), pool of 2": ("--workers", "2", "--share", "1/2"),
    "Ray": ("--engine", "ray"),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--range-images", default="1024")
    args = parser.parse_args()
    print(f"{conditions()}\n\n| Call | s | Report |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root / "data", args.images)
        time.sleep(3)  # what has just changed is not kept
        call(root, ["--share", "1000/1000"], root / "nothing")
        first = ""
        for turn, (name, options) in enumerate(CALLS.items()):
            # The second call of a pool goes on where the first one ended.
            kept = root / f"kept-{turn - 1 if 'second' in name else turn}"
            try:
                seconds, out = call(root, ["--range-images", args.range_images, *options], kept)
            except RuntimeError as error:  # Ray may not be there
                print(f"| {name} | | {str(error).strip().splitlines()[-1]} |")
                continue
            first = first or out
            equal = "none" if "--share" in options else "equal" if out == first else "DIFFERS"
            print(f"| {name} | {seconds:.1f} | {equal} |", flush=True)


def call(root: Path, options: list[str], kept: Path) -> tuple[float, str]:
    """Seconds of one call, and what it prints."""
    config = root / "empty.yaml"
    config.write_text("train: {epochs: 1}\n")
    keys = ["--config", config, "--data.source", "coco", "--data.path", root / "data"]
    keys += ["--data.val_split", "val", "--ranges", kept, *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(root / "cache"), "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    command = [sys.executable, "-m", "tools.check_data", *map(str, keys)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)
    return time.perf_counter() - begun, done.stdout


if __name__ == "__main__":
    main()
