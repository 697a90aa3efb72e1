"""Everything before the first step: processes, data, detector, optimizer, and a checkpoint's state."""

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
)
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from data.batch import Batch
from data.build import build_data, check_findings, found_places, with_tiles
from data.canvas import ResizedSizes
from data.check.advice import sized
from data.check.doctor import check_images
from data.dataset import Data
from data.feed.allocator import keep_freed_memory
from data.feed.loader import (
    TrainDataset,
    eval_loader,
    train_loader,
)
from data.feed.repeats import Repeats, repeats_of
from data.feed.sampler import StepSampler
from data.feed.transforms import Augment
from data.feed.worker_memory import workers_short
from devices import compute_in_fp32, pins
from disk import write_whole
from errors import UserError, refusing
from model.build import Detector, build_model
from model.stages import stage_numbers
from model.start import completed
from run.aside import Aside
from run.changes import with_fitting_warmup, with_micro_batch
from run.class_weights import with_class_weights
from run.facts import run_facts
from run.feature_cache import Features, prepare_features
from run.hub_push import BestPusher
from run.log import DONE, RunLog
from run.measured import measure
from run.memory_probe import Memory, check_measurable, probe_memory
from run.precision import scaler_state, set_up_fp16
from run.resume import resume
from run.startup import (
    check_deterministic,
    check_launch,
    check_same,
    choose_deterministic_kernels,
    preflight,
    raise_descriptor_limit,
    rank_facts,
)
from run.together import ending_together
from run.trouble import report_failed_save
from settings.checks import micro_batch_size
from settings.keys import Config
from settings.tasks import LABELS
from settings.walk import config_to_dict
from training.checkpoint import Checkpoints
from training.counts import any_rank
from training.ema import Ema
from training.optim import build_optimizer, can_be_fused
from training.sharding import gathered
from training.state import TrainState, checkpoint_tensors, gather_rng
from training.stopping import StopRequest


