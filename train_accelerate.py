"""Train a detector: `accelerate launch train_accelerate.py --config configs/X.yaml`.

Read `train` below from top to bottom to see what a step is; everything it calls says how.
"""

import contextlib
import errno
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast, gather_object
from transformers.utils import logging as transformers_logging

from data.feed.collate import Batch
from data.feed.loader import batches_of
from errors import UserError, fail, process_rank
from evaluation.coco import coco_metrics
from evaluation.predictions import Predictions, predict_split
from export.card import model_card, public_name
from export.folder import export_model
from export.hub import push, resolve_repo_id
from report.drawing import draw_batch
from report.evaluation import metric_lines, write_report
from run.banner import banner
from run.build import Run, build_run
from run.log import DONE, check_run_folder, lock_run_folder
from settings.keys import Config
from settings.load import load_config
from training.checkpoint import find_defect
from training.counts import agree, any_rank
from training.meter import StepMeter, memory_mb, take
from training.optim import keep_counters_on_cpu, lr_factor, set_lr
from training.state import load_model, load_state
from training.stopping import EXIT_STOPPED


def train(run: Run, model: torch.nn.Module, stream: Iterator[Batch], accumulation: int) -> bool:
    """Collective: called on every rank. Take optimizer steps until `run.num_steps` are done.

    Args:
        model: the detector, wrapped for distributed training.
        stream: this rank's micro-batches, `accumulation` of them per step.

    Returns: whether the run is done; False if it was asked to stop and has saved its state.
    """
    cfg, accelerator, state = run.cfg, run.accelerator, run.state
    normalize, criterion = run.detector.backbone.normalization, run.detector.criterion
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    meter = StepMeter(accelerator, cfg.train.global_batch_size)
    skipped = 0
    model.train()
    run.log.start_bar()
    while True:
        # At the top, since a stop may have come between a step and its evaluation.
        if evaluation_due(run):
            if not evaluate(run):
                return stop(run)
            meter.restart()
        if checkpoint_due(run):
            run.save()
        if state.step == run.num_steps:
            return True

        batches = meter.next_step(take(stream, accumulation))
        draw_first_batches(run, batches)
        # One global loss per step: each micro-batch contributes its sums over the step's counts.
        agreed = agree(
            accelerator,
            batches,
            run.detector.num_queries,
            stop=run.stop.reason is not None,
            save_failed=run.checkpoints.failure is not None,
            bad_images=any(set(batch.bad) - set(state.bad_images) for batch in batches),
        )
        if agreed.save_failed:
            report_failed_save(run, ends=cfg.train.on_failed_save == "end")
        if agreed.bad_images:
            report_bad_images(run, batches)
        if agreed.stop:
            return stop(run)
        criterion.step_counts = agreed.counts
        factor = lr_factor(state.step, run.num_steps, cfg.optim)
        set_lr(run.optimizer, factor)
        for turn, batch in enumerate(batches):
            last = turn == accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                batch = batch.to(accelerator.device)
                seed_dropout(run, turn)
                outputs = model(
                    pixel_values=normalize(batch.pixel_values, batch.pixel_mask),
                    pixel_mask=batch.pixel_mask,
                    labels=batch.labels,
                )
                # DDP averages gradients over ranks; the loss is a sum over them.
                accelerator.backward(outputs.loss * accelerator.num_processes)
                meter.add(outputs.loss, outputs.loss_dict)
        grad_norm = accelerator.clip_grad_norm_(parameters, cfg.optim.max_grad_norm or math.inf)
        state.samples_seen += cfg.train.global_batch_size
        if not take_step(run, grad_norm):  # neither schedule nor average nor count advances
            skipped += 1
            report_skipped(run, meter, batches, skipped)
            continue
        skipped = 0
        state.step += 1
        run.ema.update()
        run.log.advance()
        if due(state.step, cfg.run.log_every) or state.step == run.num_steps:
            log_step(run, meter, batches, grad_norm, factor * cfg.optim.lr)


def seed_dropout(run: Run, turn: int) -> None:
    """Key dropout by (seed, place in the stream, micro-batch), not by what was drawn before."""
    number = turn * run.accelerator.num_processes + run.accelerator.process_index
    key = np.random.SeedSequence([run.cfg.run.seed, run.state.samples_seen, number])
    torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))


def take_step(run: Run, grad_norm: torch.Tensor) -> bool:
    """The optimizer step, unless the gradient is not finite; whether it was taken.

    All ranks decide alike, since they share the gradient. The fp16 scaler has to see the bad step as
    well: it skips it by itself and lowers its scale.
    """
    run.checkpoints.wait_for_copy()
    finite = bool(torch.isfinite(grad_norm))
    if finite or run.accelerator.scaler is not None:
        run.optimizer.step()
    run.optimizer.zero_grad()
    return finite and not run.accelerator.optimizer_step_was_skipped


