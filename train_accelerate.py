"""Train a detector: `accelerate launch train_accelerate.py --config configs/X.yaml`.

Read `train` below from top to bottom to see what a step is; everything it calls says how.
"""

import sys

from errors import UserError, ending_with_one_line
from settings.load import load_config

if __name__ == "__main__":  # before imports that take seconds: --help and mistakes are told at once
    with ending_with_one_line():
        CONFIG = load_config(sys.argv[1:])

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers.utils import logging as transformers_logging

from data.batch import Batch
from data.feed.loader import batches_of
from disk import write_whole
from export.hub import resolve_repo_id
from model.memory import MemoryWatch
from model.trainable import PREDICT
from run.banner import banner
from run.build import Run, build_run, start_processes
from run.evaluate import complete_best, evaluate, finish_report
from run.export import export
from run.hub_push import BestPusher, leaving_no_upload
from run.log import DONE, claim_run_folder, done_text, leaving_no_folder
from run.precision import Attempt, loss_scale, with_fitting_scale
from run.profile import StepProfile
from run.resume import nothing_left
from run.samples import begin_labels, draw_first_batches
from run.together import on_main, told_by_main
from run.trouble import (
    explain,
    finish_saving,
    report_bad_images,
    report_failed_save,
    report_skipped,
)
from settings.keys import Config, TrainConfig
from training.checkpoint import Checkpoints
from training.counts import agree
from training.meter import StepMeter, memory_mb, take
from training.optim import keep_counters_on_cpu, lr_factor, set_lr
from training.sharding import whole, wrapped
from training.state import TrainState
from training.stopping import EXIT_STOPPED, leaving_at_signals


def train(run: Run, model: torch.nn.Module, stream: Iterator[Batch], accumulation: int) -> bool:
    """Collective: called on every rank. Take optimizer steps until `run.num_steps` are done.

    Args:
        model: the run's `Trainable`, wrapped for distributed training.
        stream: this rank's micro-batches, `accumulation` of them per step.

    Returns: whether the run is done; False if it was asked to stop and has saved its state.
    """
    cfg, accelerator, state, checkpoints = run.cfg, run.accelerator, run.state, run.checkpoints
    trainable = run.detector.trainable
    meter = StepMeter(accelerator, cfg.train.global_batch_size)
    profile = StepProfile(run, meter)
    fits = None if run.memory is None else run.memory.fits
    memory = MemoryWatch(accelerator.device, "train.micro_batch_size", fits)
    skipped = 0
    model.train()
    run.log.start_bar()
    while True:
        # At the top, since a stop may have come between a step and its evaluation.
        if evaluation_due(state, run.num_steps, cfg.train):
            if not evaluate(run):
                return stop(run)
            meter.restart()
        if checkpoint_due(state, run.num_steps, cfg.train, checkpoints):
            run.save()
        if state.step == run.num_steps or out_of_patience(state, cfg.train):
            return True

        profile.begin()
        batches = meter.next_step(take(stream, accumulation))
        draw_first_batches(run, batches)
        # One global loss per step: each micro-batch contributes its sums over the step's counts.
        agreed = agree(
            accelerator,
            [trainable.counts(batch) for batch in batches],
            stop=run.stop.reason is not None,
            failed_save=checkpoints.failure is not None,
            bad_images=any(set(batch.bad) - set(state.bad_images) for batch in batches),
        )
        if "failed_save" in agreed.flags:
            report_failed_save(checkpoints, run.log, ends=cfg.train.on_failed_save == "end")
        if "bad_images" in agreed.flags:
            report_bad_images(batches, state, cfg.run.max_bad_images, run.log)
        if "stop" in agreed.flags:
            return stop(run)
        factor = lr_factor(state.step, run.num_steps, cfg.optim)
        set_lr(run.optimizer, factor)
        trainable.at(state.step / run.num_steps)
        attempt = partial(attempt_step, run, model, batches, agreed.counts, meter, memory)
        made = with_fitting_scale(accelerator, attempt, state.step + 1, run.log)
        state.samples_seen += cfg.train.global_batch_size
        if not made.taken:
            skipped += 1  # neither schedule nor average nor count advances
            limit = cfg.train.max_skipped_steps
            report_skipped(state.step + 1, batches, made.losses, skipped, limit, run.log)
            continue
        skipped = 0
        state.step += 1
        run.ema.update(state.step)
        run.log.advance()
        if due(state.step, cfg.run.log_every) or state.step == run.num_steps:
            log_step(run, meter, batches, made.grad_norm, factor * cfg.optim.lr)
        profile.end()


