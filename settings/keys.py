"""Every key of a run's configuration: one frozen dataclass per section, read by jsonargparse.

The text below a key is its `--help`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from settings.image_keys import ImageSizeConfig, TilesConfig
from settings.tasks import BoxFormat, Task

MAX_SYNTHETIC_SEED = 500_000
"""Training scenes have seeds below it, validation scenes that much more; from twice that on, seeds
belong to the pretraining of the shipped backbone"""

FROZEN_STAGES = "stages:"
"""Before the number of stages in model.freeze"""
AUTO = "auto"
PROFILE_WARM_UP = 3
"""Steps before those that run.profile measures; after them comes one more, of which a trace is written"""
LOSS_SCALE, LOSS_SCALE_GROWTH_STEPS = 65_536.0, 2_000
"""Those of torch"""
MAX_SIDE_PX = 16_384
"""No image is given to a model larger than this"""

T = TypeVar("T")
Parallel = Literal["ddp", "fsdp2"]


def harmless(default: T) -> T:
    """A key that may change at a resume: it changes neither a step nor which checkpoint is the best.

    Places of data and weights are among them: what lies there is known by its fingerprint.
    """
    return cast(T, field(default=default, metadata={"harmless": True}))


@dataclass(frozen=True)
class RunConfig:
    """The run: its folder, seed, logs and resuming"""

    output_dir: str = harmless("runs/default")
    """Run folder; must be empty or absent unless run.resume is set"""
    seed: int = 0
    """Seed of everything random: scenes, splits, data order, augmentation, initial weights"""
    resume: str = harmless("never")
    """never, auto (newest intact checkpoint of output_dir, or a fresh start), or a checkpoint folder"""
    allow_changes: bool = harmless(False)
    """Resume although keys that change the training differ from the checkpoint's"""
    tracker: str = harmless("trackio")
    """trackio (local), none, or another tracker that accelerate knows; metrics.jsonl is always written"""
    project: str | None = harmless(None)
    """Project name in the tracker; default: the dataset's name"""
    name: str | None = harmless(None)
    """Run name in the tracker; default: the last part of output_dir"""
    pictures: bool = harmless(True)
    """Draw samples/labels.png at the start, and results.png and report.html after each evaluation, beside training"""
    log_every: int = harmless(10)
    """Steps between two console lines and entries of metrics.jsonl"""
    log_image_ids: bool = harmless(False)
    """Write the image ids of each logged step into metrics.jsonl"""
    draw_batches: int = harmless(1)
    """Draw the first N steps' images with their boxes, as the model gets them, into samples/ (100 pictures at most)"""
    collective_timeout_s: int = harmless(1800)
    """Longest time that a rank waits for the others, s; more than the longest evaluation"""
    preflight_timeout_s: int = harmless(300)
    """Longest time of the first exchange of all processes, s: NCCL's connections, and what one starts later than others.
    That they find each other at all is waited for before, as long as run.collective_timeout_s"""
    deterministic: bool = harmless(False)
    """Kernels that give the same bits in every run (slower); on GPUs only for maskformer, pmd and linear, since the
    others need kernels of which there is none such. CPUs give the same bits in any case"""
    max_bad_images: int = harmless(10)
    """Images that cannot be read and are left out; more end the run, since the folder may be wrong"""
    profile: int | None = harmless(None)
    """Measure N steps after the first ones part by part (profile/summary.txt), and write a trace of the next"""
    detect_anomaly: bool = harmless(False)
    """torch.autograd anomaly detection: names the operation that made a NaN (slow)"""


