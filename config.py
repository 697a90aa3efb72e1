"""The configuration of a run: one frozen dataclass per section, read by jsonargparse.

Defaults < YAML (`--config`) < command line (`--section.key value`). Everything that can be wrong
about a configuration is found here, before a process group, a model or a download exists.
"""

import dataclasses
import difflib
import os
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

ROOT = Path(__file__).resolve().parent
EMBEDDED_DEFAULT = ROOT / "configs" / "synthetic.yaml"
MAX_SYNTHETIC_SEED = 500_000
"""Training scenes have seeds below it, validation scenes that much more; from twice that on, seeds
belong to the pretraining of the shipped backbone"""

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class UserError(ValueError):
    """Something the user can mend: says what is wrong, where, and what to do instead."""


@dataclass(frozen=True)
class RunConfig:
    """The run: its folder, seed, logs and resuming"""

    output_dir: str = "runs/default"
    """Run folder; must be empty or absent unless run.resume is set"""
    seed: int = 0
    """Seed of everything random: scenes, splits, data order, augmentation, initial weights"""
    resume: str = "never"
    """never, auto (newest intact checkpoint of output_dir, or a fresh start), or a checkpoint folder"""
    allow_changes: bool = False
    """Resume although keys that change the training differ from the checkpoint's"""
    tracker: str = "trackio"
    """trackio (local), none, or another tracker that accelerate knows; metrics.jsonl is always written"""
    project: str = "permafrost"
    """Project name in the tracker"""
    name: str | None = None
    """Run name in the tracker; default: the last part of output_dir"""
    log_every: int = 10
    """Steps between two console lines and entries of metrics.jsonl"""
    log_image_ids: bool = False
    """Write the image ids of each logged step into metrics.jsonl"""
    draw_batches: int = 1
    """Draw the first N steps' images with their boxes, as the model gets them, into samples/"""
    collective_timeout_s: int = 1800
    """Longest time that a rank waits for the others, s; more than the longest evaluation"""
    max_bad_images: int = 10
    """Images that cannot be read and are left out; more end the run, since the folder may be wrong"""
    detect_anomaly: bool = False
    """torch.autograd anomaly detection: names the operation that made a NaN (slow)"""


@dataclass(frozen=True)
class ImageSizeConfig:
    """Size of the image after the one resize, in pixels; the aspect ratio is kept"""

    longest: int = 1024
    """Upper limit of the longest side, px"""
    shortest: int | None = None
    """Wanted shortest side, px, as far as `longest` allows; default: the longest side decides"""


@dataclass(frozen=True)
class DataConfig:
    """The labelled images"""

    source: Literal["synthetic", "hub", "coco", "imagefolder", "voc", "yolo"] = "synthetic"
    """Kind of data: synthetic street scenes, a Hub dataset, COCO files, a folder with metadata.jsonl,
    Pascal VOC files, YOLO files"""
    path: str | None = None
    """Folder (coco, imagefolder, voc, yolo), Hub id or local folder in Hub format (hub), cache folder
    (synthetic)"""
    revision: str | None = None
    """Revision (commit, tag or branch) of a Hub dataset"""
    train_split: str = "train"
    """Training split: its name (hub, e.g. train or train[:10%]; voc; yolo) or its folder below path
    (coco, imagefolder, voc)"""
    val_split: str | None = None
    """Validation split, named like train_split; default: val_fraction of the training split"""
    val_fraction: float = 0.05
    """Part of the training images kept for validation where there is no val_split"""
    train_annotations: str | None = None
    """COCO file of the training images, relative to path; default: annotations/<train_split>.json"""
    val_annotations: str | None = None
    """COCO file of the validation images, relative to path; default: annotations/<val_split>.json"""
    labels: list[str] | None = None
    """Class names in the order of the dataset's category ids; default: what the dataset says"""
    box_format: Literal["coco", "pascal_voc", "albumentations", "yolo"] = "coco"
    """Boxes of hub and imagefolder: coco (x, y, w, h, px), pascal_voc (corners, px), albumentations
    (corners, 0 to 1), yolo (centre, w, h, 0 to 1)"""
    strict: bool = False
    """End the run before its first step for anything wrong with the dataset, also what can be left out,
    repaired or converted"""
    streaming: bool = False
    """Read a Hub dataset row by row, once, into a folder of images in the cache"""
    limit: int | None = None
    """Use only the first N training images (debugging)"""
    val_on_train: bool = False
    """Validate on the training images: for overfitting checks only, never for a result"""
    synthetic_train: int = 400
    """Number of training scenes (source: synthetic)"""
    synthetic_val: int = 100
    """Number of validation scenes (source: synthetic)"""
    image_size: ImageSizeConfig = field(default_factory=ImageSizeConfig)
    """Size of the images the model gets"""
    augment: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    """albumentations transforms with their arguments, applied in turn to training images"""
    num_workers: int = 2
    """Worker processes per rank that decode and augment; 0: in the main process"""


