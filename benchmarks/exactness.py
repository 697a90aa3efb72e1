"""The same steps on several worlds, compared: `python -m benchmarks.exactness`

Trains the embedded default for 30 steps of 8 images on real processes (torchrun), with our
criterion and with transformers' own, and prints the table of docs/exactness.md.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from disk import ROOT

STEPS = 30
GLOBAL_BATCH = 8
WORLDS = [(1, 8), (1, 4), (1, 2), (1, 1), (2, 4), (2, 1), (4, 2)]
"""(processes, images per micro-batch)"""


@dataclass(frozen=True)
class Outcome:
    """What a run did, step by step."""

    image_ids: list[list[int]]
    losses: list[float]
    lrs: list[float]
    grad_norms: list[float]
    weights: torch.Tensor


def run_world(
    folder: Path, processes: int, micro: int, script: str = "train_accelerate.py"
) -> Outcome:
    """Train in `folder` with that many processes and images per micro-batch."""
    arguments = ["--run.output_dir", str(folder), "--run.tracker", "none", "--run.log_every", "1"]
    arguments += [
        "--run.log_image_ids",
        "true",
        "--run.draw_batches",
        "0",
        "--run.pictures",
        "false",
        "--data.num_workers",
        "0",
    ]
    arguments += ["--data.synthetic_train", "100", "--data.synthetic_val", "8"]
    arguments += ["--data.cache_features", "0"]  # with the backbone at work
    arguments += ["--data.source", "synthetic", "--data.path", str(folder.parent / "scenes")]
    arguments += ["--train.steps", str(STEPS), "--optim.warmup_steps", "5"]
    arguments += ["--train.global_batch_size", str(GLOBAL_BATCH)]
    arguments += ["--train.micro_batch_size", str(micro), "--train.evaluate_every", "null"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc_per_node", str(processes), script, *arguments]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    facts = json.loads((folder / "run.json").read_text())
    assert facts["world_size"] == processes
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    tensors = load_file(folder / "checkpoints" / "last" / "model" / "trainable.safetensors")
    return Outcome(
        [sorted(row["train/image_ids"]) for row in rows],
        [row["train/loss"] for row in rows],
        [row["train/lr"] for row in rows],
        [row["train/grad_norm"] for row in rows],
        torch.cat([tensors[name].flatten().double() for name in sorted(tensors)]),
    )


def deviation(outcome: Outcome, reference: Outcome) -> tuple[float, float]:
    """(largest relative difference of a step's loss, relative difference of the final weights)."""
    pairs = zip(outcome.losses, reference.losses, strict=True)
    loss = max(abs(a - b) / abs(b) for a, b in pairs)
    weights = (outcome.weights - reference.weights).norm() / reference.weights.norm()
    return loss, float(weights)


def main() -> None:
    """Print the table."""
    print(
        "| Processes | Per pass | Accumulated | Loss, ours | Weights, ours | Loss, default | Weights, default |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        scripts = {"ours": "train_accelerate.py", "default": "benchmarks/default_criterion.py"}
        references: dict[str, Outcome] = {}
        for processes, micro in WORLDS:
            cells = []
            for name, script in scripts.items():
                folder = Path(root) / f"{name}-{processes}-{micro}"
                outcome = run_world(folder, processes, micro, script)
                reference = references.setdefault(name, outcome)
                assert outcome.image_ids == reference.image_ids
                assert outcome.lrs == reference.lrs
                cells += [f"{value:.1e}" for value in deviation(outcome, reference)]
            accumulated = GLOBAL_BATCH // (processes * micro)
            print(f"| {processes} | {micro} | {accumulated} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
