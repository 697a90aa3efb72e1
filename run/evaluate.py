"""Score the validation split in the course of a run."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast

from data.dataset import Data
from errors import UserError
from evaluation.metrics import measure
from evaluation.predictions import Predictions, flat_threshold, predict_split
from model.memory import MemoryWatch
from report.evaluation import metric_lines, read_metrics, write_report
from run.build import Run
from run.log import RunLog
from run.together import on_main, told_by_main
from settings.keys import EvalConfig
from training.counts import any_rank
from training.state import load_model, load_state


def evaluate(run: Run) -> bool:
    """Collective: called on every rank. Score the validation split, and note whether it is the best.

    Returns: False if the run was asked to stop meanwhile; then nothing is noted.
    """
    step = run.state.step
    with run.ema.applied():
        scored = score(run, lambda: any_rank(run.accelerator, run.stop.reason is not None))
    if scored is None:
        return False
    metrics, predictions = scored
    value = metrics[str(run.cfg.eval.metric)]
    # Whether to save depends on it, and saving is collective.
    tensor = torch.tensor([math.nan if value is None else value], device=run.accelerator.device)
    value = broadcast(tensor).item()
    if run.accelerator.is_main_process:
        folder = evaluation_folder(run.folder, step)
        report_evaluation(folder, step, metrics, predictions, run.data, run.cfg.eval, run.log)
    run.state.evaluated_step = step
    run.checkpoints.record(value, step)
    return True


def score(
    run: Run, stopped: Callable[[], bool] = lambda: False
) -> tuple[dict[str, Any], Predictions] | None:
    """Collective: called on every rank. Metrics (of the main rank alone) and predictions.

    Returns: None if it was stopped.
    """
    start = time.perf_counter()
    predictions = predict_split(
        run.accelerator,
        run.detector.trainable,
        run.val_loader(),
        len(run.data.val),
        run.cfg.eval.max_detections,
        flat_threshold(run.data.labels, run.cfg.eval),
        MemoryWatch(run.accelerator.device, "eval.batch_size"),
        stopped,
    )
    if predictions is None:
        return None
    metrics: dict[str, Any] = {str(run.cfg.eval.metric): None}
    if run.accelerator.is_main_process:
        metrics = measure(run.data.labels, run.data.val, predictions, run.data.taxonomy)
        metrics["seconds"] = round(time.perf_counter() - start, 2)
    return metrics, predictions


def complete_best(run: Run) -> None:
    """Collective: called on every rank. Make the files of the best evaluation anew, if they are not
    there: a full disk may have kept them from being written.

    Raises:
        UserError: if they cannot be written now either.
    """
    best = told_by_main(run.accelerator, lambda: _best_without_files(run))
    if best is None:
        return
    load_model(best, run.detector.model, averaged=run.cfg.train.ema_decay is not None)
    scored = score(run)
    assert scored is not None
    metrics, predictions = scored
    on_main(run.accelerator, lambda: _write_anew(run, load_state(best).step, metrics, predictions))


def _write_anew(run: Run, step: int, metrics: dict[str, Any], predictions: Predictions) -> None:
    folder = evaluation_folder(run.folder, step)
    try:
        write_report(folder, metrics, predictions, run.data, run.cfg.eval)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error}. Make room, then go on with --run.resume auto"
        ) from error
    run.log.say(f"the evaluation of step {step} was made anew")


def _best_without_files(run: Run) -> Path | None:
    best = run.checkpoints.best_folder() or run.checkpoints.newest()
    if best is None:
        return None
    step = load_state(best).step
    return best if read_metrics(evaluation_folder(run.folder, step)) is None else None


def report_evaluation(
    folder: Path,
    step: int,
    metrics: dict[str, Any],
    predictions: Predictions,
    data: Data,
    cfg: EvalConfig,
    log: RunLog,
) -> None:
    """Write metrics and drawings of a step, and say them. On rank 0 alone."""
    try:
        write_report(folder, metrics, predictions, data, cfg)
    except OSError as error:  # a full disk: checkpoints decide whether the run goes on
        log.say(
            f"warning: the evaluation of step {step} could not be written: {error}; what the export "
            "needs of it is made anew"
        )
    log.metrics(step, {f"eval/{k}": v for k, v in metrics.items() if k != "per_class"})
    for line in metric_lines(metrics):
        log.say(f"eval {step:>{len(str(log.num_steps))}}  {line}")


def evaluation_folder(run_folder: Path, step: int) -> Path:
    """Where the evaluation of a step is."""
    return run_folder / "eval" / f"step-{step:06d}"
