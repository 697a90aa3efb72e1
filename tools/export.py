"""Export a run, also one that was stopped, or any checkpoint: a folder for `transformers.pipeline`, and ONNX.

`python -m tools.export runs/mine --onnx`
`python -m tools.export runs/mine/checkpoints/step-000500 --out exports/early`

The metric of what is exported is measured beside the checkpoint's own on the validation split (parity.json); where they
differ by more than a tenth of a point, nothing is exported. Keys of the run's configuration can be given anew, such as
--data.path where the dataset has moved.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from disk import end_with_parent, refuse_unwritable
from errors import UserError, ending_with_one_line
from settings.keys import Config
from settings.load import load_config

CHECKPOINTS, CONFIG = "checkpoints", "state/config.yaml"
LONGEST_WAIT_S = 1800.0


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What a command line asks for, and further keys of a configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument(
        "--out", type=Path, help="default: export/ of the run, or export-step-... for a checkpoint"
    )
    parser.add_argument("--onnx", action="store_true", help="write onnx/model.onnx as well")
    parser.add_argument(
        "--images",
        type=int,
        help="validation images that the artefacts are compared on (default: all)",
    )
    parser.add_argument(
        "--without_data",
        action="store_true",
        help="do not read the dataset: nothing is measured, and the export is checked on noise",
    )
    parser.add_argument(
        "--push", action="store_true", help="upload it to the Hub: --hub.repo_id, --hub.private"
    )
    parser.add_argument(
        "--wait", action="store_true", help="for a checkpoint that is being written"
    )
    parser.add_argument(
        "--with_parent", type=int, metavar="PID", help="end when the process that starts this ends"
    )
    args, rest = parser.parse_known_args(argv)
    if args.images is not None and (args.images < 1 or args.without_data):
        raise UserError(f"--images {args.images}: must be at least 1, and needs the dataset")
    return args, rest


def chosen(source: Path) -> tuple[Path, Path]:
    """The checkpoint that is meant, and its run folder: the best one of a run, or the newest.

    Raises:
        UserError: if there is none.
    """
    if (source / CONFIG).is_file():
        place = source.resolve()  # `best` and `last` are links
        return place, place.parent.parent
    shelf = source / CHECKPOINTS
    best = (shelf / "best").resolve()
    if (best / CONFIG).is_file():
        return best, source
    found = [p.parent.parent for p in shelf.glob(f"step-*/{CONFIG}")]
    names = sorted(found, key=lambda place: (len(place.name), place.name))  # by number
    if not names:
        raise UserError(
            f"{source}: neither a run folder with checkpoints nor a checkpoint (…/checkpoints/step-000500)"
        )
    return names[-1], source


def out_of(args: argparse.Namespace, checkpoint: Path, run: Path) -> Path:
    """The folder that is written."""
    name = "export" if args.source == run else f"export-{checkpoint.name}"
    return args.out or run / name


def configuration(argv: Sequence[str]) -> tuple[argparse.Namespace, Path, Path, Config]:
    """Everything that a command line says, checked before the work.

    Raises:
        UserError: for what cannot be.
    """
    args, rest = arguments(argv)
    if args.with_parent is not None:
        end_with_parent(args.with_parent)
    parent, end = os.getppid(), time.monotonic() + LONGEST_WAIT_S
    while args.wait and not (args.source / CONFIG).is_file():
        if os.getppid() != parent or time.monotonic() > end:  # who writes it is gone
            raise UserError(f"{args.source}: was not written")
        time.sleep(0.5)
    checkpoint, run = chosen(args.source)
    refuse_unwritable("--out", out_of(args, checkpoint, run).absolute().parent, folder=True)
    words = ["--config", str(checkpoint / CONFIG), *rest, "--run.output_dir", str(run)]
    return args, checkpoint, run, load_config(words, prog="python -m tools.export", world=1)


if __name__ == "__main__":  # before imports that take seconds
    with ending_with_one_line():
        GIVEN = configuration(sys.argv[1:])

from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from data.build import build_data
from data.dataset import Data
from data.feed.loader import eval_loader
from data.schema import Split
from data.taxonomy import Taxonomy
from devices import compute_in_fp32, pins
from disk import alone
from evaluation.metrics import measure
from evaluation.predictions import flat_threshold, predict_split
from export.card import CARD, is_card
from export.detector import load_detector
from export.hub import push, resolve_repo_id
from export.onnx_graph import FILE as ONNX_FILE
from export.onnx_graph import Session, require_packages, write_onnx
from export.parity import ONNX, TRANSFORMERS, parity
from model.build import Detector, build_model
from model.memory import MemoryWatch
from model.start import completed
from report.evaluation import read_metrics
from run.evaluate import evaluation_folder
from run.export import load_weights, write_export
from run.log import DONE
from settings.tasks import LABELS
from training.state import load_state


def main(argv: Sequence[str]) -> Path:
    """Export what a command line asks for; the folder. See `export`."""
    return export(*configuration(argv))


def export(args: argparse.Namespace, checkpoint: Path, run: Path, cfg: Config) -> Path:
    """Write the folder, or leave an older one as it is.

    Raises:
        UserError: if checkpoint, dataset or backbone are not what they were, something would be lost, or an artefact is
            worse than the checkpoint.
    """
    if args.onnx:
        require_packages()
    out = out_of(args, checkpoint, run)
    refuse_lost(out)
    repo_id = resolve_repo_id(replace(cfg.hub, push=args.push), cfg.run)
    if repo_id and args.source == run and not args.onnx and args.out is None and finished(run):
        print(f"uploaded to {push(out, repo_id, cfg.hub.private, again(args))}")
        return out
    transformers_logging.disable_progress_bar()
    compute_in_fp32()
    cfg = completed(cfg)
    state = load_state(checkpoint)
    data = None if args.without_data else read_data(cfg, state.facts)
    taxonomy = known_taxonomy(cfg, state.facts) if data is None else data.taxonomy
    detector = build_model(cfg.model, taxonomy, cfg.data.image_size)
    if detector.backbone.fingerprint != state.facts.get("backbone_sha256"):
        raise UserError(
            f"{checkpoint}: was trained with another backbone than {cfg.model.backbone} is"
        )
    load_weights(checkpoint, detector, cfg)
    metrics = read_metrics(evaluation_folder(run, state.step))
    compared = None
    if data is not None:
        places = range(min(args.images or len(data.val), len(data.val)))
        part = data.val if len(places) == len(data.val) else data.val.subset(places)
        whole = len(part) == len(data.val)
        logged = (
            metrics if whole and cfg.data.tiles.size is None else None
        )  # tiles are not compared
        own = logged or score(detector, part, data, cfg)
        compared = (part, data.taxonomy, own)
        if whole and cfg.data.tiles.size is None:
            metrics = own
    told: list[str] = []

    def complete(folder: Path) -> None:
        session = None
        if args.onnx:
            session = write_onnx(load_detector(str(folder)), folder / ONNX_FILE)
        if compared is not None:
            told.append(compare(folder, session, *compared, cfg))

    split = None if data is None else data.val
    with alone(run / f".{out.name}.lock"):  # an upload may outlive the run that has begun it
        write_export(cfg, detector, split, state.step, metrics, state.facts, out, complete)
        print(f"{checkpoint.name} exported to {out}{', with ' + ONNX_FILE if args.onnx else ''}")
        print("\n".join(told) or "nothing was measured (--without_data)")
        if repo_id:
            message = f"Upload step {state.step}"
            print(f"uploaded to {push(out, repo_id, cfg.hub.private, again(args), message)}")
    return out


def finished(run: Path) -> bool:
    """Whether a run is done, and its export is whole."""
    return (run / DONE).is_file() and (run / "export/model.safetensors").is_file()


def again(args: argparse.Namespace) -> str:
    """The command that repeats an upload."""
    return f"python -m tools.export {args.source} --push"


def compare(
    folder: Path,
    session: Session | None,
    split: Split,
    taxonomy: Taxonomy,
    own: dict[str, Any],
    cfg: Config,
) -> str:
    """Measure the artefacts in an exported folder; a line that says how they do."""

    def ticked(places: Any) -> Any:
        return tqdm(places, total=len(split), unit="image", desc="comparing", disable=None)

    report = parity(folder, session, split, taxonomy, own, cfg.eval, ticked)
    key, artefacts = report["metric"], report["artefacts"]
    each = ", ".join(
        f"{name} {'-' if artefacts[name][key] is None else format(artefacts[name][key], '.4f')}"
        for name in ("checkpoint", TRANSFORMERS, ONNX)
        if name in artefacts
    )
    return f"{key} on {report['images']} validation image(s): {each} (parity.json)"


def read_data(cfg: Config, facts: dict[str, Any]) -> Data:
    """The run's dataset.

    Raises:
        UserError: if it cannot be read, or is another one by now.
    """
    hint = "give its place (--data.path), or --without_data"
    try:
        data = build_data(cfg.data, cfg.run.seed, cfg.run.max_bad_images, LABELS[cfg.model.task])
    except UserError as error:
        raise UserError(
            f"{error}\n  the dataset of the run is read to measure the export; {hint}"
        ) from error
    if data.fingerprint() != facts.get("data_sha256"):
        raise UserError(
            f"the dataset is not the one that the run was trained and evaluated on; {hint}"
        )
    return data


def known_taxonomy(cfg: Config, facts: dict[str, Any]) -> Taxonomy:
    """The classes as the checkpoint knows them.

    Raises:
        UserError: if that is not enough for the task.
    """
    if cfg.model.task == "panoptic_segmentation":
        raise UserError("--without_data: which classes are stuff is known from the dataset alone")
    labels = facts["labels"]
    return Taxonomy(tuple(labels), tuple(range(len(labels))))


def refuse_lost(out: Path) -> None:
    """
    Raises:
        UserError: if the folder to be written holds something that is no export.
    """
    if not out.exists():
        return
    if not (out.is_dir() and (not any(out.iterdir()) or is_export(out))):
        raise UserError(f"--out {out}: is there, and no export; it would be replaced")


def is_export(folder: Path) -> bool:
    """Whether a folder has a model that was exported here; those of others look alike but for the card."""
    needed = ("config.json", "preprocessor_config.json", CARD)
    try:
        return all((folder / name).is_file() for name in needed) and is_card(
            (folder / CARD).read_text(errors="replace")
        )
    except OSError:
        return False


def score(detector: Detector, split: Split, data: Data, cfg: Config) -> dict[str, Any]:
    """Metrics of the checkpoint on validation images, as training evaluates them."""
    accelerator = Accelerator(cpu=True)
    loader = eval_loader(
        split, detector.rule, cfg.eval.batch_size, cfg.data.num_workers, pins(accelerator.device)
    )
    predictions = predict_split(
        accelerator,
        detector.trainable.eval(),
        loader,
        len(split),
        cfg.eval.max_detections,
        flat_threshold(data.labels, cfg.eval),
        MemoryWatch(accelerator.device, "eval.batch_size"),
    )
    assert predictions is not None
    return measure(data.labels, split, predictions, data.taxonomy)


if __name__ == "__main__":
    with ending_with_one_line():
        export(*GIVEN)
