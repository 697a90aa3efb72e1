"""Pretrain the small ConvNeXt that ships in `street/backbone`, on procedural scenes.

    python -m street.pretraining --out street/backbone

Three dense tasks are learned together, read from the stages by single linear layers that are then
thrown away: the part of the scene under each 4 x 4 pixel square (all stages); plate and car
objectness with box edges (stage 3); the way to the nearest plate from everywhere (stage 3).
Stage 3 is read as a DETR head reads it: 1 x 1 convolution and GroupNorm over a padded canvas.

Scenes have seeds from `PRETRAINING_SEED_START` upwards, which no dataset uses. Each is drawn
once. The run continues from `<out>.checkpoint.pt` if that exists and deletes it when done.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import DINOv3ConvNextBackbone, DINOv3ConvNextConfig

from model.normalization import IMAGENET_MEAN, IMAGENET_STD
from street.paint import PART_NAMES
from street.scenes import PRETRAINING_SEED_START, render_scene

CELL_PX = 16  # stride of stage 3
PART_CELL_PX = 4  # stride of stage 1, at which parts are predicted
IGNORED_PART = 255
BATCH_SIZE = 16
GROUP_BATCHES = 4  # batches drawn together and sorted by height, so that canvases differ


class SceneBatches(Dataset):
    """Item g is a list of `GROUP_BATCHES` padded batches, a pure function of (seed, g)."""

    def __init__(self, seed: int, num_groups: int):
        self.seed, self.num_groups = seed, num_groups

    def __len__(self) -> int:
        return self.num_groups

    def __getitem__(self, group: int) -> list[dict[str, Tensor]]:
        rng = np.random.default_rng([self.seed, group, 1])
        size = BATCH_SIZE * GROUP_BATCHES
        samples = [_augmented(rng, self.seed, group * size + offset) for offset in range(size)]
        samples.sort(key=lambda sample: sample[0].shape[0] + rng.normal(0, 4))
        starts = rng.permutation(GROUP_BATCHES) * BATCH_SIZE
        return [_collate(samples[start : start + BATCH_SIZE]) for start in starts]


def _augmented(rng: np.random.Generator, seed: int, index: int):
    """Image [H, W, 3], parts [H, W], plate and car boxes xyxy [n, 4] of one augmented scene."""
    scene = render_scene(seed, index)
    image, parts = scene.image, scene.parts
    height, width = parts.shape
    plates, cars = (
        np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        for boxes in (scene.plate_boxes, scene.car_boxes)
    )
    if rng.random() < 0.5:
        image, parts = image[:, ::-1], parts[:, ::-1]
        plates, cars = (
            np.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], axis=1)
            for b in (plates, cars)
        )
    if rng.random() < 0.5:
        linear, offset = _random_affine(rng, height, width)
        inverse = np.linalg.inv(linear)
        rows = np.concatenate([inverse, -(inverse @ offset)[:, None]], axis=1).flatten().tolist()
        size, affine = (width, height), Image.Transform.AFFINE
        image = np.asarray(
            Image.fromarray(image).transform(size, affine, rows, Image.Resampling.BILINEAR)
        )
        parts = np.asarray(Image.fromarray(parts).transform(size, affine, rows, fillcolor=255))
        plates, cars = (_moved(b, linear, offset, height, width) for b in (plates, cars))
    return image, parts, plates, cars


def _random_affine(rng: np.random.Generator, height: int, width: int):
    """Rotation and shear of up to 5 degrees, shift of up to 5 %, scale of up to 10 %."""
    angle, shear_x, shear_y = np.radians(rng.uniform(-5, 5, 3))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shear = np.array([[1, math.tan(shear_x)], [math.tan(shear_y), 1]])
    linear = turn @ shear * rng.uniform(0.9, 1.1)
    centre, shift = np.array([width, height]) / 2, rng.uniform(-0.05, 0.05, 2) * (width, height)
    return linear, centre + shift - linear @ centre


def _moved(boxes: np.ndarray, linear: np.ndarray, offset: np.ndarray, height: int, width: int):
    """Boxes around the moved corners of xyxy `boxes` [n, 4], clipped; half-lost ones are left out."""
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ linear.T + offset
    moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    clipped = moved.clip(0, [width, height, width, height])
    return clipped[_area(clipped) > 0.5 * _area(moved)]


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _collate(samples) -> dict[str, Tensor]:
    """Padded batch; `heat`, `edges` are [B, 2, h, w] and [B, 2, 4, h, w] for plates and cars."""
    height = max(sample[0].shape[0] for sample in samples)
    width = max(sample[0].shape[1] for sample in samples)
    shape = (len(samples), height, width)
    cells = (height // CELL_PX, width // CELL_PX)
    images = np.zeros((*shape, 3), dtype=np.uint8)
    parts = np.full(shape, IGNORED_PART, dtype=np.uint8)
    valid = np.zeros(shape, dtype=bool)
    heat = np.zeros((len(samples), 2, *cells), dtype=np.float32)
    edges = np.zeros((len(samples), 2, 4, *cells), dtype=np.float32)
    for row, (image, image_parts, plates, cars) in enumerate(samples):
        inside = (row, slice(image.shape[0]), slice(image.shape[1]))
        images[inside], parts[inside], valid[inside] = image, image_parts, True
        for kind, boxes in enumerate((plates, cars)):
            heat[row, kind], edges[row, kind] = _box_targets(boxes, *cells)
    middle = PART_CELL_PX // 2
    arrays = {
        "images": images.transpose(0, 3, 1, 2).copy(),
        "valid": valid[:, None],
        "parts": parts[:, middle::PART_CELL_PX, middle::PART_CELL_PX].astype(np.int64),
        "heat": heat,
        "edges": edges,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _box_targets(boxes: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Heat [h, w], 1 at box centres, and edges [4, h, w] of the box that is hottest at each cell.

    Edges are the distances from the cell's centre to left, top, right and bottom, in cells; the
    centre of the box is thus known from every cell of the image.
    """
    heat = np.full((rows, columns), -np.inf, dtype=np.float32)
    edges = np.zeros((4, rows, columns), dtype=np.float32)
    y, x = np.mgrid[:rows, :columns] + 0.5
    for left, top, right, bottom in boxes / CELL_PX:
        spread_x, spread_y = max(0.6, 0.25 * (right - left)), max(0.6, 0.25 * (bottom - top))
        centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
        distance = ((x - centre_x) / spread_x) ** 2 + ((y - centre_y) / spread_y) ** 2
        nearest = distance.min()
        box_heat = np.exp(-0.5 * (distance - nearest)) - 1e-3 * distance
        hotter = box_heat > heat
        heat = np.where(hotter, box_heat, heat)
        box_edges = np.stack([x - left, y - top, right - x, bottom - y])
        edges = np.where(hotter, box_edges, edges)
    return heat.clip(0, 1), edges


