"""Promises as experiments: `python -m conformance [--framework NAME] [--experiment NAME] [--peer NAME=SCRIPT@PYTHON]`."""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conformance import faults, sameness
from conformance.adapters.ours import Ours
from conformance.adapters.rf_detr import RfDetr
from conformance.adapters.transformers_scripts import Instances, NoTrainer, Trainer
from conformance.launch import Adapter, Bench
from conformance.table import table
from conformance.verdicts import NotMeasured, Verdict

EXPERIMENTS: dict[str, tuple[str, Callable[[Bench], Verdict]]] = {
    "weights": ("Weights that do not fit are refused", faults.weights),
    "processes": ("One process or two: the same steps", sameness.processes),
    "four_processes": ("One process or four: the same steps", sameness.four_processes),
    "accumulation": ("Micro-batches: the same steps as the whole batch", sameness.accumulation),
    "schedule": ("One process or two: the same learning rates", sameness.schedule),
    "epochs": ("Each image once in an epoch", sameness.epochs),
    "evaluation": ("One process or two: the same AP", sameness.evaluation),
    "augmentation": ("No two data workers augment alike", sameness.augmentation),
    "resume": ("A resumed run is bit-equal to an undisturbed one", faults.resume),
    "resume_elsewhere": ("Resumed on another number of processes", faults.resume_elsewhere),
    "killed_saving": (
        "Killed while saving: goes on from an intact checkpoint",
        faults.killed_saving,
    ),
    "broken_image": ("A broken image is named", faults.broken_image),
    "export": ("The export has the AP that was logged", faults.export),
}


FOLDER = "FOLDER"
EXAMPLES = f"{FOLDER}/transformers/examples/pytorch"
HF = f"{FOLDER}/hf/bin/python"
PEERS: dict[str, tuple[Callable[[Path, str], Adapter], str]] = {
    "transformers-trainer": (Trainer, f"{EXAMPLES}/object-detection/run_object_detection.py@{HF}"),
    "transformers-no-trainer": (
        NoTrainer,
        f"{EXAMPLES}/object-detection/run_object_detection_no_trainer.py@{HF}",
    ),
    "transformers-instances": (
        Instances,
        f"{EXAMPLES}/instance-segmentation/run_instance_segmentation_no_trainer.py@{HF}",
    ),
    "rfdetr": (RfDetr, f"{FOLDER}/rfdetr/bin/python"),
}
"""The adapter of a peer, and SCRIPT@PYTHON (or PYTHON) where docs/conformance.md installs it"""


def measure(bench: Bench, name: str) -> Verdict:
    try:
        verdict = EXPERIMENTS[name][1](bench)
    except NotMeasured as reason:
        verdict = Verdict("not measured", str(reason))
    return dataclasses.replace(verdict, figure=verdict.figure.replace(f"{bench.folder}/", ""))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("conformance", description=__doc__)
    parser.add_argument("--framework", action="append", help="default: ours and every --peer")
    parser.add_argument("--experiment", action="append", choices=EXPERIMENTS, help="default: all")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=SCRIPT[@PYTHON]")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache/conformance-peers")
    parser.add_argument("--work", type=Path, default=Path("runs/conformance"), help="a folder")
    options = parser.parse_args(argv)
    for adapter in adapters_of(options.peer, options.peers, options.framework):
        folder = (options.work / adapter.name).absolute()
        told = read_verdicts(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        bench = Bench(adapter, folder)
        for name in options.experiment or EXPERIMENTS:
            begun = time.monotonic()
            told[name] = verdict = measure(bench, name)
            seconds = time.monotonic() - begun
            said = f"{adapter.name} {name}: {verdict.state}: {verdict.figure} ({seconds:.0f} s)"
            print(said, flush=True)
        write_verdicts(folder, adapter, told)
    names = [name for name in ("ours", *PEERS) if read_verdicts(options.work / name)]
    results = {name: read_verdicts(options.work / name) for name in names}
    print(table(results, {name: title for name, (title, _) in EXPERIMENTS.items()}))
    return 0


def read_verdicts(folder: Path) -> dict[str, Verdict]:
    """What was measured last of a framework, by experiment."""
    file = folder / "verdicts.json"
    told = json.loads(file.read_text())["verdicts"] if file.exists() else {}
    return {name: Verdict(**verdict) for name, verdict in told.items()}


def write_verdicts(folder: Path, adapter: Adapter, told: dict[str, Verdict]) -> None:
    verdicts = {name: dataclasses.asdict(verdict) for name, verdict in told.items()}
    content = {"versions": adapter.versions(), "verdicts": verdicts}
    (folder / "verdicts.json").write_text(json.dumps(content, indent=2))


def adapters_of(peers: list[str], folder: Path, wanted: list[str] | None) -> list[Adapter]:
    """Ours, and each peer that is installed in the folder or named on the command line."""
    places = {name: place.replace(FOLDER, str(folder)) for name, (_, place) in PEERS.items()}
    found = [f"{n}={p}" for n, p in places.items() if all(Path(x).exists() for x in p.split("@"))]
    adapters: dict[str, Adapter] = {"ours": Ours()}
    for peer in [*found, *peers]:
        name, _, path = peer.partition("=")
        if name not in PEERS:
            raise SystemExit(f"--peer {peer}: known are {', '.join(PEERS)}")
        script, _, python = path.partition("@")
        adapters[name] = PEERS[name][0](Path(script).absolute(), python or sys.executable)
    return [adapter for name, adapter in adapters.items() if wanted is None or name in wanted]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
