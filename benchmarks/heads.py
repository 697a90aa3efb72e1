"""What the heads for boxes cost at equal geometry: `python -m benchmarks.heads [--device cuda]`.

The same frozen backbone, canvas, batch, objects, width, queries and numbers of layers for each. A training step
is forward, losses, backward, clipping and AdamW; a prediction ends with boxes of the decoded images. Each head
has a process of its own, and these take turns. On a CPU seconds are CPU seconds of one thread, so that other
work on the machine does not count; on a GPU they are those of the clock.
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.conditions import conditions
from data.batch import Batch
from data.objects import Objects
from data.taxonomy import Taxonomy
from model.build import build_model
from settings.keys import ImageSizeConfig, ModelConfig, OptimConfig
from training.optim import build_optimizer

OBJECTS = 4
"""In each image, as many as in photos of streets"""
WIDTHS: dict[str, Any] = {
    **{"d_model": 128, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "dropout": 0.0},
    **{"encoder_layers": 1, "decoder_layers": 3, "num_queries": 100},
}
LEVELS = {"num_feature_levels": 3}
"""Two maps of the backbone, and one made by the head with twice the stride of the second"""
REAL_TIME = {**WIDTHS, **LEVELS, "encoder_hidden_dim": 128, "num_denoising": 100}
HEADS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "detr": ("detr", 1, WIDTHS),
    "conditional_detr": ("conditional_detr", 1, WIDTHS),
    "deformable_detr": ("deformable_detr", 2, {**WIDTHS, **LEVELS}),
    "rt_detr_v2": ("rt_detr_v2", 2, REAL_TIME),
    "d_fine": ("d_fine", 2, REAL_TIME),
    "deimv2": ("deimv2", 2, REAL_TIME),
    "deimv2 lite": (
        "deimv2",
        1,
        {**REAL_TIME, "encoder_type": "lite", "encoder_layers": 0, "num_feature_levels": 2},
    ),
}
"""Name: head, how many maps of the backbone it reads (the last ones), arguments"""


def make_batch(images: int, side: int, classes: int) -> Batch:
    """Random pixels with OBJECTS random boxes an image."""
    draw = torch.Generator().manual_seed(0)
    num = images * OBJECTS
    sides = torch.rand(num, 2, generator=draw) * 0.3 + 0.05
    centres = torch.rand(num, 2, generator=draw) * 0.6 + 0.2
    return Batch(
        torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=draw),
        torch.ones(images, side, side, dtype=torch.bool),
        Objects(
            torch.cat([centres, sides], 1),
            torch.randint(0, classes, (num,), generator=draw),
            torch.arange(images).repeat_interleave(OBJECTS),
        ),
        [OBJECTS] * images,
        orig_sizes=[(side, side)] * images,
        noise_keys=list(range(images)),
    )


class Head:
    """One detector with its optimizer on a device."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.device = torch.device(args.device)
        head, maps, head_args = HEADS[name]
        taxonomy = Taxonomy(
            tuple(f"class {c}" for c in range(args.classes)), tuple(range(args.classes))
        )
        cfg = ModelConfig(
            backbone=args.backbone,
            out_features=args.stages[-maps:],
            head=head,  # type: ignore[arg-type]
            head_args={**head_args, "num_queries": args.queries},
        )
        detector = build_model(cfg, taxonomy, ImageSizeConfig(args.side))
        self.trainable = detector.trainable.to(self.device)
        self.batch = make_batch(args.batch, args.side, args.classes).to(self.device)
        self.trainable.prepare([self.batch])
        self.optimizer = build_optimizer(detector.model, detector.backbone_module, OptimConfig())
        self.parameters = [p for p in self.trainable.parameters() if p.requires_grad]

    def train_step(self) -> None:
        """One whole optimizer step."""
        self.trainable.train()
        counts = self.trainable.counts(self.batch).alone
        self.trainable(self.batch, counts).total.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self) -> None:
        """Boxes of the batch."""
        self.trainable.eval()
        self.trainable.predict(self.batch, 100)

    def timed(self, what: str, times: int) -> float:
        """Seconds of one `train_step` or `predict`, mean of `times`."""
        cuda = self.device.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize()
        start = clock()
        for _ in range(times):
            getattr(self, what)()
        if cuda:
            torch.cuda.synchronize()
        return (clock() - start) / times

    def megabytes(self, before: float) -> float:
        """Most memory so far, MB: of the device, or of this process less `before`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resident() - before


def resident() -> float:
    """Most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(name: str, args: argparse.Namespace, pipe: Connection) -> None:
    """In a process of its own: build, then do what is asked for until None comes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = resident()
    head = Head(name, args)
    pipe.send(sum(p.numel() for p in head.parameters))
    while (asked := pipe.recv()) is not None:
        what, times = asked
        pipe.send((head.timed(what, times), head.megabytes(before)))


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Of each head: trained parameters; seconds and MB of each round of predictions and of steps."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in args.heads:
        pipes[name], other = spawn.Pipe()
        spawn.Process(target=serve, args=(name, args, other), daemon=True).start()
        other.close()
        found[name] = {"parameters": pipes[name].recv(), "predict": [], "train_step": []}
    # All predictions first: the most memory that a process has had never falls.
    for what in ("predict", "train_step"):
        for turn in range(args.repeats + 1):  # the first round allocates, and does not count
            for name, pipe in pipes.items():
                pipe.send((what, args.times))
                answer = pipe.recv()
                if turn:
                    found[name][what].append(answer)
    for pipe in pipes.values():
        pipe.send(None)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backbone", default="street/backbone")
    parser.add_argument("--stages", nargs="+", default=["stage2", "stage3"])
    parser.add_argument("--side", type=int, default=320, help="of the canvas, px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--times", type=int, default=2, help="steps or predictions in a round")
    args = parser.parse_args()
    found = measure(args)
    print(
        f"{conditions()}; {args.device}, {args.side} px, batch {args.batch}, {args.queries} queries, "
        f"medians of {args.repeats} rounds\n"
    )
    print(
        "| Head | Trained parameters | Training, images/s | Ratio | Memory, MB | Prediction, images/s | Ratio "
        "| Memory, MB |\n|---|---|---|---|---|---|---|---|"
    )
    speeds = {
        name: [
            args.batch / statistics.median(t for t, _ in rounds[k])
            for k in ("train_step", "predict")
        ]
        for name, rounds in found.items()
    }
    first = speeds[args.heads[0]]
    for name, rounds in found.items():
        memory = [max(m for _, m in rounds[k]) for k in ("train_step", "predict")]
        cells = [
            f"{speed:.1f} | {speed / of_first:.2f} | {mb:.0f}"
            for speed, of_first, mb in zip(speeds[name], first, memory, strict=True)
        ]
        print(f"| {name} | {rounds['parameters']:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
