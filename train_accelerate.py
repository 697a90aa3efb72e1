"""Train a detector: `accelerate launch train_accelerate.py --config configs/X.yaml`.

Read `train` below from top to bottom to see what a step is; everything it calls says how.
"""

import contextlib
import dataclasses
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
)
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from config import Config, UserError, fail, load_config, micro_batch_size, process_rank
from data.build import Data, build_data
from data.collate import Batch
from data.loader import TrainDataset, eval_loader, resized_sizes, train_loader
from data.sampler import StepSampler
from evaluation.coco import coco_metrics
from evaluation.draw import draw_batch
from evaluation.predictions import predict_split
from evaluation.report import metric_lines, write_report
from export.card import model_card
from export.folder import export_model
from export.hub import push, resolve_repo_id
from model.build import Detector, build_model, build_processor
from training.banner import banner
from training.checkpoint import (
    Checkpoints,
    TrainState,
    load_average,
    load_model,
    load_optimizer,
    load_state,
)
from training.counts import global_counts
from training.ema import Ema
from training.facts import run_facts
from training.meter import StepMeter, memory_mb, take
from training.optim import build_optimizer, lr_factor, set_lr
from training.runlog import RunLog, check_run_folder
from training.startup import check_launch, check_same, preflight, rank_facts


@dataclass
class Run:
    """The parts of a run."""

    cfg: Config
    accelerator: Accelerator
    data: Data
    detector: Detector
    processor: Any
    optimizer: torch.optim.Optimizer
    ema: Ema
    state: TrainState
    checkpoints: Checkpoints
    log: RunLog
    num_steps: int
    val_loader: DataLoader[Batch]


def train(run: Run, model: torch.nn.Module, stream: Iterator[Batch], accumulation: int) -> None:
    """Collective: called on every rank. Take optimizer steps until `run.num_steps` are done.

    Args:
        model: the detector, wrapped for distributed training.
        stream: this rank's micro-batches, `accumulation` of them per step.
    """
    cfg, accelerator, state = run.cfg, run.accelerator, run.state
    normalize, criterion = run.detector.backbone.normalization, run.detector.criterion
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    meter = StepMeter(accelerator, cfg.train.global_batch_size)
    skipped = 0
    model.train()
    run.log.start_bar()
    while state.step < run.num_steps:
        batches = meter.next_step(take(stream, accumulation))
        draw_first_batches(run, batches)

        # One global loss per step: each micro-batch contributes its sums over the step's counts.
        criterion.step_counts = global_counts(
            accelerator, batches, run.detector.model.config.num_queries
        )
        factor = lr_factor(state.step, run.num_steps, cfg.optim)
        set_lr(run.optimizer, factor)
        for turn, batch in enumerate(batches):
            last = turn == accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                batch = batch.to(accelerator.device)
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

        done = state.step == run.num_steps
        if state.step % cfg.run.log_every == 0 or done:
            log_step(run, meter, batches, grad_norm, factor * cfg.optim.lr)
        metric = None
        if done or due(state.step, cfg.train.evaluate_every):
            metric = evaluate(run)
        best = state.is_best(metric)
        if done or best or due(state.step, cfg.train.checkpoint_every or cfg.train.evaluate_every):
            save_checkpoint(run, best)
            meter.restart()


def take_step(run: Run, grad_norm: torch.Tensor) -> bool:
    """The optimizer step, unless the gradient is not finite; whether it was taken.

    All ranks decide alike, since they share the gradient. The fp16 scaler has to see the bad step as
    well: it skips it by itself and lowers its scale.
    """
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
    run.log.metrics(run.state.step, {"train/skipped_image_ids": bad or everything})
    if in_a_row > run.cfg.train.max_skipped_steps:
        raise UserError(
            f"step {run.state.step + 1}: {in_a_row} steps in a row had no finite gradient "
            "(train.max_skipped_steps). Lower optim.lr, or find the operation with "
            "--run.detect_anomaly true; the checkpoints written so far are kept"
        )


