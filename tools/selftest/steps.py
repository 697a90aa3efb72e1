"""One training step, by all processes, by one, and in micro-batches: the same images, loss and gradient?

Every process also takes the whole step alone, as a world of one would, from the same weights.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object

from data.batch import Batch
from data.canvas import ResizedSizes
from data.dataset import Data
from data.feed.loader import TrainDataset, batches_of, train_loader
from data.feed.sampler import StepSampler
from disk import ROOT
from model.build import Detector
from model.memory import MemoryWatch
from run.build import build_accelerator, build_parts
from run.precision import with_fitting_scale
from run.startup import UNDETERMINED
from settings.keys import Config
from settings.load import EMBEDDED_DEFAULT, load_config
from tools.selftest.report import Line, Verdict
from train_accelerate import attempt_step
from training.counts import agree
from training.meter import StepMeter
from training.optim import build_optimizer
from training.state import TrainState

SIZES = {"num_queries": 8, "encoder_layers": 1, "decoder_layers": 2, "d_model": 64, "dropout": 0.0}
REAL_TIME = {
    **{**SIZES, "encoder_type": "lite", "encoder_layers": 0},
    **{"num_feature_levels": 2, "encoder_hidden_dim": 64},
    **{"num_denoising": 8, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
}
MASKS = {
    **{
        "num_queries": 8,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "hidden_dim": 32,
        "feature_size": 32,
    },
    **{"mask_feature_size": 32, "dim_feedforward": 64, "encoder_feedforward_dim": 64},
    **{"num_attention_heads": 4},
}
HEADS: dict[str, list[str]] = {
    "deformable_detr": [],
    "detr": ["--model.head", "detr", "--model.head_args", json.dumps(SIZES)],
    "deimv2": ["--model.head", "deimv2", "--model.head_args", json.dumps(REAL_TIME)],
    "mask2former": [
        *("--config", str(ROOT / "configs" / "synthetic_masks.yaml")),
        *("--model.head", "mask2former", "--model.head_args", json.dumps(MASKS)),
    ],
}
"""Arguments by head; the first is that of the embedded default"""
IN_ALL_PRECISIONS = ("deformable_detr", "detr")
BOUNDS = {"no": 1e-4, "bf16": 0.05, "fp16": 0.01}
"""Relative differences of loss and gradient that are rounding: sums in another order, and in 8 or 11 bits"""
NAMES = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}
LONGEST_WAIT_S = 3600
"""Others wait for the main process while its children live"""
LONELY = 8
"""Fewest images of a step"""


@dataclass(frozen=True)
class Step:
    """What came out of a step that was not taken."""

    loss: float
    gradient: torch.Tensor
    """float32 on the CPU, of everything that trains"""
    images: list[str]

    def difference(self, other: "Step") -> float:
        """The larger of the relative differences of loss and gradient."""
        loss = abs(self.loss - other.loss) / abs(self.loss)
        gradient = (self.gradient - other.gradient).norm() / self.gradient.norm()
        return max(loss, float(gradient))


@dataclass
class Bench:
    """One detector in one precision, wrapped for the processes that there are."""

    accelerator: Accelerator
    cfg: Config
    data: Data
    detector: Detector
    model: Any
    """The trainable as DDP and autocast wrap it"""
    optimizer: Any

    def batches(self, micro: int, rank: int, world: int) -> list[Batch]:
        """The micro-batches of one of `world` processes in the first step."""
        data_cfg = dataclasses.replace(self.cfg.data, image_size=self.detector.rule.size)
        table, step = self.data.train.table, self.cfg.train.global_batch_size
        sampler = StepSampler(
            ResizedSizes(table.sizes, data_cfg.image_size),
            *(step, micro, self.cfg.run.seed),
            rank=rank,
            world=world,
            multiple=self.detector.rule.multiple,
        )
        dataset = TrainDataset(
            *(self.data.train, data_cfg, self.cfg.run.seed, self.data.labels, self.data.taxonomy)
        )
        with batches_of(train_loader(dataset, sampler, pin=False)) as stream:
            return [next(stream) for _ in range(step // (micro * world))]

    def together(self) -> Step:
        """Collective: called on every rank. The step by all processes."""
        accelerator = self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        batches = self.batches(self.cfg.train.global_batch_size // world, rank, world)
        agreed = agree(accelerator, [self.detector.trainable.counts(b) for b in batches])
        step = self._attempted(accelerator, self.model, batches, agreed.counts)
        loss = accelerator.reduce(torch.tensor(step.loss, device=accelerator.device), "sum")
        images = gather_object(step.images)
        return Step(float(loss), step.gradient, images)

    def alone(self, micro: int | None = None) -> Step:
        """The step by this process, as if there were no others, in micro-batches of a size; default: one."""
        total = self.cfg.train.global_batch_size
        (whole,) = self.batches(total, 0, 1)
        counts = self.detector.trainable.counts(whole).alone
        model = self.accelerator.unwrap_model(self.model)
        batches = [whole] if micro is None else self.batches(micro, 0, 1)
        return self._attempted(AsOne(self.accelerator), model, batches, counts)

    def _attempted(
        self, accelerator: Any, model: Any, batches: Sequence[Batch], counts: Mapping[str, float]
    ) -> Step:
        """By the loop of training itself, but for what it gives to the optimizer."""
        kept = GradientKept(self.optimizer, accelerator.scaler)
        run: Any = SimpleNamespace(
            cfg=self.cfg,
            accelerator=accelerator,
            state=TrainState(),
            optimizer=kept,
            checkpoints=SimpleNamespace(wait_for_copy=lambda: None),
            log=SimpleNamespace(say=lambda text: None),
        )
        meter = StepMeter(accelerator, self.cfg.train.global_batch_size)
        memory = MemoryWatch(accelerator.device, "the images of a step")
        attempt = partial(attempt_step, run, model, batches, counts, meter, memory)
        if not with_fitting_scale(self.accelerator, attempt, 1, run.log).taken:
            raise ValueError("the gradient of the first step is not finite")
        images = [str(name) for batch in batches for name in batch.image_ids]
        return Step(float(meter.losses["loss"]), kept.gradient, images)


class AsOne:
    """An Accelerator that takes its process for the only one."""

    num_processes, process_index = 1, 0

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


class GradientKept:
    """In the place of an optimizer: keeps the gradient of its step, and changes no weight."""

    gradient: torch.Tensor

    def __init__(self, optimizer: Any, scaler: Any):
        self.param_groups = optimizer.param_groups
        self.zero_grad = optimizer.zero_grad
        self._scaler = scaler

    def step(self) -> None:
        """Keep it, float32 on the CPU."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        found = [p.grad.detach().float().flatten().cpu() for p in parameters if p.grad is not None]
        self.gradient = torch.cat(found)
        if self._scaler is not None:
            self._scaler.update()  # as accelerate's optimizers do


