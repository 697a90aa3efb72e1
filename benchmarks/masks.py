"""Masks: the data path, the criterion and the evaluation beside what others do.

`python -m benchmarks.masks [--repeats 5]`: medians of alternating repetitions in one process, and their
ratio. Images of 512 x 512 px with 5, 50 and 150 objects on a grid; a photo of 683 x 512 px with a label map.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import torch
from PIL import Image
from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation
from transformers.models.maskformer.configuration_maskformer import MaskFormerDetrConfig
from transformers.models.maskformer.image_processing_pil_maskformer import (
    MaskFormerImageProcessorPil,
)

from benchmarks.conditions import conditions
from data.batch import Batch
from data.build import build_data
from data.feed.collate import collate
from data.feed.loader import TrainDataset
from data.feed.sampler import SampleRef
from data.feed.transforms import Augment
from data.findings import Findings
from data.masks import CELL_PIXELS, Planes, Polygons, encode_all, mask_column
from data.objects import Objects
from data.record import Record
from data.schema import Split
from data.sources.label_pictures import LabelRules, dense_record
from data.table import RecordTable
from data.taxonomy import Taxonomy
from evaluation.coco import coco_metrics
from evaluation.predictions import Predictions
from model.heads.maskformer import criterion
from model.losses.mask_criterion import MaskOutputs
from settings.keys import DataConfig, ImageSizeConfig

SIDE = 512
LABEL_MAP_SIZE = (512, 683)
"""(height, width), px"""
NUM_CLASSES = 15
TURN = {"rotate": (-5, 5), "shear": (-5, 5), "p": 1.0}
AFFINE = {**TURN, "rotate_method": "ellipse"}


def median_ms(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """CPU time of each way in turn, `repeats` times after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def say(what: str, medians: Mapping[str, float]) -> None:
    """One row of the table; ratios to the first way."""
    (_, ours), *others = medians.items()
    text = "; ".join(f"{name} {value:.1f} ({value / ours:.1f} x)" for name, value in others)
    print(f"| {what} | {ours:.1f} | {text} |")


def objects_of(num: int) -> Objects:
    """Octagons on a grid, as polygons."""
    rng = np.random.default_rng(0)
    across = int(np.ceil(np.sqrt(num)))
    step = SIDE / across
    turn = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    masks = []
    for place in range(num):
        y, x = np.divmod(place, across)
        radius = step * rng.uniform(0.25, 0.48)
        centre = np.array([x + 0.5, y + 0.5]) * step
        ring = centre + radius * np.column_stack([np.cos(turn), np.sin(turn)])
        masks.append(Polygons((SIDE, SIDE), (ring,)))
    boxes = np.tile([0.0, 0, SIDE, SIDE], (num, 1))
    return Objects(boxes, np.zeros(num, np.int64), masks=mask_column(masks))


def data_path(num: int, repeats: int) -> None:
    """From polygons to what a loss compares with: ours, albumentations' list of masks, transformers'."""
    objects = objects_of(num)
    bare = Objects(objects.boxes, objects.classes)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    size = (SIDE, SIDE)
    ours = Augment([{"Affine": {**AFFINE, "rotate": [-5, 5], "shear": [-5, 5]}}])
    theirs = A.Compose([A.Affine(**AFFINE)])
    processor = MaskFormerImageProcessorPil(size={"height": SIDE, "width": SIDE})

    def our_way() -> np.ndarray:
        planes = Planes.drawn(objects, size)
        _, left, moved = ours(image, bare, (0, 0, 0), None, planes)
        assert moved is not None
        return moved.cells(len(left), size)

    def whole_planes() -> list[np.ndarray]:
        ids = Planes.drawn(objects, size).ids
        return [(ids == number).any(axis=0).astype(np.uint8) for number in range(1, num + 1)]

    def with_lists() -> Any:
        return theirs(image=image, masks=whole_planes())

    def with_processor() -> Any:
        ids = Planes.drawn(objects, size).ids[0].astype(np.int64)
        classes = dict.fromkeys(range(num + 1), 0)
        return processor.preprocess([image], [ids], classes, return_tensors="pt", ignore_index=0)

    ways = {"ours": our_way, "albumentations with a list of masks": with_lists}
    ways["transformers' processor, no augmentation"] = with_processor
    say(f"data path, {num} objects, ms an image", median_ms(ways, repeats))


