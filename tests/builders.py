"""Small datasets, backbones and runs for tests, built on disk."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weighted import WEIGHTED, with_weights

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
"""Small real datasets that lie beside some checkouts"""

BOXES = [[[10, 12, 30, 20]], [], [[5, 5, 20, 40], [50, 30, 25, 25]], [[0, 0, 64, 48]]]
"""xywh boxes of the images of `write_coco`, over and over"""
SIZES = [(96, 64), (64, 96), (96, 96), (64, 48)]
"""(width, height) of those images"""


def write_images(folder: Path, num: int, seed: int = 0) -> list[str]:
    """Write `num` images with a bright rectangle on every box of BOXES; their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = []
    for index in range(num):
        width, height = SIZES[index % len(SIZES)]
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for x, y, w, h in BOXES[index % len(BOXES)]:
            pixels[y : y + h, x : x + w] = (250, 240, 30)
        name = f"{index:03d}.jpg"
        Image.fromarray(pixels).save(folder / name, quality=95)
        names.append(name)
    return names


def cut_box(x: float, y: float, w: float, h: float) -> list[float]:
    """A polygon that fills a box but for its lower right corner."""
    return [x, y, x + w, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h]


def write_coco(
    root: Path, num: int = 8, split: str = "train", ids: Sequence[int] = (1,), seed: int = 0
) -> Path:
    """A COCO dataset with `num` images in root/split and the category ids `ids`."""
    names = write_images(root / split, num, seed)
    images, annotations = [], []
    for index, name in enumerate(names):
        width, height = SIZES[index % len(SIZES)]
        images.append({"id": index + 10, "file_name": name, "width": width, "height": height})
        for number, (x, y, w, h) in enumerate(BOXES[index % len(BOXES)]):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 10,
                    "category_id": ids[number % len(ids)],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [cut_box(x, y, w, h)],
                }
            )
    file = root / "annotations" / f"{split}.json"
    file.parent.mkdir(exist_ok=True)
    categories = [{"id": i, "name": f"class{i}"} for i in ids]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return root