def attempt_step(
    run: Run,
    model: torch.nn.Module,
    batches: Sequence[Batch],
    counts: Mapping[str, float],
    meter: StepMeter,
    memory: MemoryWatch,
) -> Attempt:
    """Collective: called on every rank. Forward, backward and, if the gradient is finite, the step.

    Args:
        batches: this rank's micro-batches of the step. counts: those of the step.
    """
    cfg, accelerator, state = run.cfg, run.accelerator, run.state
    meter.restart_losses()
    losses_seen = []
    for turn, batch in enumerate(batches):
        last = turn == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            number = turn * accelerator.num_processes + accelerator.process_index
            seed_dropout(cfg.run.seed, state.samples_seen, number)
            with memory.holds(batch):
                losses = model(batch.to(accelerator.device), counts)
                # DDP averages gradients over ranks; the loss is a sum over them.
                accelerator.backward(losses.total * accelerator.num_processes)
            meter.add(losses.total, losses.terms)
            losses_seen.append(losses.total.detach())
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    grad_norm = whole(accelerator.clip_grad_norm_(parameters, cfg.optim.max_grad_norm or math.inf))
    run.checkpoints.wait_for_copy()
    return Attempt(take_step(run.optimizer, grad_norm), grad_norm, losses_seen)


def seed_dropout(seed: int, samples_seen: int, number: int) -> None:
    """Key dropout by (seed, place in the stream, micro-batch), not by what was drawn before."""
    key = np.random.SeedSequence([seed, samples_seen, number])
    torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))


def take_step(optimizer: torch.optim.Optimizer, grad_norm: torch.Tensor) -> bool:
    """The optimizer step, unless the gradient's norm is not finite; whether it was taken.

    All ranks decide alike, since they share the gradient. It is not left to the fp16 scaler, which looks at each
    value alone: clipping to a norm that overflows makes zeros of finite gradients, and AdamW would take them.
    """
    finite = bool(torch.isfinite(grad_norm))
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return finite


def due(step: int, every: int | None) -> bool:
    """Whether something done every `every` steps (None: never) is due after `step` steps."""
    return every is not None and step > 0 and step % every == 0


def evaluation_due(state: TrainState, num_steps: int, cfg: TrainConfig) -> bool:
    """Whether the present weights are to be evaluated, and have not been."""
    wanted = state.step == num_steps or due(state.step, cfg.evaluate_every)
    return wanted and state.evaluated_step < state.step


def checkpoint_due(
    state: TrainState, num_steps: int, cfg: TrainConfig, checkpoints: Checkpoints
) -> bool:
    """Whether the present state is to be saved (if it has not been)."""
    best = state.step > 0 and checkpoints.is_best(state.step)
    every = cfg.checkpoint_every or cfg.evaluate_every
    ends = state.step == num_steps or out_of_patience(state, cfg)
    return ends or best or due(state.step, every)


def out_of_patience(state: TrainState, cfg: TrainConfig) -> bool:
    """Whether so many evaluations in a row were no better that training ends early."""
    return cfg.patience is not None and state.stale_evaluations >= cfg.patience


def stop(run: Run) -> bool:
    """Collective: called on every rank. Save what there is, for a later resume; False."""
    run.save()
    reason = run.stop.reason or "another rank was asked to"
    run.log.say(f"stopping after step {run.state.step}: {reason}")
    return False