def write_label_map(folder: Path) -> DataConfig:
    """Two equal photos in JPEG, each with a label map in PNG: 60 cells around random points, of 15 classes."""
    rng = np.random.default_rng(0)
    height, width = LABEL_MAP_SIZE
    points = rng.uniform(size=(60, 2)) * LABEL_MAP_SIZE
    pixels = np.moveaxis(np.mgrid[:height, :width], 0, -1)[:, :, None]
    nearest = np.square(pixels - points).sum(-1).argmin(-1)
    labels = (nearest % NUM_CLASSES).astype(np.uint8)
    colours = rng.integers(0, 200, (NUM_CLASSES, 3))
    photo = (colours[labels] + rng.integers(0, 56, (height, width, 3))).astype(np.uint8)
    for place, picture in (("images", photo), ("annotations", labels)):
        for split in ("train", "val"):
            (folder / place / split).mkdir(parents=True)
            suffix = "jpg" if place == "images" else "png"
            Image.fromarray(picture).save(folder / place / split / f"a.{suffix}", quality=90)
    return DataConfig(
        source="label_maps",
        path=str(folder),
        val_split="val",
        labels=[str(kind) for kind in range(NUM_CLASSES)],
        image_size=ImageSizeConfig(SIDE, fit="stretch"),
        augment=[{"Affine": TURN}],
    )


def label_map_path(folder: Path, repeats: int) -> None:
    """From the files of a photo and its label map to what model and loss get.

    Ours keeps label maps as run lengths, which are made once at the start; the others read theirs every time.
    Normalising is left out of both: ours does it on the device.
    """
    cfg = write_label_map(folder)
    data = build_data(cfg, 0, labels="regions")
    dataset = TrainDataset(data.train, cfg, 0, "regions", data.taxonomy)
    photo, label_map = (folder / p for p in ("images/train/a.jpg", "annotations/train/a.png"))
    theirs = A.Compose([A.Affine(**TURN)])
    processor = MaskFormerImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, do_rescale=False, do_normalize=False
    )

    def feed() -> Batch:
        return collate([dataset[SampleRef(0, 0, (SIDE, SIDE))]])

    def read_and_feed() -> Batch:
        dense_record(
            0,
            "",
            photo,
            label_map,
            LabelRules.of(cfg, dict(enumerate(cfg.labels or []))),
            Findings(),
        )
        return feed()

    def their_way() -> Any:
        image, labels = np.array(Image.open(photo).convert("RGB")), np.array(Image.open(label_map))
        out = theirs(image=image, mask=labels)
        return processor.preprocess(
            [out["image"]], [out["mask"].astype(np.int64)], return_tensors="pt", ignore_index=255
        )

    own, other = feed(), their_way()
    assert own.num_objects == [len(other["class_labels"][0])] == [NUM_CLASSES]
    name = "albumentations with a mask, then transformers' processor"
    what = f"label map of {NUM_CLASSES} classes, {LABEL_MAP_SIZE[0]} x {LABEL_MAP_SIZE[1]}"
    for ending, way in (("read and fed", read_and_feed), ("fed, after the first time", feed)):
        say(f"{what}, {ending}, ms an image", median_ms({"ours": way, name: their_way}, repeats))