@dataclass(frozen=True)
class ModelConfig:
    """The detector: a pretrained backbone and a head"""

    task: Literal["detection"] = "detection"
    """What the head predicts"""
    backbone: str = "backbones/street-convnext"
    """Hub id or folder of a transformers backbone with safetensors weights"""
    backbone_revision: str | None = None
    """Revision (commit, tag or branch) of a backbone on the Hub"""
    freeze: Literal["all", "none"] = "all"
    """all: the backbone is never changed; none: it is trained with optim.backbone_lr"""
    out_features: list[str] | None = None
    """Backbone stages the head reads, e.g. [stage3, stage4]; default: the last ones, as the head needs"""
    head: Literal["detr", "conditional_detr", "deformable_detr"] = "deformable_detr"
    """Detection head"""
    head_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the head's transformers config, e.g. {num_queries: 50, decoder_layers: 3}"""
    init_from: str | None = None
    """Hub id or folder of a detector of the same head whose weights are taken where shapes agree"""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its groups and its schedule"""

    lr: float = 1e-4
    """Learning rate of the head after warm-up"""
    backbone_lr: float | None = None
    """Learning rate of a backbone that is trained; default: a tenth of optim.lr"""
    weight_decay: float = 1e-4
    """Weight decay of matrices; norms, biases and embeddings have none"""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's running-average coefficients"""
    max_grad_norm: float = 0.1
    """Global gradient norm is clipped to this; 0: no clipping"""
    warmup_steps: int = 500
    """Optimizer steps in which the learning rate rises linearly from 0"""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after warm-up: to 0 linearly, to 0 along a cosine, or none"""


@dataclass(frozen=True)
class TrainConfig:
    """Steps, batches, precision, checkpoints"""

    epochs: float | None = None
    """Passes over the training images (or set train.steps)"""
    steps: int | None = None
    """Optimizer steps (or set train.epochs)"""
    global_batch_size: int = 16
    """Images per optimizer step, over all processes"""
    micro_batch_size: int | None = None
    """Images per forward pass on one device; default: global_batch_size / number of processes"""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision of the forward pass; weights stay in fp32. fp16 needs a GPU"""
    evaluate_every: int | None = None
    """Steps between evaluations; default: only at the end"""
    checkpoint_every: int | None = None
    """Steps between checkpoints; default: with every evaluation"""
    ema_decay: float | None = None
    """Decay of the averaged weights that are evaluated and exported, e.g. 0.999; default: no average"""
    max_skipped_steps: int = 20
    """Steps in a row that may be skipped for a gradient that is not finite before the run ends"""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept; the best one is kept besides"""
    on_failed_save: Literal["end", "continue"] = "end"
    """When a checkpoint cannot be written (disk full): end the run, or train on and try the next one"""


@dataclass(frozen=True)
class EvalConfig:
    """Validation"""

    metric: Literal["AP", "AP50", "AP75"] = "AP"
    """COCO metric that decides which checkpoint is the best"""
    score_threshold: float = 0.5
    """Lowest score of a box that is drawn; the metrics use every box"""
    max_detections: int = 100
    """Highest-scored boxes per image that are evaluated"""
    batch_size: int = 8
    """Images in one forward pass on one device"""


@dataclass(frozen=True)
class HubConfig:
    """Upload of the exported model"""

    push: bool = False
    """Upload export/ to the Hub after training"""
    repo_id: str | None = None
    """Repository, name or user/name; default: the user's own name and the run's name"""
    private: bool = True
    """Create the repository as a private one"""


@dataclass(frozen=True)
class Config:
    """Configuration of a run"""

    run: RunConfig = field(default_factory=RunConfig)
    """The run"""
    data: DataConfig = field(default_factory=DataConfig)
    """The labelled images"""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The detector"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training"""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """The validation"""
    hub: HubConfig = field(default_factory=HubConfig)
    """The upload"""


