"""Check a dataset before training on it: every image is decoded, every box and mask looked at.

`python -m tools.check_data my_data`, or with the configuration that is to be trained: `--config configs/coco.yaml
--data.path my_data`.

Needs no GPU and no backbone. Exit status: 0 if there is no defect, 1 if there are some, 2 if the
dataset cannot be read at all.

`--ranges DIR` keeps what is found, range by range: a call that was interrupted is made again and goes on, and an image
that has changed is looked at anew. `--share K/N` looks at the K-th of N parts and reports nothing (exit status 0), for N
jobs; the call without it reports. `--engine ray` looks at images on a Ray cluster.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from disk import refuse_unwritable
from errors import UserError, ending_with_one_line
from settings.keys import Config, DataConfig
from settings.load import load_config
from settings.share import share
from settings.tasks import EVERY_PIXEL
from tools.given_folder import has_model, with_folder

FILES = ("json", "picture", "html", "advise")
"""Options that name a file to be written"""


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """What a command line asks for.

    Raises:
        UserError: for what cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.check_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config and --section.key value are those of train_accelerate.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw histograms and samples")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with charts and samples"
    )
    parser.add_argument(
        "--advise",
        type=Path,
        metavar="FILE",
        help="write the configuration that follows from the data",
    )
    parser.add_argument("--repair", type=Path, metavar="DIR", help="write a cleaned copy")
    parser.add_argument(
        "--workers", type=int, metavar="N", help=f"processes that decode (default: {_cores()})"
    )
    parser.add_argument("--ranges", type=Path, metavar="DIR", help="keep findings, range by range")
    parser.add_argument(
        "--range-images",
        type=int,
        default=1024,
        metavar="N",
        help="images of a range (default: 1024); the same in all calls",
    )
    parser.add_argument(
        "--share", type=share, default=(1, 1), metavar="K/N", help="the K-th of N parts alone"
    )
    parser.add_argument(
        "--engine",
        choices=("pool", "ray"),
        default="pool",
        help="processes of this machine, or a Ray cluster (pip install -r requirements-ray.txt)",
    )
    parser.add_argument("--all", action="store_true", help="print every finding, not examples")
    args, rest = parser.parse_known_args(argv)
    for name in ("workers", "range_images"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
    if args.share != (1, 1):
        _refuse_with_share(args)
    if args.engine == "ray" and args.workers is not None:
        raise UserError("--workers: are those of this machine; with --engine ray leave it out")
    args.workers = args.workers or _cores()
    if args.ranges is not None:
        args.ranges = Path(os.path.expanduser(args.ranges))
    for name in FILES:
        refuse_unwritable(f"--{name}", getattr(args, name))
    for name in ("repair", "ranges"):
        refuse_unwritable(f"--{name}", getattr(args, name), folder=True)
    args.of_model = has_model(rest)
    cfg = load_config(
        with_folder(rest), prog=parser.prog, world=1
    )  # nothing is trained on this world
    if cfg.data.packed is not None:
        raise UserError(
            "data.packed: a packed dataset was checked when it was made, and files are what is checked here; leave "
            "the key out"
        )
    return args, cfg


def _refuse_with_share(args: argparse.Namespace) -> None:
    if args.ranges is None:
        raise UserError("--share: needs --ranges DIR, where the other parts find it")
    for name in (*FILES, "repair"):
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name}: a share reports nothing; give it to the call without --share"
            )
    if args.engine == "ray":
        raise UserError("--share: Ray shares the images out itself; leave it out")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = arguments(sys.argv[1:])

import dataclasses
import json
import shlex

from PIL import Image
from tqdm import tqdm

from data.check.advice import sized
from data.check.classes import check_classes
from data.check.forms import form_of, keys_of_copy
from data.check.parts import parts_of, pixel_statistics
from data.check.ranges import ImageCheck
from data.check.repair import refuse_full, write_repaired
from data.check.statistics import split_statistics
from data.dataset import Data
from data.findings import GUESSED_KINDS, Finding, Findings
from data.objects import Objects
from model.start import completed
from report.dataset_picture import PICTURE_TITLE
from report.dataset_text import (
    Statistics,
    exit_status,
    finding_lines,
    statistics_lines,
    verdict,
)
from report.page import refuse_lost_page
from tools.advice import advice_of, fitted, refuse_existing, write_advised
from tools.check_ranges import look_at, read

EXAMPLES = 5
OF_DEFAULT = (
    "No --config was given: sizes below are after the resize of the default, not of what you train; `python -m tools.start "
    "FOLDER` writes a configuration that fits."
)
OF_THE_ORIGINAL = (
    *("revision", "val_split", "train_annotations", "val_annotations", "label_map_column"),
    *("train_images", "val_images", "follow_links", "allow_unlabelled", "category_offset"),
    *("label_values", "reduce_labels", "labels", "box_format", "streaming", "val_on_train"),
)
"""Keys of `data` that say where the original's labels are or what they mean; the copy says so itself"""


def main(argv: Sequence[str]) -> int:
    """Check what a command line asks for; see `check`."""
    return check(*arguments(argv))