class DenseReaders(nn.Module):
    """The linear layers that read the stages during pretraining, not kept afterwards."""

    def __init__(self, hidden_sizes: list[int], width: int = 128):
        super().__init__()
        self.neck = nn.Sequential(nn.Conv2d(hidden_sizes[2], width, 1), nn.GroupNorm(32, width))
        self.parts = nn.ModuleList(
            nn.Conv2d(channels, len(PART_NAMES) * 4**stage, 1)
            for stage, channels in enumerate([*hidden_sizes[:2], width])
        )
        self.boxes = nn.Conv2d(width, 2 * (1 + 4 + 2), 1)
        with torch.no_grad():
            self.boxes.bias[::7] = -3.0  # type: ignore[index]  # most cells hold no box centre

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """Parts of each stage [B, parts, H/4, W/4]; heat [B, 2, h, w]; edges [B, 2, 4, h, w] >= 0;
        ways to the nearest box centre [B, 2, 2, h, w]."""
        maps = (*maps[:2], self.neck(maps[2]))
        parts = [
            F.pixel_shuffle(reader(features), 2**stage)
            for stage, (reader, features) in enumerate(zip(self.parts, maps, strict=True))
        ]
        boxes = self.boxes(maps[2]).unflatten(1, (2, 7))
        return parts, boxes[:, :, 0], F.softplus(boxes[:, :, 1:5]), boxes[:, :, 5:]