@dataclass
class Run:
    """The parts of a run, for what needs most of them; everything else gets the parts it needs."""

    cfg: Config
    accelerator: Accelerator
    data: Data
    detector: Detector
    optimizer: torch.optim.Optimizer
    ema: Ema
    state: TrainState
    checkpoints: Checkpoints
    stop: StopRequest
    log: RunLog
    facts: dict[str, Any]
    """What run.json records"""
    num_steps: int
    reports: Aside = dataclasses.field(default_factory=Aside)
    """Writes the files of evaluations"""
    drawings: Aside = dataclasses.field(default_factory=Aside)
    """Draws what is labelled"""
    features: Features | None = None
    """What the backbone makes of the images, where that is stored"""
    memory: Memory | None = None
    """What was found to fit, where that was tried"""
    repeats: Repeats | None = None
    """What makes an epoch, if not each image once"""
    pusher: BestPusher | None = None
    """Uploads the best so far, on rank 0"""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.cfg.run.output_dir)

    def train_loader(self) -> tuple[DataLoader[Batch], int]:
        """This rank's micro-batches from the next step on, and how many of them make a step."""
        cfg, accelerator = self.cfg, self.accelerator
        data_cfg = dataclasses.replace(cfg.data, image_size=self.detector.rule.size)
        stored = self.data.train.table.sizes
        one_canvas = self.features is not None or data_cfg.image_size.canvas == "square"
        sampler = StepSampler(
            ResizedSizes(stored, data_cfg.image_size),
            cfg.train.global_batch_size,
            micro_batch_size(cfg.train, accelerator.num_processes),
            cfg.run.seed,
            start_step=self.state.samples_seen // cfg.train.global_batch_size,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            multiple=self.detector.rule.multiple,
            canvas=self.detector.rule.largest(stored) if one_canvas else None,
            shown_steps=cfg.run.draw_batches,
            repeats=self.repeats,
        )
        dataset = TrainDataset(
            *(self.data.train, data_cfg, cfg.run.seed),
            *(self.data.labels, self.data.taxonomy),
            features=None if self.features is None else self.features.train,
            views=cfg.data.cache_features or None,
            class_weights=self.data.class_weights,
        )
        pin = pins(accelerator.device)
        most = 0
        if self.data.labels != "boxes":
            most = int(self.data.train.table.counts.max()) + 1
        short = workers_short(
            *(self.detector.rule.full, sampler.micro_batch_size, cfg.data.num_workers, most),
            features=dataset.features,
        )
        if short is not None:
            self.log.say(f"note: {short}")
        return train_loader(dataset, sampler, pin, short is not None), sampler.accumulation

    def val_loader(self) -> DataLoader[Batch]:
        """This rank's batches of the validation split."""
        return eval_loader(
            self.data.val_windows or self.data.val,
            self.detector.rule,
            self.cfg.eval.batch_size,
            self.cfg.data.num_workers,
            pins(self.accelerator.device),
            self.accelerator.process_index,
            self.accelerator.num_processes,
            None if self.features is None else self.features.val,
        )

    def save(self) -> None:
        """Collective: called on every rank. Begin to write a checkpoint, if there is no such yet."""
        if self.checkpoints.is_saved(self.state):
            return
        self.checkpoints.wait()
        if any_rank(self.accelerator, self.checkpoints.failure is not None):  # of the save before
            ends = self.cfg.train.on_failed_save == "end"
            report_failed_save(self.checkpoints, self.log, ends)
        rng = gather_rng(self.accelerator)
        tensors: Mapping[str, Mapping[str, torch.Tensor]] = {}
        self.state.scaler = scaler_state(self.accelerator)
        # A checkpoint says that the numbers before it are on disk: later lives do not make them again.
        refused = None if self.log.is_written() else "metrics.jsonl or train.log cannot. Make room"
        cut, is_main = self.cfg.train.parallel == "fsdp2", self.accelerator.is_main_process
        if cut or is_main:
            optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate's wrapper
            tensors = checkpoint_tensors(self.detector.model, optimizer, self.ema.tensors, rng)
        if cut:
            tensors = gathered(tensors, is_main)
        self.checkpoints.save(
            *(tensors, self.state, self.cfg),
            refused=refused,
            after=self.reports.wait,
            copied=cut,
        )


def start_processes(cfg: Config) -> Accelerator:
    """Collective: called on every rank. The processes of this run, which have found each other.

    Which of them is the main one is accelerate's to say; nothing is written before.

    Raises:
        UserError: if they are not what launcher and configuration say.
    """
    raise_descriptor_limit()
    compute_in_fp32()
    if cfg.run.deterministic:
        choose_deterministic_kernels()
    accelerator = build_accelerator(cfg)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    check_launch(cfg, accelerator.num_processes, os.environ)
    preflight(accelerator, cfg.run.preflight_timeout_s)
    check_measurable(cfg, accelerator.device)
    return accelerator


def build_parts(cfg: Config, accelerator: Accelerator) -> tuple[Config, Data, Detector]:
    """Collective: called on every rank. The completed configuration, its data and its detector.

    Raises:
        UserError: for anything wrong with data, backbone or head.
    """
    set_seed(cfg.run.seed)
    with ending_together(
        accelerator
    ):  # what one process makes the others wait for by locks of files
        cfg = completed(cfg)
        if cfg.run.deterministic:
            check_deterministic(cfg.model.head, accelerator.device)
        Augment(cfg.data.augment)  # refuses what it cannot do, before anything is written
        labels = LABELS[cfg.model.task]
        data = build_data(cfg.data, cfg.run.seed, cfg.run.max_bad_images, labels)
        if cfg.data.strict and accelerator.is_main_process:  # what only decoding shows
            seen = check_images(data, max(1, cfg.data.num_workers))
            check_findings(seen, strict=True, max_bad_images=None)
        data = with_class_weights(cfg, with_tiles(data, cfg.data.tiles))
        cfg = sized(dataclasses.replace(cfg, data=found_places(cfg.data)), data)
        detector = build_model(cfg.model, data.taxonomy, cfg.data.image_size)
    return cfg, data, detector