def check(args: argparse.Namespace, cfg: Config) -> int:
    """Check and print; the exit status.

    Raises:
        UserError: if the dataset cannot be read, or a file cannot be written.
    """
    if args.repair:
        refuse_full(args.repair)  # before the work
    for option, file in (("--json", args.json), ("--picture", args.picture)):
        refuse_lost(option, file)
    if args.html:
        refuse_lost_page("--html", args.html)
    refuse_existing(args.advise)
    cfg = completed(cfg)
    most = None if args.all else EXAMPLES
    noted = Findings()
    try:
        data = read(args, cfg, noted)
        if args.repair:
            refuse_guessed(data.findings)
            keys_of_copy(data, args.repair)  # before the work
    except UserError:
        print("\n".join(finding_lines(list(noted), most, cfg.data.path)))  # they may explain it
        raise
    images = ImageCheck(data, args.range_images, args.ranges)
    splits, total = images.splits, images.num_images
    look_at(images, args)
    if args.share != (1, 1):
        return 0
    findings = [*data.findings, *images.findings()]
    given, cfg = cfg, sized(fitted(cfg), data)
    parts: dict[str, Objects] | None = None
    statistics: dict[str, Statistics]
    if data.labels in EVERY_PIXEL:
        parts = {name: parts_of(split, data) for name, split in splits.items()}
        statistics = {name: pixel_statistics(parts[name], s, data) for name, s in splits.items()}
        findings += check_classes(cfg.data, data, parts)
    else:
        statistics = {
            name: split_statistics(split, data.taxonomy, cfg.data.image_size)
            for name, split in splits.items()
        }
    fitting = args.of_model or cfg.data.source == "synthetic"  # the default's own data
    lines = [
        verdict(findings, statistics),
        *data.findings.notes,
        "",
        *finding_lines(findings, most, cfg.data.path),
        *(advice_lines(cfg, data) if fitting else [OF_DEFAULT, ""]),
        *statistics_lines(statistics, cfg.data.image_size),
    ]
    print("\n".join(lines))
    if args.advise:
        write_advised(given, data, args.advise)
        print(f"\nwritten to {args.advise}: train with --config {args.advise}")
    if args.json:
        _write_json(args.json, findings, statistics)
        print(f"\nwritten to {args.json}")
    if args.picture:
        from report.dataset_picture import draw_dataset  # torch, only where it is needed

        draw_dataset(args.picture, data, findings, cfg.data.image_size, parts)
        print(f"\ndrawn to {args.picture}")
    if args.html:
        from report.dataset_page import write_dataset_page

        note = "" if fitting else OF_DEFAULT
        write_dataset_page(args.html, cfg.data, data, findings, statistics, parts, note)
        print(f"\nwritten to {args.html}")
    if args.repair:
        _repair(data, findings, args.repair, total, cfg.data)
    return exit_status(findings)


def advice_lines(cfg: Config, data: Data) -> list[str]:
    """What of the configuration does not fit the data; of data that are read wrongly, nothing."""
    if any(finding.kind in GUESSED_KINDS for finding in data.findings):
        return []
    found = [f"    {advice.text}" for advice in advice_of(cfg, data)]
    return (
        ["For this configuration (--advise FILE writes a better one):", *found, ""] if found else []
    )


def refuse_guessed(findings: Findings) -> None:
    """
    Raises:
        UserError: if labels are read wrongly as a whole, so that a copy of what is read would be of no use.
    """
    for finding in findings:
        if finding.kind in GUESSED_KINDS:
            raise UserError(
                f"--repair: first mend this by its key: {finding.kind}: {finding.detail}"
            )


def _repair(
    data: Data, findings: Sequence[Finding], folder: Path, total: int, cfg: DataConfig
) -> None:
    with tqdm(total=total, unit=" images", desc="writing", disable=None) as bar:
        num = write_repaired(data, findings, folder, bar.update)
    keys = keys_of_copy(data, folder)
    given = " ".join(f"--data.{key} {shlex.quote(_word(value))}" for key, value in keys.items())
    usual = DataConfig()
    others = [f"data.{key}" for key in OF_THE_ORIGINAL if key not in keys]
    changed = [k for k in others if getattr(cfg, k[5:]) != getattr(usual, k[5:])]
    drop = f"\nand without {', '.join(changed)}, which the original needs" if changed else ""
    print(
        f"\n{num} repairs, listed in {folder / 'repairs.jsonl'}; what it keeps: {form_of(data).kept}\n"
        f"train with {given}{drop}"
    )


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _write_json(file: Path, findings: Sequence[Finding], statistics: dict[str, Statistics]) -> None:
    kinds: dict[str, dict[str, object]] = {}
    for finding in findings:
        entry = kinds.setdefault(finding.kind, {"remedy": finding.remedy, "count": 0})
        entry["count"] = int(str(entry["count"])) + 1
    content = {
        "verdict": verdict(findings, statistics),
        "exit_status": exit_status(findings),
        "kinds": kinds,
        "findings": [
            {
                "kind": f.kind,
                "remedy": f.remedy,
                "where": f.where,
                "detail": f.detail,
                "split": f.image and f.image[0],
                "place": f.image and f.image[1],
            }
            for f in findings
        ],
        "splits": {name: dataclasses.asdict(figures) for name, figures in statistics.items()},
    }
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1))
    except OSError as error:
        raise UserError(f"--json {file}: cannot be written: {error.strerror}") from error


def refuse_lost(option: str, file: Path | None) -> None:
    """
    Raises:
        UserError: if `file` is there and is not an earlier report, which alone is replaced.
    """
    if file is None or not file.exists():
        return
    try:
        if option == "--json":
            earlier = {"findings", "splits"} <= set(json.loads(file.read_bytes()))
        else:
            with Image.open(file) as image:
                earlier = image.info.get("Title") == PICTURE_TITLE
    except (OSError, ValueError, TypeError, RecursionError):
        earlier = False
    if not earlier:
        raise UserError(
            f"{option} {file}: is there already, and no earlier report; name another file"
        )


if __name__ == "__main__":
    with ending_with_one_line():
        sys.exit(check(*GIVEN))