@dataclass(frozen=True)
class DataConfig:
    """The labelled images"""

    source: Literal["synthetic", "hub", "coco", "imagefolder", "voc", "yolo", "label_maps"] = (
        "synthetic"
    )
    """Kind of data: synthetic street scenes, a Hub dataset, COCO files, a folder with metadata.jsonl,
    Pascal VOC files, YOLO files, folders of images and of their label maps"""
    path: str | None = harmless(None)
    """Folder (coco, imagefolder, voc, yolo, label_maps), Hub id or local folder in Hub format (hub),
    cache folder (synthetic)"""
    revision: str | None = harmless(None)
    """Revision (commit, tag or branch) of a Hub dataset"""
    train_split: str = "train"
    """Training split: its name (hub, e.g. train or train[:10%]; voc; yolo) or its folder below path
    (coco, imagefolder, voc)"""
    val_split: str | None = None
    """Validation split, named like train_split; default: the one that lies beside it (val, valid, validation), or else
    val_fraction of the training split; none: val_fraction in any case"""
    val_fraction: float = 0.05
    """Part of the training images kept for validation where there is no val_split"""
    train_annotations: str | None = harmless(None)
    """COCO file of the training images, relative to path; default: annotations/<train_split>.json. With
    label_maps the folder of their label maps; default: the first usual one that is there"""
    val_annotations: str | None = harmless(None)
    """As train_annotations, of the validation images"""
    train_images: str | None = harmless(None)
    """Folder of a COCO file's training images, relative to path; default: the split's own, or the first usual one that
    has them (images/train, train2017, images, ...)"""
    val_images: str | None = harmless(None)
    """As train_images, of the validation images"""
    follow_links: bool = harmless(False)
    """Read image files that are links out of the dataset's folder. Whoever made the dataset then chooses which
    files of this machine are read and drawn: only for links that you made"""
    allow_unlabelled: bool = harmless(False)
    """Images without a label file (yolo) show nothing, although they are many: without it more than a fifth of a split
    ends the start, since files may be missing. An empty label file says so of one image"""
    label_map_column: str | None = harmless(None)
    """Column of hub and imagefolder with the label map of an image; default: the first usual one that is
    there (label_map, annotation, segmentation_map, mask, label, ...)"""
    ignore_index: int = 255
    """Value of label maps for pixels of which nobody knows the class: no part of loss and metrics"""
    label_values: list[int] | None = None
    """Values of the classes in label maps, in the order of data.labels, e.g. [0, 255]; a class even if it is
    ignore_index; default: 0, 1, 2, ... (1, 2, ... if ignore_index is 0)"""
    reduce_labels: bool = False
    """In label maps, 0 is as ignore_index, and the classes are one less than their values (ADE20K)"""
    background: str | None = "background"
    """For semantic and panoptic segmentation from masks of objects: class of the pixels that no mask covers;
    null: they are as ignore_index"""
    stuff: list[str] = field(default_factory=list)
    """For panoptic segmentation: classes of which all pixels of an image are one segment (sky, road), beside
    those of which the dataset says so (isthing 0) and the background"""
    labels: list[str] | None = None
    """Class names in the order of the dataset's category ids; default: what the dataset says"""
    box_format: BoxFormat | None = None
    """The four numbers of a box: xywh, xyxy (corners), cxcywh (centre), in px, or relative (0 to 1); default: what the
    source has, xywh (voc: voc, corners that count from 1; yolo: cxcywh_relative). coco, pascal_voc (corners that count
    from 0), albumentations, yolo: other names of these"""
    category_offset: int = 0
    """Added to the category ids of annotations, where those of the names begin one earlier (-1) or later (1)"""
    strict: bool = harmless(False)
    """End the run before its first step for anything wrong with the dataset, also what can be left out,
    repaired or converted"""
    streaming: bool = harmless(False)
    """Read a Hub dataset row by row, once, into a folder of images in the cache"""
    packed: str | None = harmless(None)
    """Folder that `tools.pack` has made of this dataset, by the same keys: images and annotations are read there; or
    its address on a store (https://, s3://, hf://, ...), from where images come as they are needed"""
    packed_cache_gb: float = harmless(50.0)
    """With an address: most of its images that are kept on this machine, GB, for all processes together"""
    packed_cache_folder: str | None = harmless(None)
    """Where; default: the user's cache. A disk of the node is best"""
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
    tiles: TilesConfig = field(default_factory=TilesConfig)
    """Windows that images are cut into"""
    augment: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    """albumentations transforms with their arguments, applied in turn to training images"""
    num_workers: int = harmless(2)
    """Worker processes per rank that decode and augment; 0: in the main process"""
    repeat_threshold: float | None = None
    """Images with a class that fewer than this part of the images have come more often in an epoch: f as many,
    sqrt(threshold / f) times (LVIS: 0.001; a few classes: 0.1 to 0.5). Default: each image once"""
    cache_features: int = 0
    """Views of each training image whose backbone features are stored; epoch e sees view e mod N; 0: none are"""
    cache_precision: Literal["fp16", "fp32"] = "fp16"
    """Of stored features"""
    cache_folder: str | None = harmless(None)
    """Where features are stored; default: the user's cache"""


