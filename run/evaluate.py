"""Score the validation split in the course of a run."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast

from data.build import Data
from evaluation.coco import coco_metrics
from evaluation.predictions import Predictions, predict_split
from report.evaluation import metric_lines, write_report
from run.build import Run
from run.log import RunLog
from settings.keys import EvalConfig
from training.counts import any_rank


def evaluate(run: Run) -> bool:
    """Collective: called on every rank. Score the validation split, and note whether it is the best.

    Returns: False if the run was asked to stop meanwhile; then nothing is noted.
    """
    accelerator, data, cfg, step = run.accelerator, run.data, run.cfg.eval, run.state.step
    start = time.perf_counter()
    with run.ema.applied():
        predictions = predict_split(
            accelerator,
            run.detector.trainable,
            run.val_loader(),
            len(data.val),
            cfg.max_detections,
            stopped=lambda: any_rank(accelerator, run.stop.reason is not None),
        )
    if predictions is None:
        return False
    value = math.nan
    if accelerator.is_main_process:
        metrics = coco_metrics(data.val, predictions, data.taxonomy)
        metrics["seconds"] = round(time.perf_counter() - start, 2)
        value = metrics[cfg.metric]
        value = math.nan if value is None else value
    # Whether to save depends on it, and saving is collective.
    value = broadcast(torch.tensor([value], device=accelerator.device)).item()
    if accelerator.is_main_process:
        report_evaluation(run.folder, step, metrics, predictions, data, cfg, run.log)
    run.state.evaluated_step = step
    run.checkpoints.record(value, step)
    return True


def report_evaluation(
    run_folder: Path,
    step: int,
    metrics: dict[str, Any],
    predictions: Predictions,
    data: Data,
    cfg: EvalConfig,
    log: RunLog,
) -> None:
    """Write metrics and drawings of a step, and say them. On rank 0 alone."""
    folder = evaluation_folder(run_folder, step)
    try:
        write_report(folder, metrics, predictions, data.val, data.taxonomy, cfg)
    except OSError as error:  # a full disk: checkpoints decide whether the run goes on
        log.say(f"warning: the evaluation of step {step} could not be written: {error}")
    log.metrics(step, {f"eval/{k}": v for k, v in metrics.items() if k != "per_class"})
    for line in metric_lines(metrics):
        log.say(f"eval {step:>{len(str(log.num_steps))}}  {line}")


def evaluation_folder(run_folder: Path, step: int) -> Path:
    """Where the evaluation of a step is."""
    return run_folder / "eval" / f"step-{step:06d}"