def report_skipped(run: Run, meter: StepMeter, batches: Sequence[Batch], in_a_row: int) -> None:
    """Collective: called on every rank. Name the images of a step that was skipped.

    Raises:
        UserError: after too many such steps in a row.
    """
    pairs = zip(batches, meter.micro_losses, strict=True)
    own = [i for batch, loss in pairs if not torch.isfinite(loss) for i in batch.image_ids]
    bad = gather_object(own)
    everything = gather_object([i for batch in batches for i in batch.image_ids])
    reason = f"loss not finite for images {bad}" if bad else f"overflow on images {everything}"
    run.log.say(f"step {run.state.step + 1} skipped ({in_a_row} in a row): {reason}")
    run.log.metrics(run.state.step + 1, {"train/skipped_image_ids": bad or everything})
    if in_a_row > run.cfg.train.max_skipped_steps:
        raise UserError(
            f"step {run.state.step + 1}: {in_a_row} steps in a row had no finite gradient "
            "(train.max_skipped_steps). Lower optim.lr, or find the operation with "
            "--run.detect_anomaly true; the checkpoints written so far are kept"
        )


def report_bad_images(run: Run, batches: Sequence[Batch]) -> None:
    """Collective: called on every rank. Name the images that cannot be decoded, each once.

    Raises:
        UserError: if they are more than run.max_bad_images; SystemExit then on other ranks.
    """
    known, limit = run.state.bad_images, run.cfg.run.max_bad_images
    found = sorted(
        set(gather_object([text for batch in batches for text in batch.bad])) - set(known)
    )
    for text in found:
        run.log.say(f"warning: {text}; another image takes its place")
    known += found
    if len(known) > limit:
        if not run.accelerator.is_main_process:
            raise SystemExit(2)
        raise UserError(
            f"{len(known)} images cannot be decoded, more than run.max_bad_images {limit}; the last: "
            f"{known[-1]}. `python -m tools.check_data --config ...` names them all"
        )


def due(step: int, every: int | None) -> bool:
    """Whether something done every `every` steps (None: never) is due after `step` steps."""
    return every is not None and step > 0 and step % every == 0


def evaluation_due(run: Run) -> bool:
    """Whether the present weights are to be evaluated, and have not been."""
    step = run.state.step
    wanted = step == run.num_steps or due(step, run.cfg.train.evaluate_every)
    return wanted and run.state.evaluated_step < step


def checkpoint_due(run: Run) -> bool:
    """Whether the present state is to be saved (if it has not been)."""
    step, cfg = run.state.step, run.cfg.train
    every = cfg.checkpoint_every or cfg.evaluate_every
    return step == run.num_steps or run.state.best_step == step > 0 or due(step, every)


def stop(run: Run) -> bool:
    """Collective: called on every rank. Save what there is, for a later resume; False."""
    run.save()
    reason = run.stop.reason or "another rank was asked to"
    run.log.say(f"stopping after step {run.state.step}: {reason}")
    return False


def report_failed_save(run: Run, ends: bool) -> None:
    """Say why a checkpoint could not be written, on rank 0.

    Raises:
        UserError: if that is to end the run.
        SystemExit: then, on the other ranks.
    """
    failure, run.checkpoints.failure = run.checkpoints.failure, None
    run.forget_save()
    if ends and not run.accelerator.is_main_process:
        raise SystemExit(2)
    if ends:
        raise UserError(f"{failure}. Make room, then go on with --run.resume auto")
    run.log.say(f"warning: {failure}; training goes on (train.on_failed_save)")


def log_step(
    run: Run, meter: StepMeter, batches: Sequence[Batch], grad_norm: torch.Tensor, lr: float
) -> None:
    """Collective: called on every rank. Write the step's numbers."""
    values = meter.values(grad_norm, lr)
    if run.cfg.run.log_image_ids:
        own = [image_id for batch in batches for image_id in batch.image_ids]
        values["train/image_ids"] = gather_object(own)
    run.log.metrics(run.state.step, values)
    run.log.step_line(run.state.step, values, memory_mb(run.accelerator.device))


def draw_first_batches(run: Run, batches: Sequence[Batch]) -> None:
    """Draw what the model gets in the first steps into samples/."""
    if run.accelerator.is_main_process and run.state.step < run.cfg.run.draw_batches:
        for turn, batch in enumerate(batches):
            name = f"step-{run.state.step + 1:06d}-{turn}.png"
            draw_batch(batch, run.data.taxonomy.names, run.folder / "samples" / name)


def evaluate(run: Run) -> bool:
    """Collective: called on every rank. Score the validation split, and note whether it is the best.

    Returns: False if the run was asked to stop meanwhile; then nothing is noted.
    """
    start = time.perf_counter()
    with run.ema.applied():
        predictions = predict_split(
            run.accelerator,
            run.detector.model,
            run.processor,
            run.detector.backbone.normalization,
            run.val_loader(),
            len(run.data.val),
            run.cfg.eval.max_detections,
            stopped=lambda: any_rank(run.accelerator, run.stop.reason is not None),
        )
    if predictions is None:
        return False
    value = math.nan
    if run.accelerator.is_main_process:
        metrics = coco_metrics(run.data.val, predictions, run.data.taxonomy)
        metrics["seconds"] = round(time.perf_counter() - start, 2)
        value = metrics[run.cfg.eval.metric]
        value = math.nan if value is None else value
    # Whether to save depends on it, and saving is collective.
    value = broadcast(torch.tensor([value], device=run.accelerator.device)).item()
    if run.accelerator.is_main_process:
        report_evaluation(run, metrics, predictions)
    run.state.record(None if math.isnan(value) else value)
    return True