@dataclass(frozen=True)
class ModelConfig:
    """The detector: a pretrained backbone and a head"""

    task: Task = "detection"
    """What the head predicts"""
    backbone: str | None = harmless("street/backbone")
    """Hub id or folder of a transformers backbone with safetensors weights; null: that of model.init_from,
    a whole pretrained detector"""
    backbone_revision: str | None = harmless(None)
    """Revision (commit, tag or branch) of a backbone on the Hub"""
    freeze: str = "all"
    """all: the backbone is never changed; none: it is trained with optim.backbone_lr; stages:2: only what
    comes after its first two stages is (of a plain vision transformer a stage is a layer)"""
    out_features: list[str] | None = None
    """Backbone stages the head reads, e.g. [stage3, stage4]; default: the last ones, as the head needs"""
    neck: Literal["none", "pyramid", "fpn", "cnn_branch"] | None = None
    """Layers that make maps of several strides: pyramid (of one map), cnn_branch (likewise, with detail from the
    pixels), fpn (of several), none; default: pyramid where the head needs several and the backbone has one"""
    neck_channels: int = 256
    """Channels of each map of a neck"""
    head: (
        Literal[
            "detr",
            "conditional_detr",
            "deformable_detr",
            "rt_detr_v2",
            "d_fine",
            "deimv2",
            "rf_detr",
            "rf_detr_seg",
            "maskformer",
            "mask2former",
            "linear",
            "pmd",
        ]
        | None
    ) = "deformable_detr"
    """Head: detr, conditional_detr, deformable_detr, rt_detr_v2, d_fine, deimv2 and rf_detr find boxes, rf_detr_seg
    masks of objects (the last two only whole, by model.init_from); maskformer, mask2former and, on a plain vision
    transformer, pmd these or regions of classes; linear the class of every pixel; null: that of model.init_from"""
    head_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the head's transformers config, e.g. {num_queries: 50, decoder_layers: 3}"""
    init_from: str | None = harmless(None)
    """Hub id or folder of a pretrained detector. With model.backbone null it is taken whole, and only the layers
    of its classes are new; beside a model.backbone the weights of its head are taken where shapes agree"""
    init_from_revision: str | None = harmless(None)
    """Revision (commit, tag or branch) of model.init_from on the Hub"""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its groups and its schedule"""

    lr: float = 1e-4
    """Learning rate of the head after warm-up"""
    backbone_lr: float | None = None
    """Learning rate of a backbone that is trained; default: a tenth of optim.lr"""
    layer_decay: float | None = None
    """Factor on optim.backbone_lr for each stage (of a plain vision transformer: layer) that comes later"""
    neck_lr: float | None = None
    """Learning rate of the neck; default: optim.lr"""
    new_layers_lr: float | None = None
    """Learning rate of the layers that model.init_from does not give; default: optim.lr"""
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
    micro_batch_size: int | Literal["auto"] | None = harmless(None)
    """Images per forward pass on one device; default: global_batch_size / number of processes; auto: as many of
    these as fit into memory, tried before the first step; at a resume as many as before"""
    parallel: Parallel = harmless("ddp")
    """What each process holds of the weights that train, their moments and their average. ddp: all of it.
    fsdp2: a part, for backbones that are trained and do not fit on one device (docs/scaling.md)"""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Mixed precision of the forward pass; weights stay in fp32. no: fp32 throughout, TF32 nowhere.
    On a CPU fp16 is slow (docs/exactness.md)"""
    loss_scale_start: float | None = harmless(None)
    """fp16: what the loss is multiplied by at first; halved wherever gradients overflow; default: 65536"""
    loss_scale_growth_steps: int | None = None
    """fp16: steps without overflow after which the loss scale is doubled; default: 2000"""
    evaluate_every: int | None = harmless(None)
    """Steps between evaluations; default: only at the end"""
    patience: int | None = harmless(None)
    """Training ends early after N evaluations in a row without a better eval.metric; default: it does not"""
    checkpoint_every: int | None = harmless(None)
    """Steps between checkpoints; default: with every evaluation"""
    class_weights: dict[str, float] | Literal["balanced"] | None = None
    """What classes weigh in the loss of classes, e.g. {rider: 4, sky: 0.5}, others 1; balanced: by how much of each the
    training split has; default: all 1 (docs/choosing.md, Rare classes)"""
    ema_decay: float | None = None
    """Decay of the averaged weights that are evaluated and exported, e.g. 0.999, reached by
    and by; default: no average"""
    max_skipped_steps: int = harmless(20)
    """Steps in a row that may be skipped for a gradient that is not finite before the run ends; in fp16 those
    that no loss scale has helped"""
    keep_checkpoints: int = harmless(2)
    """Newest checkpoints that are kept; the best one is kept besides"""
    on_failed_save: Literal["end", "continue"] = harmless("end")
    """When a checkpoint cannot be written (disk full): end the run, or train on and try the next one"""


@dataclass(frozen=True)
class EvalConfig:
    """Validation"""

    metric: str | None = None
    """Metric that decides which checkpoint is the best; default: AP, or mIoU of semantic and PQ of
    panoptic segmentation"""
    panoptic_threshold: float = 0.5
    """Lowest probability of the class of a segment that is found (panoptic segmentation)"""
    score_threshold: float = harmless(0.5)
    """Lowest score of a box that is drawn as long as none has the best F1; the metrics use every box"""
    max_detections: int = 100
    """Highest-scored boxes per image that are evaluated"""
    batch_size: int = harmless(8)
    """Images in one forward pass on one device"""


@dataclass(frozen=True)
class HubConfig:
    """Upload of the exported model"""

    push: bool = harmless(False)
    """Upload export/ to the Hub after training"""
    repo_id: str | None = harmless(None)
    """Repository, name or user/name; default: the user's own name and the run's name"""
    private: bool = harmless(True)
    """Create the repository as a private one"""
    during: bool = harmless(False)
    """Upload each checkpoint that is the best so far while training goes on, too"""


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
