"""What is said at the end of a run that has found next to nothing: why, as far as the run shows it, and how to go on."""

import math
import shlex
from collections.abc import Sequence

from data.check.advice import advise
from errors import UserError
from evaluation.metrics import NEXT_TO_NOTHING
from report.run_charts import known
from report.run_record import read_run
from run.banner import head_facts
from run.build import Run

LEAST_LOGGED = 5
"""Logged losses from which on it can be told whether they fall"""
NOT_FALLEN = 0.95
"""Part of the first losses above which the last ones have not fallen"""


def outcome(run: Run, value: float | None) -> str | None:
    """One line on a run whose best metric is `value`; None where that is more than next to nothing. For rank 0 alone."""
    if value is None or value >= NEXT_TO_NOTHING:
        return None
    cfg = run.cfg
    told = f"{cfg.eval.metric} {value:.3f}: next to nothing is found yet."
    advice = advise(cfg, run.data, head_facts(cfg, run.detector))
    steps = [one.keys["train.steps"] for one in advice if one.topic == "steps"]
    longer = [number for number in steps if number > run.state.step]
    if longer:
        return (
            f"{told} {run.state.step} steps are few for a head from scratch. Go on to {longer[0]} with: "
            f"{command_on(run, longer[0])} - or start from a pretrained detector (model.init_from; docs/choosing.md)"
        )
    try:
        _, losses = known(read_run(run.folder), "train/loss")
    except UserError:  # a full disk, of which the log will tell
        losses = []
    first, last = _ends(losses)
    samples = run.folder / "samples"
    if len(losses) >= LEAST_LOGGED and not last < NOT_FALLEN * first:
        return (
            f"{told} The loss has not fallen ({first:.3g} at first, {last:.3g} at last): look whether the labels are where "
            f"they should be ({samples}), and try a lower optim.lr (now {cfg.optim.lr:g}) or another head"
        )
    return (
        f"{told} Look whether the labels are where they should be ({samples}), and at the warnings of the start; "
        "docs/troubleshooting.md, AP stays at 0"
    )


def command_on(run: Run, steps: int) -> str:
    """The command that goes on with a run to more steps."""
    starter = "python" if run.accelerator.num_processes == 1 else "accelerate launch"
    words = [
        f"{starter} train_accelerate.py --config {shlex.quote(str(run.folder / 'config.yaml'))}"
    ]
    words += ["--run.resume auto --run.allow_changes true", f"--train.steps {steps}"]
    train = run.cfg.train
    if train.epochs is not None:
        words.append("--train.epochs null")
    if train.patience is not None and run.state.stale_evaluations >= train.patience:
        words.append("--train.patience null")  # or it would end at once
    return " ".join(words)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Means of the first and the last fifth; NaN of nothing."""
    part = math.ceil(len(values) / 5)
    if not part:
        return math.nan, math.nan
    return sum(values[:part]) / part, sum(values[-part:]) / part