def leave(run: Run) -> None:
    """The last words of a run that was stopped. On rank 0 alone."""
    finish_report(run)
    run.stop.consume()
    run.log.say(f"stopped with a checkpoint of step {run.state.step}; --run.resume auto continues")
    run.log.close()


def log_step(
    run: Run, meter: StepMeter, batches: Sequence[Batch], grad_norm: torch.Tensor, lr: float
) -> None:
    """Collective: called on every rank. Write the step's numbers."""
    values = meter.values(grad_norm, lr)
    if (scale := loss_scale(run.accelerator)) is not None:
        values["train/loss_scale"] = scale
    if run.cfg.run.log_image_ids:
        own = [image_id for batch in batches for image_id in batch.image_ids]
        values["train/image_ids"] = gather_object(own)
    run.log.metrics(run.state.step, values)
    run.log.step_line(run.state.step, values, memory_mb(run.accelerator.device))


def main(argv: Sequence[str]) -> int:
    """Collective: called on every rank. The run of a command line; see `whole_run`."""
    return whole_run(load_config(argv))


def whole_run(cfg: Config) -> int:
    """Collective: called on every rank. A whole run: train, evaluate, export, push.

    Returns: the exit status: 0, or 75 if the run was asked to stop and can go on.

    Raises:
        UserError: for whatever the user can mend.
    """
    try:
        return _whole_run(cfg)
    except UserError:
        raise
    except Exception as error:
        told = explain(error)
        if told is None:
            raise
        raise UserError(told) from error


def _whole_run(cfg: Config) -> int:
    with leaving_at_signals(), leaving_no_folder(cfg.run):  # there is nothing to be saved yet
        accelerator = start_processes(cfg)
        lock = on_main(accelerator, lambda: claim_run_folder(cfg.run))  # noqa: F841 (held until the end)
        told = told_by_main(accelerator, lambda: nothing_left(cfg))
        if told is not None:
            accelerator.print(told)
            accelerator.state.destroy_process_group()
            return 0
        repo_id = on_main(accelerator, lambda: resolve_repo_id(cfg.hub, cfg.run))
        transformers_logging.set_verbosity_warning()
        transformers_logging.disable_progress_bar()
        torch.autograd.set_detect_anomaly(cfg.run.detect_anomaly)
        run = build_run(cfg, accelerator)
        run.pusher = BestPusher(run.folder, cfg.hub, repo_id)
        cfg = run.cfg
        world, device = accelerator.num_processes, str(accelerator.device)
        for line in banner(
            *(cfg, run.detector, run.data, run.optimizer, run.num_steps),
            *(world, device, run.repeats),
        ):
            run.log.say(line)
        if run.features is not None:
            run.log.say(f"features    {run.features}")
        if run.memory is not None:
            run.log.say(f"memory      {run.memory}")
        if run.state.step:
            run.log.say(f"resumed at step {run.state.step}")
        begin_labels(run)
        model, run.optimizer = wrapped(
            accelerator, run.detector.trainable, run.optimizer, cfg.train.parallel, PREDICT
        )
        keep_counters_on_cpu(run.optimizer)
        run.ema.start()
    with run.stop.listening(), leaving_no_upload(run.pusher, run.log, run.folder):
        loader, accumulation = run.train_loader()
        with batches_of(loader) as stream:
            done = train(run, model, stream, accumulation)
        finish_saving(accelerator, run.checkpoints, run.log)
        if done:
            complete_best(run)
        else:
            on_main(accelerator, lambda: leave(run))
        # torch can hang for ever where DDP outlives its process group.
        accelerator.free_memory()
        del model
        accelerator.wait_for_everyone()
        accelerator.state.destroy_process_group()  # nobody waits for the export and the upload
        if accelerator.is_main_process and done:
            refused = export(run, repo_id)
            run.stop.consume()
            run.log.close()
            write_whole(run.folder / DONE, done_text(run.state.step))
            if refused is not None:
                raise refused
    return 0 if done else EXIT_STOPPED


if __name__ == "__main__":
    with ending_with_one_line():
        sys.exit(whole_run(CONFIG))
