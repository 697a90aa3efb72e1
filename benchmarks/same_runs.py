"""Do two commits train alike? The same runs on both, their numbers and weights compared bit for bit.

`python -m benchmarks.same_runs BEFORE AFTER [--out runs/same] [--only default debug ...]`

Each commit is checked out into a folder of its own, and each run done there by its own code. What is
compared: every line of metrics.jsonl but times, the weights of the last checkpoint and the exported
model. A run that lies in `--out` already is not made again.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLATES = ROOT.parent / "shared" / "data" / "plates-openimages-416"
SHORT = "--train.steps 40 --train.evaluate_every 20 --optim.warmup_steps 5"
RUNS = {
    "default": (1, "--config configs/synthetic.yaml"),
    "debug": (1, "--config configs/debug.yaml"),
    "plates": (
        1,
        f"--config configs/coco_small.yaml --data.path {PLATES} --train.steps 300 "
        "--train.evaluate_every 150",
    ),
    "two_processes": (
        2,
        "--config configs/synthetic.yaml --train.steps 100 --train.evaluate_every 50 "
        "--train.micro_batch_size 4 --train.ema_decay 0.9 --run.log_image_ids true "
        "--model.head_args.dropout 0.1 --run.log_every 1",
    ),
    "detr": (
        1,
        "--config configs/debug.yaml --model.head detr --model.head_args "
        '{"num_queries":30,"encoder_layers":1,"decoder_layers":2,"d_model":64} ' + SHORT,
    ),
    "conditional": (
        1,
        "--config configs/debug.yaml --model.head conditional_detr --model.head_args "
        '{"num_queries":30,"encoder_layers":1,"decoder_layers":2,"d_model":64} ' + SHORT,
    ),
    "two_stage": (
        1,
        "--config configs/debug.yaml --model.head_args "
        '{"two_stage":true,"two_stage_num_proposals":30,"num_feature_levels":1,'
        '"encoder_layers":1,"decoder_layers":2,"d_model":64} --train.precision bf16 ' + SHORT,
    ),
    "fine_tuned": (
        1,
        "--config configs/debug.yaml --model.freeze none --train.micro_batch_size 2 "
        "--train.ema_decay 0.9 " + SHORT,
    ),
}
"""(processes, arguments) by name"""


def main(argv: Sequence[str]) -> int:
    """Run and compare; 0 where everything is equal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_runs", description=__doc__)
    parser.add_argument("commits", nargs="+", help="one (only runs) or two")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "same")
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    args = parser.parse_args(argv)
    found = []
    for commit in args.commits:
        digest = _git("rev-parse", commit).strip()
        code = args.out.resolve() / digest[:12]
        if not code.is_dir():
            _git("worktree", "prune")
            _git("worktree", "add", "--detach", str(code), digest)
        found.append({name: _summary(code, name) for name in args.only})
    if len(found) < 2:
        return 0
    for name in args.only:
        before, after = (summaries[name] for summaries in found)
        verdict = "equal" if before == after else "DIFFERENT"
        parts = [f"{k} {'=' if before[k] == after[k] else '!='}" for k in before]
        print(f"{name:<14} {verdict:<10} {before['lines']} lines; {', '.join(parts)}")
    return int(found[0] != found[1])


def _summary(code: Path, name: str) -> dict[str, object]:
    """Fingerprints of a run's numbers and weights; the run is made if it is not there."""
    folder = code / "runs" / name
    if not (folder / "DONE").is_file():
        processes, arguments = RUNS[name]
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += ["--nproc_per_node", str(processes)]
        print(f"{code.name} {name} ...", file=sys.stderr, flush=True)
        subprocess.run(
            [*launcher, "train_accelerate.py", *arguments.split(), "--run.output_dir", str(folder)]
            + ["--run.tracker", "none", "--run.resume", "auto"],
            cwd=code,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in row.items() if not k.startswith("time/") and k != "eval/seconds"}
        for row in lines
    ]
    weights = sorted((folder / "checkpoints" / "last" / "model").glob("*.safetensors"))
    export = folder / "export" / "model.safetensors"
    return {
        "lines": len(kept),
        "metrics.jsonl": _sha256(json.dumps(kept, sort_keys=True).encode()),
        "weights": [_sha256(file.read_bytes()) for file in weights],
        "export": _sha256(export.read_bytes()),
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