def load_config(
    argv: Sequence[str], prog: str = "train_accelerate.py", world: int | None = None
) -> Config:
    """Read and check the configuration of a command line.

    Args:
        world: processes that the batch has to be divisible by; default: those of the launcher.

    Raises:
        UserError: naming every unknown key, wrong type or contradiction.
    """
    parser = build_parser(prog)
    argv = list(argv)
    if not any(arg == "--config" or arg.startswith("--config=") for arg in argv):
        argv = ["--config", str(EMBEDDED_DEFAULT), *argv]
    unknown = list(unknown_keys(argv))
    if unknown:
        raise UserError("\n  ".join(["unknown configuration keys:", *unknown]))
    try:
        parsed = parser.instantiate(parser.parse_args(argv))
    except Exception as error:  # jsonargparse raises ArgumentError, but also TypeError and others
        raise UserError(" ".join(str(error).split())) from error
    sections = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(Config)}
    cfg = Config(**sections)
    check_config(cfg, world)
    return cfg


def build_parser(prog: str) -> ArgumentParser:
    """The command line, made from the dataclasses above."""
    parser = ArgumentParser(
        prog=prog,
        exit_on_error=False,
        description="Trains a detection head on a pretrained backbone. "
        "Without --config it runs the embedded default, configs/synthetic.yaml.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    for section in dataclasses.fields(Config):
        kind: Any = section.type
        parser.add_argument(f"--{section.name}", type=kind, default=kind())
    return parser


def config_to_dict(cfg: Config) -> dict[str, Any]:
    """Plain nested dictionary of a configuration, for YAML, JSON and trackers."""
    plain = dataclasses.asdict(cfg)
    plain["optim"]["betas"] = list(cfg.optim.betas)
    return plain


# --- unknown keys -------------------------------------------------------------------------------


def leaf_keys(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every key of the configuration."""
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from leaf_keys(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def unknown_keys(argv: Sequence[str]) -> Iterator[str]:
    """One message for each key of the YAML files and the command line that does not exist."""
    known = dict(leaf_keys())
    for position, arg in enumerate(argv):
        name, _, value = arg.partition("=")
        if name == "--config":
            yield from _unknown_in_yaml(value or "".join(argv[position + 1 : position + 2]), known)
        elif name.startswith("--") and name not in ("--print_config", "--help"):
            key = name[2:].removesuffix("+")
            if not _is_known(key, known):
                yield f"{name}{_nearest(key, known)}"


def _unknown_in_yaml(path: str, known: dict[str, Any]) -> Iterator[str]:
    if not Path(path).is_file():
        raise UserError(f"--config {path}: no such file")
    try:
        content = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config {path}: not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"--config {path}: expected sections such as 'run:' and 'data:'")
    sections = {key.partition(".")[0] for key in known}
    for name, section in (content or {}).items():
        if name in sections and not isinstance(section, dict):
            raise UserError(f"--config {path}: section {name!r} must hold keys, not {section!r}")
    for key in _flatten(content or {}, known):
        if not _is_known(key, known):
            yield f"{path}: {key}{_nearest(key, known)}"


def _flatten(values: dict[Any, Any], known: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name not in known:
            yield from _flatten(value, known, f"{name}.")
        else:
            yield name


def _is_known(name: str, known: dict[str, Any]) -> bool:
    sections = {key.rpartition(".")[0] for key in known}
    parent = name
    while parent:
        if parent in known:
            return parent == name or typing.get_origin(known[parent]) is dict
        parent = parent.rpartition(".")[0]
    return name in sections


def _nearest(name: str, known: dict[str, Any]) -> str:
    """' - did you mean ...?' for a misspelt key, or a key of another section."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if not match:
        last = name.rpartition(".")[2]
        by_last = {key.rpartition(".")[2]: key for key in known}
        match = [by_last[m] for m in difflib.get_close_matches(last, by_last, n=1, cutoff=0.7)]
    return f" - did you mean {match[0]}?" if match else " - see --help for the keys"


# --- contradictions -----------------------------------------------------------------------------


def world_size() -> int:
    """Number of processes that the launcher started (torchrun and accelerate set WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """This process among those that the launcher started."""
    return int(os.environ.get("RANK", "0"))


def check_config(cfg: Config, world: int | None = None) -> None:
    """Cross-checks between keys.

    Raises:
        UserError: listing every contradiction with its key, its value and what to write instead.
    """
    world = world_size() if world is None else world
    problems = [
        *_check_train(cfg, world),
        *_check_data(cfg.data),
        *_check_run(cfg),
        *_check_optim(cfg),
    ]
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError("\n  ".join([f"{len(problems)} problems in the configuration:", *problems]))


def micro_batch_size(train: TrainConfig, world: int) -> int:
    """Images per forward pass on one device."""
    return train.micro_batch_size or max(1, train.global_batch_size // world)


def _check_train(cfg: Config, world: int) -> Iterator[str]:
    train = cfg.train
    if (train.epochs is None) == (train.steps is None):
        yield (
            f"train.epochs {train.epochs} and train.steps {train.steps}: set exactly one of them "
            "(on the command line, '--train.epochs null' drops the one in the YAML)"
        )
    for key in ("epochs", "steps", "global_batch_size", "micro_batch_size", "evaluate_every"):
        yield from _positive(f"train.{key}", getattr(train, key))
    yield from _positive("train.checkpoint_every", train.checkpoint_every)
    yield from _positive("train.keep_checkpoints", train.keep_checkpoints)
    if train.ema_decay is not None and not 0 < train.ema_decay < 1:
        yield f"train.ema_decay {train.ema_decay}: must lie between 0 and 1"
    if train.max_skipped_steps < 0:
        yield f"train.max_skipped_steps {train.max_skipped_steps}: must be 0 or more"
    total, micro = train.global_batch_size, micro_batch_size(train, world)
    if total > 0 and micro > 0 and total % (micro * world):
        per_process = total // world if total % world == 0 else 0
        valid = [str(m) for m in range(1, per_process + 1) if per_process % m == 0]
        if valid:
            advice = f"with {world} process(es), micro_batch_size can be {', '.join(valid)}"
        else:
            lower, upper = total // world * world, -(-total // world) * world
            sizes = [str(size) for size in (lower, upper) if size]
            advice = f"with {world} processes, global_batch_size can be {' or '.join(sizes)}"
        yield (
            f"train.global_batch_size {total} is not a multiple of micro_batch_size {micro} x "
            f"{world} process(es); {advice}"
        )


def _check_data(data: DataConfig) -> Iterator[str]:
    if data.source != "synthetic" and not data.path:
        yield f"data.path: needed with data.source {data.source}"
    if not 0 < data.val_fraction < 1:
        yield f"data.val_fraction {data.val_fraction}: must lie between 0 and 1"
    if data.val_on_train and data.val_split:
        yield f"data.val_on_train: contradicts data.val_split {data.val_split}; drop one of them"
    if data.source != "hub" and data.revision:
        yield f"data.revision {data.revision}: only a Hub dataset has revisions"
    if data.source not in ("hub", "imagefolder") and data.box_format != "coco":
        yield (
            f"data.box_format {data.box_format}: has no effect with data.source {data.source}, whose "
            "format says how boxes are written"
        )
    if data.streaming and data.source != "hub":
        yield f"data.streaming: only a Hub dataset can be streamed, not data.source {data.source}"
    if data.streaming and "[" in f"{data.train_split}{data.val_split}":
        yield "data.streaming: reads whole splits; drop it, or the [...] of the split"
    for key in ("limit", "synthetic_train", "synthetic_val"):
        yield from _positive(f"data.{key}", getattr(data, key))
    yield from _positive("data.image_size.longest", data.image_size.longest)
    shortest = data.image_size.shortest
    yield from _positive("data.image_size.shortest", shortest)
    if shortest and shortest > data.image_size.longest:
        yield f"data.image_size.shortest {shortest}: exceeds longest {data.image_size.longest}"
    if data.num_workers < 0:
        yield f"data.num_workers {data.num_workers}: must be 0 or more"


def _check_run(cfg: Config) -> Iterator[str]:
    yield from _positive("run.log_every", cfg.run.log_every)
    yield from _positive("run.collective_timeout_s", cfg.run.collective_timeout_s)
    if cfg.run.max_bad_images < 0:
        yield f"run.max_bad_images {cfg.run.max_bad_images}: must be 0 or more"
    yield from _positive("eval.max_detections", cfg.eval.max_detections)
    yield from _positive("eval.batch_size", cfg.eval.batch_size)
    if cfg.eval.max_detections > 100:
        yield f"eval.max_detections {cfg.eval.max_detections}: COCO's metrics look at 100 at most"
    if cfg.run.tracker not in (
        "none",
        "trackio",
        "wandb",
        "comet_ml",
        "mlflow",
        "clearml",
        "swanlab",
    ):
        yield f"run.tracker {cfg.run.tracker}: must be trackio, none, wandb, comet_ml, mlflow, clearml or swanlab"
    limit = MAX_SYNTHETIC_SEED if cfg.data.source == "synthetic" else 2**32
    if not 0 <= cfg.run.seed < limit:
        yield f"run.seed {cfg.run.seed}: must lie in 0 ... {limit - 1} with data.source {cfg.data.source}"
    if not cfg.hub.push and cfg.hub.repo_id:
        yield f"hub.repo_id {cfg.hub.repo_id}: has no effect without hub.push true"


def _check_optim(cfg: Config) -> Iterator[str]:
    yield from _positive("optim.lr", cfg.optim.lr)
    yield from _positive("optim.backbone_lr", cfg.optim.backbone_lr)
    if cfg.optim.weight_decay < 0:
        yield f"optim.weight_decay {cfg.optim.weight_decay}: must be 0 or more"
    if not all(0 <= beta < 1 for beta in cfg.optim.betas):
        yield f"optim.betas {list(cfg.optim.betas)}: each must lie in [0, 1)"
    if cfg.model.freeze == "all" and cfg.optim.backbone_lr is not None:
        yield (
            f"optim.backbone_lr {cfg.optim.backbone_lr}: has no effect with model.freeze all; "
            "drop it or set model.freeze none"
        )
    if cfg.optim.warmup_steps < 0 or cfg.optim.max_grad_norm < 0:
        yield "optim.warmup_steps and optim.max_grad_norm must be 0 or more"
    if cfg.train.steps is not None and cfg.optim.warmup_steps >= cfg.train.steps > 0:
        yield (
            f"optim.warmup_steps {cfg.optim.warmup_steps}: warm-up would not end within "
            f"train.steps {cfg.train.steps}; a tenth, {cfg.train.steps // 10}, is usual"
        )


def _positive(key: str, value: float | None) -> Iterator[str]:
    if value is not None and value <= 0:
        yield f"{key} {value}: must be greater than 0"


def fail(error: UserError) -> typing.NoReturn:
    """What the entry points do with a UserError: one clear message and exit status 2."""
    rank = f" (rank {process_rank()})" if process_rank() else ""
    text = str(error)
    if "Original Traceback" in text:  # raised in a data worker: only the last line is for the user
        text = text.strip().splitlines()[-1].partition("UserError: ")[2]
    print(f"error{rank}: {text}", file=sys.stderr)
    raise SystemExit(2)