def build_run(cfg: Config, accelerator: Accelerator) -> Run:
    """Collective: called on every rank. Everything before the first step.

    Raises:
        UserError: for anything wrong with data, backbone, head or checkpoint.
    """
    cfg, data, detector = build_parts(cfg, accelerator)
    repeats = repeats_of(data.train, cfg.data.repeat_threshold, cfg.run.seed)
    num_steps = cfg.train.steps or math.ceil(
        (cfg.train.epochs or 0) * len(repeats or data.train) / cfg.train.global_batch_size
    )
    cfg, notes = with_fitting_warmup(cfg, num_steps)
    backbone = detector.backbone_module
    stages = None
    if cfg.optim.layer_decay is not None:
        stages = stage_numbers(backbone, detector.rule.multiple)
    optimizer = build_optimizer(
        detector.model,
        backbone,
        cfg.optim,
        fresh=detector.fresh,
        stages=stages,
        neck=detector.neck_module,
        fused=can_be_fused(accelerator.device.type, cfg.train.precision),
    )
    root = Path(cfg.run.output_dir)
    checkpoints = Checkpoints(
        root / "checkpoints", cfg.train.keep_checkpoints, accelerator.is_main_process
    )
    facts = run_facts(accelerator, detector, data)
    check_same(accelerator, rank_facts(cfg, facts))
    ema = Ema(detector.model, cfg.train.ema_decay)
    resumed = resume(cfg, accelerator, checkpoints, detector, optimizer, ema, facts)
    state = resumed.state
    if resumed.folder is None:
        measure(detector, data, accelerator.device)
    # Without its facts, in which ranks differ: each has a device of its own.
    told = dataclasses.replace(state, facts={}).to_json()
    check_same(accelerator, {"the checkpoint to resume from": told})
    if state.step > num_steps:
        raise UserError(
            f"{resumed.folder} is at step {state.step}, and train.steps or train.epochs give "
            f"{num_steps}; raise them, or resume from an earlier checkpoint in another folder"
        )
    state.tracker_run = cfg.run.name or state.tracker_run or root.resolve().name
    features = prepare_features(cfg, accelerator, data, detector)
    cfg = with_micro_batch(cfg, resumed.micro_batch_size)
    memory = probe_memory(cfg, accelerator, data, detector, features)
    cfg = with_micro_batch(cfg, None if memory is None else memory.micro_batch_size)
    log = RunLog(accelerator, cfg, num_steps, state)
    if accelerator.is_main_process:
        (root / DONE).unlink(missing_ok=True)
        write_whole(root / "run.json", json.dumps(facts, indent=2) + "\n")
        write_whole(root / "config.yaml", yaml.safe_dump(config_to_dict(cfg), sort_keys=False))
    for note in (*notes, *resumed.notes):
        log.say(note)
    checkpoints.go_on_from(resumed.folder, state, resumed.best)
    return Run(
        cfg=cfg,
        accelerator=accelerator,
        data=data,
        detector=detector,
        optimizer=optimizer,
        ema=ema,
        state=state,
        checkpoints=checkpoints,
        stop=StopRequest(root, accelerator.is_main_process),
        log=log,
        facts=facts,
        num_steps=num_steps,
        features=features,
        memory=memory,
        repeats=repeats,
    )


def build_accelerator(cfg: Config) -> Accelerator:
    """The Accelerator of this run; precision and time-out come from the configuration alone."""
    # accelerate passes on what DDP is about to rename
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    # of 1 x 1 convolutions, in which the strides that it means are those of sides of one
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    with refusing("accelerate refuses this environment (ACCELERATE_*, RANK, LOCAL_RANK, ...)"):
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # without it, CPU ranks would not find each other
            mixed_precision=cfg.train.precision,
            log_with=None if cfg.run.tracker == "none" else cfg.run.tracker,
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False, gradient_as_bucket_view=True
                ),
                InitProcessGroupKwargs(timeout=timedelta(seconds=cfg.run.collective_timeout_s)),
            ],
        )
    set_up_fp16(accelerator, cfg.train)
    return accelerator