def normalized(images: Tensor, valid: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """uint8 [B, 3, H, W] to float, ImageNet-normalised, zero where padded."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images / 255 * gain).clamp(0, 1) - mean) / std * valid


def pretraining_loss(outputs, batch: dict[str, Tensor], parts_weight: float) -> dict[str, Tensor]:
    """The weighted terms; their sum is what is minimised."""
    parts, heat, edges, ways = outputs
    part_weights = torch.ones(len(PART_NAMES))
    part_weights[[0, 1, -1]] = torch.tensor([0.5, 0.5, 4.0])
    terms = [F.cross_entropy(p, batch["parts"], part_weights, ignore_index=255) for p in parts]
    target_heat, target_edges = batch["heat"], batch["edges"]
    has_box = target_edges.abs().sum(dim=2, keepdim=True) > 0
    error = (heat.sigmoid() - target_heat).abs().detach() ** 2
    focal = F.binary_cross_entropy_with_logits(heat, target_heat, reduction="none") * error
    near = (target_heat * (target_heat > 0.3))[:, :, None]
    edge_error = F.smooth_l1_loss(edges, target_edges.clamp(min=0), beta=0.1, reduction="none")
    overlap = _edge_iou(edges, target_edges.clamp(min=0))
    target_ways = (target_edges[:, :, 2:] - target_edges[:, :, :2]) / 2
    way_error = F.smooth_l1_loss(ways, target_ways, beta=0.25, reduction="none")
    kind_weight = torch.tensor([1.0, 0.4]).view(1, 2, 1, 1)
    num_near = near.sum().clamp(min=1)
    return {
        "parts": parts_weight * (0.3 * terms[0] + 0.3 * terms[1] + terms[2]),
        "heat": 4 * (focal * kind_weight).sum() / num_near,
        "edges": (edge_error.mean(dim=2, keepdim=True) * near).sum() / num_near,
        "iou": ((1 - overlap) * near[:, :, 0] * kind_weight).sum() / num_near,
        "ways": 0.2 * (way_error * has_box).sum() / has_box.sum().clamp(min=1),
    }


def _edge_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU [B, 2, h, w] of boxes given by their edge distances from the same cell centres."""
    shared = torch.minimum(first, second)
    overlap = (shared[:, :, 0] + shared[:, :, 2]) * (shared[:, :, 1] + shared[:, :, 3])
    areas = [(e[:, :, 0] + e[:, :, 2]) * (e[:, :, 1] + e[:, :, 3]) for e in (first, second)]
    return overlap / (areas[0] + areas[1] - overlap).clamp(min=1e-6)


@torch.no_grad()
def held_out_score(backbone: nn.Module, readers: nn.Module, seed: int) -> dict[str, float]:
    """Part accuracy, and share of plates with heat > 0.5 and IoU > 0.5 at their centre cell."""
    correct = counted = found = plates = 0
    for batch in SceneBatches(seed, 1)[0]:
        maps = backbone(normalized(batch["images"], batch["valid"])).feature_maps
        parts, heat, edges, _ = readers(maps)
        labelled = batch["parts"] != IGNORED_PART
        correct += int((parts[-1].argmax(1) == batch["parts"])[labelled].sum())
        counted += int(labelled.sum())
        peak = batch["heat"][:, 0] > 0.99
        good = (heat[:, 0].sigmoid() > 0.5) & (_edge_iou(edges, batch["edges"])[:, 0] > 0.5)
        found, plates = found + int(good[peak].sum()), plates + int(peak.sum())
    return {"part_accuracy": correct / counted, "plate_recall": found / plates}


def build_backbone() -> DINOv3ConvNextBackbone:
    """Three stages (strides 4, 8, 16) with Xavier weights."""
    config = DINOv3ConvNextConfig(
        hidden_sizes=[32, 64, 160],
        depths=[1, 1, 4],
        layer_scale_init_value=0.5,
        image_size=192,
        out_features=["stage1", "stage2", "stage3"],  # type: ignore[call-arg]
    )
    backbone = DINOv3ConvNextBackbone(config)
    for module in backbone.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    return backbone


def pretrain(args: argparse.Namespace, checkpoint: Path) -> tuple[DINOv3ConvNextBackbone, dict]:
    """Train for `args.steps`, from the checkpoint if there is one; returns backbone and report."""
    torch.manual_seed(args.seed)
    backbone = build_backbone()
    readers = DenseReaders(list(backbone.config.hidden_sizes or ()))
    trained = nn.ModuleDict({"backbone": backbone, "readers": readers})
    matrices = [p for p in trained.parameters() if p.ndim > 1]
    vectors = [p for p in trained.parameters() if p.ndim <= 1]
    groups: list[Any] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=0.02)
    step, cpu_s = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        step, cpu_s = state["step"], state["cpu_s"]
    num_groups = args.steps // GROUP_BATCHES
    order = range(step // GROUP_BATCHES, num_groups)
    loader = DataLoader(
        SceneBatches(args.seed, num_groups), None, sampler=order, num_workers=args.num_workers
    )
    started, scores = time.process_time() - cpu_s, {}
    for batches in loader:
        for batch in batches:
            terms = _step(trained, optimizer, batch, step, args)
            step += 1
        if step % 40 == 0:
            shown = " ".join(f"{name} {term.item():.3f}" for name, term in terms.items())
            cpu_s = time.process_time() - started
            print(f"step {step}/{args.steps} {shown} cpu_min {cpu_s / 60:.1f}", flush=True)
        if step % args.checkpoint_every == 0 or step >= num_groups * GROUP_BATCHES:
            scores = held_out_score(backbone, readers, args.seed + 1)
            cpu_s = time.process_time() - started
            print(f"step {step} held out: {scores}", flush=True)
            state = {"trained": trained.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step, "cpu_s": cpu_s}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    return backbone, {"steps": step, "cpu_minutes": round(cpu_s / 60, 1), **scores}


def _step(trained: nn.ModuleDict, optimizer, batch: dict[str, Tensor], step: int, args):
    """One optimizer step: linear warm-up, then cosine to zero; parts count less in the second half."""
    progress = step / args.steps
    scale = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
        group["lr"] = args.lr * scale
    generator = torch.Generator().manual_seed(args.seed + step)
    gain = 0.8 + 0.4 * torch.rand(len(batch["images"]), 1, 1, 1, generator=generator)
    images = normalized(batch["images"], batch["valid"], gain)
    outputs = trained["readers"](trained["backbone"](images).feature_maps)
    terms = pretraining_loss(outputs, batch, parts_weight=1.0 if progress < 0.35 else 0.4)
    optimizer.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
    optimizer.step()
    return terms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the backbone")
    parser.add_argument("--steps", type=int, default=3200, help="optimizer steps of 16 scenes")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=PRETRAINING_SEED_START, help="of the scenes")
    parser.add_argument("--num_workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--num_threads", type=int, default=1, help="threads of the training")
    parser.add_argument("--checkpoint_every", type=int, default=200, help="steps")
    args = parser.parse_args()
    if args.seed < PRETRAINING_SEED_START:
        parser.error(
            f"--seed is {args.seed}; seeds below {PRETRAINING_SEED_START} are for datasets"
        )
    if args.steps < GROUP_BATCHES or args.steps % GROUP_BATCHES:
        parser.error(f"--steps is {args.steps}; use a multiple of {GROUP_BATCHES}")
    torch.set_num_threads(args.num_threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out.with_name(args.out.name + ".checkpoint.pt")
    backbone, report = pretrain(args, checkpoint)
    backbone.save_pretrained(args.out)
    preprocessor = {
        "image_processor_type": "DetrImageProcessorPil",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
    (args.out / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    report = {"seed": args.seed, "lr": args.lr, "batch_size": BATCH_SIZE, **report}
    (args.out / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")
    checkpoint.unlink()
    print(f"wrote {args.out}: {report}")


if __name__ == "__main__":
    main()
