"""Score the validation split in the course of a run."""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast

from disk import recover
from errors import UserError
from evaluation.metrics import measure
from evaluation.mistakes import Analysis, analyse
from evaluation.predictions import Predictions, flat_threshold, predict_split
from evaluation.windows import on_images
from model.memory import MemoryWatch
from report.evaluation import metric_lines, read_metrics, write_report
from report.mistakes import WORST_PICTURE
from report.run_charts import RESULTS, draw_results
from report.run_page import PAGE, write_run_page
from report.run_record import read_run
from run.build import Run
from run.samples import finish_labels
from run.together import on_main, told_by_main
from training.counts import any_rank
from training.state import load_model, load_state


def evaluate(run: Run) -> bool:
    """Collective: called on every rank. Score the validation split, and note whether it is the best.

    The files of the evaluation are written while training goes on.

    Returns: False if the run was asked to stop meanwhile; then nothing is noted.
    """
    step = run.state.step
    with run.ema.applied():
        scored = score(run, lambda: any_rank(run.accelerator, run.stop.reason is not None))
    if scored is None:
        return False
    metrics, predictions, analysis = scored
    value = metrics[str(run.cfg.eval.metric)]
    # Whether to save depends on it, and on another kind of CPU the last digit may be another.
    tensor = torch.tensor([math.nan if value is None else value], device=run.accelerator.device)
    value = broadcast(tensor).item()
    run.log.metrics(step, {f"eval/{k}": v for k, v in metrics.items() if k != "per_class"})
    scores = {f"scores/{name}": counts for name, counts in analysis.scores().items()}
    run.log.histograms(step, scores)
    for line in metric_lines(metrics):
        run.log.say(f"eval {step:>{len(str(run.num_steps))}}  {line}")
    if run.accelerator.is_main_process:
        finish_labels(run)
        finish_report(run)
        begin_report(run, step, metrics, predictions, analysis)
    run.state.evaluated_step = step
    run.checkpoints.record(value, step)
    stale = 0 if run.checkpoints.is_best(step) else run.state.stale_evaluations + 1
    run.state.stale_evaluations = stale
    if stale == run.cfg.train.patience and step < run.num_steps:
        run.log.say(
            f"training ends after step {step}: {stale} evaluation(s) without a better "
            f"{run.cfg.eval.metric} (train.patience)"
        )
    if run.pusher is not None:
        run.pusher.begin(step if run.checkpoints.is_best(step) else None)
    return True


def score(
    run: Run, stopped: Callable[[], bool] = lambda: False
) -> tuple[dict[str, Any], Predictions, Analysis] | None:
    """Collective: called on every rank. Metrics, predictions and what is wrong with them, the same on all ranks.

    Returns: None if it was stopped.
    """
    start = time.perf_counter()
    num = len(run.data.val_windows or run.data.val)
    bar = run.log.evaluation_bar(num, run.accelerator.num_processes)
    predictions = predict_split(
        run.accelerator,
        run.detector.trainable,
        run.val_loader(),
        num,
        run.cfg.eval.max_detections,
        flat_threshold(run.data.labels, run.cfg.eval),
        MemoryWatch(run.accelerator.device, "eval.batch_size"),
        stopped,
        bar,
    )
    if predictions is None:
        return None
    data = run.data
    if data.val_tiles is not None:
        predictions = on_images(predictions, data.val_tiles, run.cfg.eval.max_detections)
    metrics = measure(data.labels, data.val, predictions, data.taxonomy, run.accelerator)
    analysis = analyse(data.labels, data.val, predictions, data.taxonomy, run.accelerator)
    metrics |= analysis.totals()
    metrics["seconds"] = round(time.perf_counter() - start, 2)
    return metrics, predictions, analysis


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
    metrics, predictions, analysis = scored
    on_main(
        run.accelerator,
        lambda: _write_anew(run, load_state(best).step, metrics, predictions, analysis),
    )


def _write_anew(
    run: Run, step: int, metrics: dict[str, Any], predictions: Predictions, analysis: Analysis
) -> None:
    folder = evaluation_folder(run.folder, step)
    try:
        write_report(folder, metrics, predictions, run.data, run.cfg.eval, analysis)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error}. Make room, then go on with --run.resume auto"
        ) from error
    draw_run(run)
    run.log.say(f"the evaluation of step {step} was made anew")


def _best_without_files(run: Run) -> Path | None:
    finish_report(run)
    best = run.checkpoints.best_folder() or run.checkpoints.newest()
    if best is None:
        return None
    step = load_state(best).step
    return best if read_metrics(evaluation_folder(run.folder, step)) is None else None


def begin_report(
    run: Run, step: int, metrics: dict[str, Any], predictions: Predictions, analysis: Analysis
) -> None:
    """Write metrics and drawings of a step, in a process beside the training. On rank 0 alone."""
    folder = evaluation_folder(run.folder, step)

    def work() -> None:
        write_report(folder, metrics, predictions, run.data, run.cfg.eval, analysis)
        draw_run(run)

    try:
        run.reports.start(work)
    except (OSError, UserError) as error:  # a full disk: checkpoints decide whether the run goes on
        _tell_failure(run, step, str(error))


def draw_run(run: Run, told: str | None = None) -> None:
    """results.png and report.html, if they are wanted. On rank 0 alone.

    Args:
        told: stands out on the page.

    Raises:
        UserError: if they could not be drawn.
    """
    if not run.cfg.run.pictures:
        return
    try:
        record = read_run(run.folder)
        draw_results(record)
        write_run_page(record, told)
    except Exception as error:  # of the numbers of the evaluation nothing is lost
        raise UserError(f"{RESULTS} or {PAGE} could not be drawn ({error!r})") from error


def finish_report(run: Run) -> None:
    """Wait for the last report; pass its pictures on, or say so if it came to nothing. On rank 0 alone."""
    step, begun = run.state.evaluated_step, run.reports.begun
    failure = run.reports.finish()
    if failure is not None:
        _tell_failure(run, step, failure)
    elif begun:
        folder = evaluation_folder(run.folder, step)
        files = {"predictions": folder / "predictions.png", "worst": folder / WORST_PICTURE}
        if run.cfg.run.pictures:
            files["results"] = run.folder / RESULTS
        run.log.pictures(step, {f"pictures/{name}": file for name, file in files.items()})


def _tell_failure(run: Run, step: int, failure: str) -> None:
    with contextlib.suppress(OSError):
        recover(evaluation_folder(run.folder, step))  # what a killed process left half written
    run.log.say(
        f"warning: the evaluation of step {step} could not be written: {failure}; what the export needs of it "
        "is made anew"
    )


def evaluation_folder(run_folder: Path, step: int) -> Path:
    """Where the evaluation of a step is."""
    return run_folder / "eval" / f"step-{step:06d}"