def images_of_step(world: int) -> int:
    """The same number for each process."""
    return world * max(2, -(-LONELY // world))


def configured(head: str, world: int, *more: str) -> Config:
    """The configuration of a head on a few synthetic scenes."""
    arguments = HEADS[head]
    if "--config" not in arguments:
        arguments = ["--config", str(EMBEDDED_DEFAULT), *arguments]
    size = images_of_step(world)
    return load_config(
        [
            *arguments,
            *("--data.synthetic_train", str(4 * size), "--data.synthetic_val", "8"),
            *("--data.cache_features", "0", "--data.num_workers", "0", "--run.tracker", "none"),
            *("--run.pictures", "false"),
            *("--train.global_batch_size", str(size), "--optim.max_grad_norm", "0"),
            *("--run.collective_timeout_s", str(LONGEST_WAIT_S)),
            *more,
        ],
        prog="python -m tools.selftest",
    )


def benches(precision: str, heads: Sequence[str], world: int) -> Iterator[tuple[str, Bench]]:
    """Collective: called on every rank. A bench for each head, one after the other."""
    for head in heads:
        AcceleratorState._reset_state()  # the processes stay; another precision is allowed
        cfg = configured(head, world, "--train.precision", precision)
        accelerator = build_accelerator(cfg)
        cfg, data, detector = build_parts(cfg, accelerator)
        optimizer = build_optimizer(detector.model, detector.backbone_module, cfg.optim)
        model, prepared = accelerator.prepare(detector.trainable, optimizer)
        model.train()
        yield head, Bench(accelerator, cfg, data, detector, model, prepared)
        accelerator.free_memory()


@dataclass(frozen=True)
class Seen:
    """What the steps of one head gave, the worst of all processes."""

    head: str
    split: float
    """Difference between micro-batches of one image and one pass"""
    steady: bool
    """Whether a step made twice gave the same bits"""
    shared: float
    """Difference between all processes and one"""
    same_images: bool
    """In both"""
    agreed: bool
    """Whether all processes have the same gradient, to the bit"""


def seen(head: str, bench: Bench) -> Seen:
    """Collective: called on every rank. Take the step in every way."""
    whole, again, split, shared = bench.alone(), bench.alone(), bench.alone(1), bench.together()
    digest = hashlib.sha256(shared.gradient.numpy().tobytes()).hexdigest()
    steady = torch.equal(whole.gradient, again.gradient)
    told = (
        whole.difference(split),
        whole.difference(shared),
        steady,
        whole.images == shared.images,
        digest,
    )
    splits, shares, steadies, images, digests = zip(*gather_object([told]), strict=True)
    return Seen(
        head, worst(splits), all(steadies), worst(shares), all(images), len(set(digests)) == 1
    )


def worst(differences: Sequence[float]) -> float:
    """The largest; infinite if one is no number."""
    return max(d if math.isfinite(d) else math.inf for d in differences)


def exactness(precision: str, world: int, device: torch.device) -> list[Line]:
    """Collective: called on every rank. Whether a step depends on processes, on micro-batches, on chance."""
    name = NAMES[precision]
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return [
            Line(f"step, {name}", Verdict.UNKNOWN, f"{torch.cuda.get_device_name(device)} has none")
        ]
    heads = list(HEADS) if precision == "no" else IN_ALL_PRECISIONS
    found = [seen(head, bench) for head, bench in benches(precision, heads, world)]
    bound, size = BOUNDS[precision], images_of_step(world)
    split = {one.head: one.split for one in found}
    lines = [
        _within(f"micro-batches, {name}", split, bound, f"{size} passes of 1 image and 1 of {size}")
    ]
    if world > 1:
        shared = {one.head: one.shared for one in found}
        lines.append(_within(f"processes, {name}", shared, bound, f"{world} processes and one"))
    else:
        lines.append(Line(f"processes, {name}", Verdict.UNKNOWN, "there is one process"))
    if precision != "no":
        return lines
    if world > 1:
        lines += [
            _of_all(
                "same images",
                [one.head for one in found if not one.same_images],
                f"the images of a step on {world} processes are those of one, in the same order",
                "the data order depends on the number of processes: report this as a bug",
            ),
            _of_all(
                "same gradient",
                [one.head for one in found if not one.agreed],
                f"bit-equal on all {world} processes",
                "weights of the processes drift apart: check NCCL and the network, then report this",
            ),
        ]
    return [*lines, _steadiness([one.head for one in found if not one.steady], heads, device)]


def _steadiness(unsteady: Sequence[str], heads: Sequence[str], device: torch.device) -> Line:
    name = "repeatable kernels"
    known = {head for own in UNDETERMINED.values() for head in own}
    if unsteady and device.type != "cpu" and set(unsteady) <= known:
        steady = ", ".join(head for head in heads if head not in unsteady) or "none"
        found = (
            f"a step made twice differs in its last bits with {', '.join(unsteady)}, for which torch has no "
            f"deterministic kernel on a GPU (docs/gpu.md); bit-equal: {steady}"
        )
        return Line(name, Verdict.MEASURED, found)
    return _of_all(
        name,
        unsteady,
        f"a step made twice gives the same bits: {', '.join(heads)}",
        "two runs of these heads are not bit-equal on this device, nor a resumed and an undisturbed one; each step is "
        "right within rounding",
    )


def _of_all(name: str, broken: Sequence[str], found: str, advice: str) -> Line:
    """The line of what is to hold for every head."""
    if broken:
        found = f"not with {', '.join(broken)}"
    return Line.of(name, not broken, found, advice)


def _within(name: str, differences: Mapping[str, float], bound: float, of: str) -> Line:
    head = max(differences, key=lambda head: differences[head])
    return Line.of(
        name,
        differences[head] < bound,
        f"{of} differ by {differences[head]:.1e} in loss or gradient ({head}; rounding: up to {bound:g})",
        "what is trained depends on how a step is cut: report this as a bug, with this output",
    )