def due(step: int, every: int | None) -> bool:
    """Whether something done every `every` steps (None: never) is due after `step` steps."""
    return every is not None and step % every == 0


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
            folder = Path(run.cfg.run.output_dir) / "samples"
            draw_batch(batch, run.data.taxonomy.names, folder / name)


def evaluate(run: Run) -> float | None:
    """Collective: called on every rank. Score the validation split.

    Returns: the deciding metric on rank 0, None elsewhere.
    """
    start = time.perf_counter()
    with run.ema.applied():
        predictions = predict_split(
            run.accelerator,
            run.detector.model,
            run.processor,
            run.detector.backbone.normalization,
            run.val_loader,
            len(run.data.val),
            run.cfg.eval.max_detections,
        )
    if not run.accelerator.is_main_process:
        return None
    metrics = coco_metrics(run.data.val, predictions, run.data.taxonomy)
    metrics["seconds"] = round(time.perf_counter() - start, 2)
    step = run.state.step
    folder = Path(run.cfg.run.output_dir) / "eval" / f"step-{step:06d}"
    write_report(folder, metrics, predictions, run.data.val, run.data.taxonomy, run.cfg.eval)
    numbers = {f"eval/{k}": v for k, v in metrics.items() if k != "per_class"}
    run.log.metrics(step, numbers)
    for line in metric_lines(metrics):
        run.log.say(f"eval {step:>{len(str(run.num_steps))}}  {line}")
    return metrics[run.cfg.eval.metric]


def save_checkpoint(run: Run, best: bool) -> None:
    """Collective: called on every rank."""
    run.checkpoints.save(
        run.accelerator,
        run.detector.model,
        inner(run.optimizer),
        run.ema.tensors,
        run.state,
        run.cfg,
        best,
    )


def finish(run: Run, facts: dict[str, Any], repo_id: str | None) -> None:
    """Collective: called on every rank. Export the best weights, and push them if asked."""
    if run.accelerator.is_main_process:
        best = run.checkpoints.best() or run.checkpoints.newest()
        assert best is not None, "a finished run has a checkpoint"
        load_model(best, run.detector.model, averaged=run.cfg.train.ema_decay is not None)
        step = load_state(best).step
        root = Path(run.cfg.run.output_dir)
        metrics = json.loads((root / "eval" / f"step-{step:06d}" / "metrics.json").read_text())
        card = model_card(run.cfg, metrics, facts, step)
        export_model(run.detector.model, run.processor, card, root / "export")
        name, value = run.cfg.eval.metric, metrics[run.cfg.eval.metric]
        run.log.say(f"best step {step}: {name} {value:.3f}, exported to {root / 'export'}")
        if repo_id:
            address = push(root / "export", repo_id, run.cfg.hub.private)
            run.log.say(f"uploaded to {address}")
    run.accelerator.wait_for_everyone()