def report_evaluation(run: Run, metrics: dict[str, Any], predictions: Predictions) -> None:
    """Write metrics and drawings of the present step, and say them. On rank 0 alone."""
    step = run.state.step
    folder = run.folder / "eval" / f"step-{step:06d}"
    try:
        write_report(folder, metrics, predictions, run.data.val, run.data.taxonomy, run.cfg.eval)
    except OSError as error:  # a full disk: checkpoints decide whether the run goes on
        run.log.say(f"warning: the evaluation of step {step} could not be written: {error}")
    run.log.metrics(step, {f"eval/{k}": v for k, v in metrics.items() if k != "per_class"})
    for line in metric_lines(metrics):
        run.log.say(f"eval {step:>{len(str(run.num_steps))}}  {line}")


def export(run: Run, repo_id: str | None) -> None:
    """Write the best weights into export/, and push them if asked. On rank 0 alone."""
    best = run.checkpoints.best() or run.checkpoints.folder / "last"
    if defect := find_defect(best):
        raise UserError(f"{best}: {defect}; nothing was exported")
    load_model(best, run.detector.model, averaged=run.cfg.train.ema_decay is not None)
    step = load_state(best).step
    report = run.folder / "eval" / f"step-{step:06d}" / "metrics.json"
    if not report.is_file():
        raise UserError(f"{report}: is missing, so {best} cannot be exported with its metrics")
    metrics = json.loads(report.read_text())
    card = model_card(run.cfg, metrics, run.facts, step)
    folder = run.folder / "export"
    backbone = public_name(run.cfg.model.backbone)
    export_model(run.detector.model, run.processor, card, folder, backbone)
    name = run.cfg.eval.metric
    value = "-" if metrics[name] is None else f"{metrics[name]:.3f}"
    run.log.say(f"best step {step}: {name} {value}, exported to {folder}")
    if repo_id:
        run.log.say(f"uploaded to {push(folder, repo_id, run.cfg.hub.private)}")


def main(argv: Sequence[str]) -> int:
    """Collective: called on every rank. A whole run: train, evaluate, export, push.

    Returns: the exit status: 0, or 75 if the run was asked to stop and can go on.

    Raises:
        UserError: for whatever the user can mend.
    """
    cfg = load_config(argv)
    try:
        return whole_run(cfg)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "make room, then go on with --run.resume auto"
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            advice = "make it writable, then go on with --run.resume auto"
        else:
            raise
        raise UserError(f"{error}. Checkpoints written so far are intact; {advice}") from error


def whole_run(cfg: Config) -> int:
    """Collective: called on every rank. The run of a configuration; the exit status."""
    if process_rank() == 0:  # another rank may look when rank 0 has already written
        check_run_folder(cfg.run)
        lock = lock_run_folder(Path(cfg.run.output_dir))  # noqa: F841 (held until the end)
    run_name = cfg.run.name or Path(cfg.run.output_dir).name
    repo_id = resolve_repo_id(cfg.hub, run_name) if cfg.hub.push else None
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()
    torch.autograd.set_detect_anomaly(cfg.run.detect_anomaly)
    run = build_run(cfg)
    accelerator = run.accelerator
    world, device = accelerator.num_processes, str(accelerator.device)
    for line in banner(cfg, run.detector, run.data, run.optimizer, run.num_steps, world, device):
        run.log.say(line)
    if run.state.step:
        run.log.say(f"resumed at step {run.state.step}")
    model, run.optimizer = accelerator.prepare(run.detector.model, run.optimizer)
    keep_counters_on_cpu(run.optimizer)
    run.ema.start()
    with run.stop.listening():
        loader, accumulation = run.train_loader()
        with batches_of(loader) as stream:
            done = train(run, model, stream, accumulation)
        finish_saving(run)
        if accelerator.is_main_process and not done:
            run.stop.consume()
            run.log.say(
                f"stopped with a checkpoint of step {run.state.step}; --run.resume auto continues"
            )
            run.log.close()
        # torch can hang for ever where DDP outlives its process group.
        accelerator.free_memory()
        del model
        accelerator.wait_for_everyone()
        accelerator.state.destroy_process_group()  # nobody waits for the export and the upload
        if accelerator.is_main_process and done:
            export(run, repo_id)
            run.stop.consume()
            (run.folder / DONE).write_text(f"{run.state.step} steps\n")
            run.log.close()
    return 0 if done else EXIT_STOPPED


def finish_saving(run: Run) -> None:
    """Collective: called on every rank. Wait for the last checkpoint.

    Raises:
        UserError: if it could not be written.
    """
    run.checkpoints.wait()
    if any_rank(run.accelerator, run.checkpoints.failure is not None):
        report_failed_save(run, ends=True)


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
    except UserError as error:
        fail(error)
    sys.exit(status)
