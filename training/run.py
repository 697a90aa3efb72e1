"""Everything before the first step: processes, data, detector, optimizer, and a checkpoint's state."""

import dataclasses
import json
import math
import os
import warnings
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
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from config import Config, UserError, micro_batch_size
from data.build import Data, build_data
from data.collate import Batch
from data.loader import TrainDataset, eval_loader, resized_sizes, train_loader
from data.sampler import StepSampler
from data.transforms import Augment
from model.build import Detector, build_model, build_processor
from training.checkpoint import (
    Checkpoints,
    TrainState,
    load_average,
    load_model,
    load_optimizer,
    load_state,
    step_of,
)
from training.ema import Ema
from training.facts import run_facts
from training.optim import build_optimizer
from training.runlog import RunLog
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
    facts: dict[str, Any]
    """What run.json records"""
    num_steps: int

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.cfg.run.output_dir)

    def train_loader(self) -> tuple[DataLoader[Batch], int]:
        """This rank's micro-batches from the next step on, and how many of them make a step."""
        cfg, accelerator = self.cfg, self.accelerator
        sampler = StepSampler(
            resized_sizes(self.data.train, cfg.data.image_size),
            cfg.train.global_batch_size,
            micro_batch_size(cfg.train, accelerator.num_processes),
            cfg.run.seed,
            start_step=self.state.samples_seen // cfg.train.global_batch_size,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        dataset = TrainDataset(self.data.train, cfg.data, cfg.run.seed)
        return train_loader(
            dataset, sampler, accelerator.device.type == "cuda"
        ), sampler.accumulation

    def val_loader(self) -> DataLoader[Batch]:
        """This rank's batches of the validation split."""
        return eval_loader(
            self.data.val,
            self.cfg.data,
            self.cfg.eval.batch_size,
            self.accelerator.device.type == "cuda",
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )


def build_run(cfg: Config) -> Run:
    """Collective: called on every rank. Everything before the first step.

    Raises:
        UserError: for anything wrong with data, backbone, head or checkpoint.
    """
    accelerator = build_accelerator(cfg)
    check_launch(cfg, accelerator.num_processes, os.environ)
    preflight(accelerator)
    if cfg.train.precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("train.precision fp16: needs a GPU; on a CPU set train.precision no")
    set_seed(cfg.run.seed)
    with accelerator.main_process_first():
        Augment(cfg.data.augment)  # refuses what it cannot do, before anything is written
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
    check_same(
        accelerator, {"the checkpoint to resume from": f"{state.step}, {state.samples_seen}"}
    )
    log = RunLog(accelerator, cfg, num_steps, state.step)
    if accelerator.is_main_process:
        (root / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    return Run(
        cfg=cfg,
        accelerator=accelerator,
        data=data,
        detector=detector,
        processor=processor,
        optimizer=optimizer,
        ema=ema,
        state=state,
        checkpoints=checkpoints,
        log=log,
        facts=facts,
        num_steps=num_steps,
    )


def build_accelerator(cfg: Config) -> Accelerator:
    """The Accelerator of this run; precision and time-out come from the configuration alone."""
    # accelerate passes on what DDP is about to rename
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # without it, CPU ranks would not find each other
        mixed_precision=cfg.train.precision,
        log_with=None if cfg.run.tracker == "none" else cfg.run.tracker,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=cfg.run.collective_timeout_s)),
        ],
    )


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
    newest = checkpoints.newest()
    inside = folder.parent.resolve() == checkpoints.folder.resolve()
    if inside and newest is not None and step_of(newest) > state.step:
        raise UserError(
            f"run.resume {folder}: {checkpoints.folder} has newer checkpoints, up to {newest.name}; "
            "branch off into another run.output_dir, or remove them"
        )
    load_model(folder, detector.model)
    load_optimizer(folder, accelerator, detector.model, optimizer)
    ema.tensors = load_average(folder) if cfg.train.ema_decay is not None else {}
    return dataclasses.replace(state, facts=facts)
