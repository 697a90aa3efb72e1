"""All measurements of docs/benchmarks.md, one after the other: `make bench`, `make bench BENCH=--quick`.

What each script prints goes to docs/benchmarks_last.md as soon as it ends; docs/benchmarks.md is written by people.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from disk import ROOT

PHOTOS = "plates-openimages-416"
DATA = ROOT.parent / "shared" / "data"
SCRIPTS: dict[str, tuple[str, str]] = {
    "padding": ("", ""),
    "criterion": ("", "--repeats 3"),
    "data": ("--data {data}", "--data {data} --images 5 --steps 5 --rounds 1"),
    "checkpoint": ("", "--rounds 1"),
    "heads": ("--repeats 3 --times 1", "--repeats 1 --times 1 --batch 2"),
    "coco_step": ("", "--rounds 1"),
    "feature_cache": ("", "--rounds 1 --steps 1"),
    "whole_loop": (f"--data {{data}}/{PHOTOS}", f"--data {{data}}/{PHOTOS} --rounds 2 --sizes 400"),
    "masks": ("", "--repeats 1 --images 20"),
    "coco_metrics": ("", "--images 50"),
    "evaluation": ("", "--images 50 --rounds 1 --steps 5"),
    "scaling": ("", "--images 100000"),
    "startup": ("", "--images 1000 --rounds 1"),
    "check": ("", "--images 500"),
    "reading": ("--images 200000 --read 20000", "--images 1000 --read 640"),
    "prediction": ("", "--images 20"),
    "live_path": ("", "--only AdamW --rounds 1"),
}
"""Module: its arguments, and those of --quick"""
HEAD = """# What `make bench` measured last

Made by `benchmarks/all.py`; what the figures mean is in [benchmarks.md](benchmarks.md). Beside other work on the machine
only ratios of what was measured in turn are worth something.
"""


def section(name: str, arguments: str) -> tuple[str, bool]:
    """Markdown of one script, and whether it ended well."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments.split()]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"## {name}\n\nFailed after {seconds:.0f} s: {last}\n", False
    return f"## {name}\n\n{done.stdout.strip()}\n\n{seconds:.0f} s.\n", True


def main() -> int:
    """Run them all; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="whether all run, not what they cost")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--data", type=Path, default=DATA, help="folder of image folders")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks_last.md")
    args = parser.parse_args()
    args.out.write_text(HEAD)
    failed = False
    for name in args.only:
        arguments = SCRIPTS[name][args.quick]
        if "{data}" in arguments and not (args.data / PHOTOS).is_dir():
            text, well = f"## {name}\n\nLeft out: {args.data} has no {PHOTOS} (`--data`).\n", True
        else:
            text, well = section(name, arguments.format(data=args.data))
        failed |= not well
        print(text, flush=True)
        with args.out.open("a") as file:
            file.write(f"\n{text}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