def build_run(cfg: Config) -> tuple[Run, dict[str, Any]]:
    """Collective: called on every rank. Everything before the first step.

    Raises:
        UserError: for anything wrong with data, backbone, head or checkpoint.
    """
    # accelerate passes on what DDP is about to rename
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, CPU ranks would not find each other
        mixed_precision=cfg.train.precision,
        log_with=None if cfg.run.tracker == "none" else cfg.run.tracker,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=cfg.run.collective_timeout_s)),
        ],
    )
    check_launch(cfg, accelerator.num_processes, os.environ)
    preflight(accelerator)
    if cfg.train.precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("train.precision fp16: needs a GPU; on a CPU set train.precision no")
    set_seed(cfg.run.seed)
    with accelerator.main_process_first():
        data = build_data(cfg.data, cfg.run.seed)
        detector = build_model(cfg.model, data.taxonomy)
    processor = build_processor(detector.head, cfg.data.image_size, detector.backbone.normalization)
    num_steps = cfg.train.steps or math.ceil(
        (cfg.train.epochs or 0) * len(data.train) / cfg.train.global_batch_size
    )
    optimizer = build_optimizer(detector.model, detector.backbone_module, cfg.optim)
    root = Path(cfg.run.output_dir)
    checkpoints = Checkpoints(root / "checkpoints", cfg.train.keep_checkpoints)
    facts = run_facts(accelerator, detector, data, processor)
    check_same(accelerator, rank_facts(cfg, facts))
    ema = Ema(detector.model, cfg.train.ema_decay)
    state = resume(cfg, accelerator, checkpoints, detector, optimizer, ema, facts)
    log = RunLog(accelerator, cfg, num_steps, state.step)
    if accelerator.is_main_process:
        (root / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    val_loader = eval_loader(
        data.val,
        cfg.data,
        cfg.eval.batch_size,
        accelerator.device.type == "cuda",
        accelerator.process_index,
        accelerator.num_processes,
    )
    run = Run(
        cfg,
        accelerator,
        data,
        detector,
        processor,
        optimizer,
        ema,
        state,
        checkpoints,
        log,
        num_steps,
        val_loader,
    )
    return run, facts


def resume(
    cfg: Config,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    detector: Detector,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    facts: dict[str, Any],
) -> TrainState:
    """State to start from: fresh, or a checkpoint's, with weights and optimizer loaded.

    Raises:
        UserError: if the checkpoint belongs to another backbone, dataset or model.
    """
    never = cfg.run.resume == "never"
    folder = checkpoints.newest() if cfg.run.resume == "auto" else Path(cfg.run.resume)
    if never or folder is None:
        return TrainState(facts=facts)
    state = load_state(folder)
    for name, key in (("backbone_sha256", "model.backbone"), ("data_sha256", "data")):
        if state.facts[name] != facts[name]:
            raise UserError(f"{folder}: was trained on another {key} ({name} differs)")
    load_model(folder, detector.model)
    load_optimizer(folder, accelerator, detector.model, optimizer)
    ema.tensors = load_average(folder) if cfg.train.ema_decay is not None else {}
    return dataclasses.replace(state, facts=facts)


def inner(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def main(argv: Sequence[str]) -> None:
    """Collective: called on every rank. A whole run: train, evaluate, export, push."""
    cfg = load_config(argv)
    if process_rank() == 0:  # another rank may look when rank 0 has already written
        check_run_folder(cfg.run)
    repo_id = (
        resolve_repo_id(cfg.hub, cfg.run.name or Path(cfg.run.output_dir).name)
        if cfg.hub.push
        else None
    )
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()
    run, facts = build_run(cfg)
    accelerator = run.accelerator
    torch.autograd.set_detect_anomaly(cfg.run.detect_anomaly)
    for line in banner(
        cfg,
        run.detector,
        run.data,
        run.optimizer,
        run.num_steps,
        accelerator.num_processes,
        str(accelerator.device),
    ):
        run.log.say(line)
    if run.state.step:
        run.log.say(f"resumed at step {run.state.step}")
    sampler = StepSampler(
        resized_sizes(run.data.train, cfg.data.image_size),
        cfg.train.global_batch_size,
        micro_batch_size(cfg.train, accelerator.num_processes),
        cfg.run.seed,
        start_step=run.state.samples_seen // cfg.train.global_batch_size,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    dataset = TrainDataset(run.data.train, cfg.data, cfg.run.seed)
    loader = train_loader(dataset, sampler, pin=accelerator.device.type == "cuda")
    model, run.optimizer = accelerator.prepare(run.detector.model, run.optimizer)
    run.ema.start()
    if run.state.step < run.num_steps:
        train(run, model, iter(loader), sampler.accumulation)
    finish(run, facts, repo_id)
    run.log.close()
    accelerator.state.destroy_process_group()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        fail(error)