def criterion_of(num: int, repeats: int) -> None:
    """Forward and backward of matching and losses: 4 images, 3 layers, 100 queries, 128 x 128 masks."""
    layers, images, queries, side = 3, 4, 100, SIDE // 4
    decoder = MaskFormerDetrConfig(
        num_queries=queries, backbone_config={"model_type": "resnet"}, decoder_layers=layers
    )
    names = {i: str(i) for i in range(20)}
    config = MaskFormerConfig(
        backbone_config={"model_type": "resnet"}, decoder_config=decoder, id2label=names
    )
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(layers, images, queries, 21, generator=generator, requires_grad=True)
    embedded = torch.randn(layers, images, queries, 64, generator=generator, requires_grad=True)
    pixels = torch.randn(images, 64, side, side, generator=generator, requires_grad=True)
    cells = torch.from_numpy(Planes.drawn(objects_of(num), (SIDE, SIDE)).cells(num, (SIDE, SIDE)))
    cells = (cells > CELL_PIXELS // 2).byte() * CELL_PIXELS
    classes = torch.randint(0, 20, (num,), generator=generator)
    objects = Objects(
        boxes=torch.zeros(num * images, 4),
        classes=classes.repeat(images),
        image=torch.arange(images).repeat_interleave(num),
        masks=cells.repeat(images, 1, 1),
    )
    mask = torch.ones(images, SIDE, SIDE, dtype=torch.bool)
    batch = Batch(torch.zeros(images, 3, 1, 1), mask, objects, [num] * images)
    ours, theirs = criterion(config), MaskFormerForInstanceSegmentation(config).criterion

    def masks(layer: int, image: int, chosen: torch.Tensor | slice) -> torch.Tensor:
        own = embedded[layer, image, chosen]
        return (own @ pixels[image].flatten(1)).unflatten(1, (side, side))

    def our_way() -> None:
        ours(MaskOutputs(logits, masks), batch, ours.counts(batch).alone).total.backward()

    def their_way() -> None:
        maps = torch.einsum("lbqc,bchw->lbqhw", embedded, pixels)
        goals = [cells.float() / CELL_PIXELS] * images
        parts = [
            {"masks_queries_logits": m, "class_queries_logits": c}
            for m, c in zip(maps[:-1], logits[:-1], strict=True)
        ]
        losses = theirs(maps[-1], logits[-1], goals, [classes] * images, parts)
        torch.stack(list(losses.values())).sum().backward()

    ways = {"ours": our_way, "transformers": their_way}
    say(f"criterion, {num} objects an image, ms", median_ms(ways, repeats))


def evaluation(num_images: int) -> None:
    """Seconds and memory of mask AP at 100 masks an image of 480 x 640 px."""
    rng = np.random.default_rng(0)
    records, tables = [], []
    for index in range(num_images):
        corners = rng.integers(0, 400, (100, 2))
        planes = np.zeros((100, 480, 640), np.uint8)
        for plane, (y, x) in zip(planes, corners, strict=True):
            plane[y : y + rng.integers(8, 80), x : x + rng.integers(8, 200)] = 1
        boxes = np.concatenate([corners[:, ::-1], np.full((100, 2), 40)], 1).astype(float)
        found = mask_column(encode_all(planes))
        classes = rng.integers(0, 20, 100)
        image, scores = np.full(100, index), rng.uniform(size=100)
        tables.append(Objects(boxes, classes, image, scores=scores, masks=found))
        truth = tables[-1].take(slice(0, 12))
        truth = Objects(
            truth.boxes,
            truth.classes,
            areas=np.full(12, 1600.0),
            iscrowd=np.zeros(12, bool),
            masks=truth.masks,
        )
        records.append(Record(index, str(index), 640, 480, truth))
    predictions = Predictions(Objects.concat(tables))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    names = tuple(str(c) for c in range(20))
    metrics = coco_metrics(
        Split(RecordTable.of(records), [], {}), predictions, Taxonomy(names, tuple(range(20)))
    )
    seconds = time.perf_counter() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"\nmask and box AP of {num_images} images with 100 masks each: {seconds:.1f} s, {more:.0f} MB beside the "
        f"run lengths (AP {metrics['AP']:.3f})"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=1000, help="of the evaluation")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{conditions()}\n")
    print("| What | Ours | Others (ratio to ours) |\n|---|---|---|")
    for num in (5, 50, 150):
        data_path(num, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        label_map_path(Path(folder), 4 * args.repeats)
    for num in (5, 50, 100):
        criterion_of(num, args.repeats)
    evaluation(args.images)


if __name__ == "__main__":
    main()