def write_imagefolder(root: Path, num: int = 8, split: str = "train", seed: int = 0) -> Path:
    """The images of `write_coco` as an image folder with metadata.jsonl."""
    names = write_images(root / split, num, seed)
    lines = []
    for index, name in enumerate(names):
        boxes = BOXES[index % len(BOXES)]
        objects = {
            "id": list(range(len(boxes))),
            "bbox": boxes,
            "area": [w * h for _, _, w, h in boxes],
            "category": [0] * len(boxes),
        }
        width, height = SIZES[index % len(SIZES)]
        row = {"file_name": name, "image_id": index + 10, "width": width, "height": height}
        lines.append(json.dumps({**row, "objects": objects}))
    (root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


def save_backbone(folder: Path, **changes: object) -> Path:
    """A tiny DINOv3 ConvNeXt backbone with random weights, saved as a checkpoint."""
    from transformers import DINOv3ConvNextBackbone, DINOv3ConvNextConfig

    torch.manual_seed(0)
    arguments = {"hidden_sizes": [8, 16, 32], "depths": [1, 1, 1], "layer_scale_init_value": 0.5}
    config = DINOv3ConvNextConfig(**{**arguments, **changes})
    DINOv3ConvNextBackbone(config).save_pretrained(folder)
    settings = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


TINY_TRANSFORMER = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "d_model": 32,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 6,
    "dropout": 0.0,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
TINY_REAL_TIME = {
    **TINY_TRANSFORMER,
    **{"encoder_hidden_dim": 32, "num_denoising": 12, "depth_mult": 0.34, "decoder_n_points": 2},
}
TINY_HEAD = {
    "detr": TINY_TRANSFORMER,
    "conditional_detr": TINY_TRANSFORMER,
    "deformable_detr": {**TINY_TRANSFORMER, "num_feature_levels": 1},
    "rt_detr_v2": {n: v for n, v in TINY_REAL_TIME.items() if n != "depth_mult"},
    "d_fine": TINY_REAL_TIME,
    "deimv2": TINY_REAL_TIME,
    "maskformer": {
        **{n: v for n, v in TINY_TRANSFORMER.items() if "encoder" not in n},
        "fpn_feature_size": 32,
        "mask_feature_size": 16,
    },
    "mask2former": {
        **{"encoder_layers": 1, "decoder_layers": 3, "hidden_dim": 32, "feature_size": 32},
        **{"encoder_feedforward_dim": 32, "dim_feedforward": 32, "num_attention_heads": 4},
        **{"num_queries": 6, "mask_feature_size": 16},
    },
    "pmd": {"num_queries": 6, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "mlp_ratio": 1},
    "linear": {},
}
"""head_args of heads that take seconds"""
MASK_HEADS = ["maskformer", "mask2former", "pmd"]
REAL_TIME = ["rt_detr_v2", "d_fine", "deimv2"]
"""Heads with noisy queries and convolutional encoders"""
OWN_CODE = ["pmd", "linear"]
"""Heads whose export carries code"""


def some(names, fast):
    """Parameters of a test: those of `fast`, and the others for the slow tests."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


BOX_HEADS = [head for head in TINY_HEAD if head not in [*MASK_HEADS, "linear"]]

BOX_VARIANTS = {
    **{head: (head, {}) for head in BOX_HEADS},
    "deformable_detr_two_stage": (
        "deformable_detr",
        {"two_stage": True, "two_stage_num_proposals": 6},
    ),
    "deformable_detr_plain": ("deformable_detr", {"with_box_refine": False}),
}
SET_VARIANTS = {name: value for name, value in BOX_VARIANTS.items() if name not in REAL_TIME}
"""Heads with the losses of DETR"""
REGION_VARIANTS = {"linear": ("linear", {}), **{f"{h}_semantic": (h, {}) for h in MASK_HEADS}}
WHOLE_HEADS = ["rf_detr", "rf_detr_seg"]
"""Heads with a backbone of their own: the arguments are those of their donors"""
BOX_VARIANTS["rf_detr"] = ("rf_detr", {})
VARIANTS = {**BOX_VARIANTS, **{head: (head, {}) for head in [*MASK_HEADS, "rf_detr_seg", "linear"]}}
"""(head, further head_args) by name"""

FOUR_IMAGES = {
    "uneven": [0, 0, 1, 8],
    "full": [6, 6, 6, 6],
    "even": [2, 2, 2, 2],
    "empty": [0, 0, 0, 0],
}
"""Boxes of four images; the tiny heads have 6 queries"""


def task_of(variant: str) -> str:
    """The model.task of a variant."""
    if variant in REGION_VARIANTS:
        return "semantic_segmentation"
    return "instance_segmentation" if variant in [*MASK_HEADS, "rf_detr_seg"] else "detection"


def tiny_detector(folder: Path, variant: str):
    """A detector of three classes on a tiny backbone written to `folder`, always the same."""
    from data.taxonomy import Taxonomy
    from model.build import build_model
    from settings.keys import ModelConfig

    head, arguments = {**VARIANTS, **REGION_VARIANTS}[variant]
    if head in WHOLE_HEADS:
        own = str(own_donor(folder, head))
        cfg = ModelConfig(task_of(variant), backbone=None, head=head, init_from=own)
    else:
        if not folder.exists():
            save_backbone(folder)
        head_args = {**TINY_HEAD[head], **arguments}
        cfg = ModelConfig(task_of(variant), str(folder), head=head, head_args=head_args)
    torch.manual_seed(0)
    return build_model(cfg, Taxonomy(("a", "b", "c"), (0, 1, 2)))


def own_donor(backbone: Path, head: str) -> Path:
    """A whole detector beside the folder of a backbone, for a head that has one of its own."""
    from donors import write_donor

    folder = backbone.with_name(f"{head} donor")
    return folder if folder.exists() else write_donor(folder, head)


def make_batch(numbers: Sequence[int], seed: int = 1, num_classes: int = 3):
    """Random images with `numbers` random boxes each, half of them padded."""
    from data.batch import Batch
    from data.objects import Objects

    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (len(numbers), 3, 64, 96), generator=generator)
    mask = torch.ones(len(numbers), 64, 96, dtype=torch.bool)
    mask[::2, 48:] = False
    mask[3:, :, 64:] = False
    tables = []
    for num in numbers:
        centres = torch.rand(num, 2, generator=generator) * 0.6 + 0.2
        sides = torch.rand(num, 2, generator=generator) * 0.3 + 0.05
        classes = torch.randint(0, num_classes, (num,), generator=generator)
        tables.append(Objects(torch.cat([centres, sides], 1).numpy(), classes.numpy()))
    objects = Objects.of_images(tables).each(torch.from_numpy)
    objects = dataclasses.replace(objects, boxes=objects.boxes.float())
    masks = torch.randint(0, 17, (len(objects), 16, 24), generator=generator).byte()
    for row, (x, y, w, h) in enumerate((objects.boxes * torch.tensor([24, 16, 24, 16])).tolist()):
        inside = torch.zeros(16, 24, dtype=torch.bool)
        inside[int(y - h / 2) : int(y + h / 2) + 1, int(x - w / 2) : int(x + w / 2) + 1] = True
        masks[row, ~inside] = 0
    objects = dataclasses.replace(objects, masks=masks)
    names = list(range(len(numbers)))
    sizes = [(64, 96)] * len(numbers)
    batch = Batch(pixels.byte(), mask, objects, list(numbers), names, names, sizes)
    batch.noise_keys = [1000 + name for name in names]
    batch.ignored = torch.zeros(len(numbers), 16, 24, dtype=torch.uint8)
    batch.ignored[-1, :3, :5] = 7
    return batch


def part_of(batch, rows: slice):
    """The micro-batch of some of a batch's images."""
    from data.batch import Batch
    from data.objects import Objects

    chosen = range(len(batch.num_objects))[rows]
    objects = Objects.of_images(
        [batch.objects.of_image(r).each(torch.Tensor.numpy) for r in chosen]
    )
    lists = ("num_objects", "image_ids", "indices", "orig_sizes")
    return Batch(
        batch.pixel_values[rows],
        batch.pixel_mask[rows],
        objects.each(torch.from_numpy),
        *(getattr(batch, name)[rows] for name in lists),
        ignored=batch.ignored[rows],
        noise_keys=batch.noise_keys[rows],
    )


def losses_of(trainable, batch, step_counts=None):
    """Losses of a batch; without counts as if it were the whole step."""
    return trainable(batch, trainable.counts(batch).alone if step_counts is None else step_counts)


def four_images(case: str):
    """The batch of a case of FOUR_IMAGES, with weights of classes if that ends its name."""
    batch = make_batch(FOUR_IMAGES[case.removesuffix(WEIGHTED)])
    return with_weights(batch) if case.endswith(WEIGHTED) else batch


def tiny_run(tmp_path: Path, variant: str = "deformable_detr", **keys: object) -> list[str]:
    """Command line of a run of seconds on a COCO set in tmp_path; `section__key=value` changes it."""
    data = tmp_path / "data"
    if not data.exists():
        write_coco(data, 8)
        write_coco(data, 5, "val", seed=1)
    backbone = tmp_path / "backbone"
    if not backbone.exists():
        save_backbone(backbone)
    head, arguments = {**VARIANTS, **REGION_VARIANTS}[variant]
    values: dict[str, object] = {
        "run__output_dir": tmp_path / "run",
        "run__tracker": "none",
        "run__pictures": False,  # seconds of charts that most tests do not look at
        "run__log_every": 1,
        "run__log_image_ids": True,
        "data__source": "coco",
        "data__path": data,
        "data__val_split": "val",
        "data__image_size__longest": 64,
        "data__num_workers": 0,
        "model__backbone": backbone,
        "model__task": task_of(variant),
        "model__head": head,
        "model__head_args": json.dumps({**TINY_HEAD.get(head, {}), **arguments}),
        "optim__warmup_steps": 1,
        "train__steps": 3,
        "train__global_batch_size": 4,
    }
    if head in WHOLE_HEADS:
        values |= {"model__backbone": "null", "model__init_from": own_donor(backbone, head)}
    values.update(keys)
    empty = tmp_path / "empty.yaml"
    empty.write_text("{}\n")
    arguments = ["--config", str(empty)]
    for key, value in values.items():
        arguments += [f"--{key.replace('__', '.')}", str(value)]
    return arguments


def launch(
    arguments: Sequence[str],
    processes: int = 1,
    script: str = "train_accelerate.py",
    module: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository in real processes (torchrun and gloo for more than one)."""
    launcher = [sys.executable]
    if processes > 1:
        # `accelerate launch --cpu --num_processes 2` runs one process, silently.
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", str(processes)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "HF_HUB_OFFLINE": "1",
    }
    command = [*launcher, *(["-m"] if module else [])]
    return subprocess.run(
        [*command, script, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def metrics_lines(run: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
