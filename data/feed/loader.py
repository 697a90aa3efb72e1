"""Datasets and DataLoaders: decode, resize, augment, collate, in worker processes."""

import itertools
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.batch import Batch, Sample
from data.canvas import CanvasRule, resized_size
from data.feed.collate import collate
from data.feed.sampler import SampleRef, StepSampler, evaluation_batches
from data.feed.transforms import MIN_VISIBILITY, Augment, resize
from data.images.decode import decode
from data.masks import CELL_PIXELS, Planes
from data.objects import Objects
from data.regions import partition
from data.schema import Split
from data.taxonomy import Taxonomy
from errors import UserError
from settings.keys import EVERY_PIXEL, DataConfig, ImageSizeConfig, Labels


def resized_sizes(split: Split, cfg: ImageSizeConfig) -> np.ndarray:
    """int64 [N, 2]: (height, width) of every image after resizing, known without decoding."""
    sizes = [resized_size(record.height, record.width, cfg) for record in split.records]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 4
"""Batches that each worker prepares ahead"""
LEAST_BYTES = 2_000_000
"""What workers need for their locks alone"""
FEW_DESCRIPTORS = 256
"""Files that a process has open beside its batches, with room to spare; each batch takes up to four"""
LEAST_DESCRIPTORS = 64
"""What a process and its workers need without any batch"""
BYTES_PER_PX = 4
"""Three of pixels, one of the mask"""
NOISE = 1
"""Tells the seed of a head's noise from that of the augmentation"""
TO_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that ask a run to stop"""
MAX_CANDIDATES = 64
"""Images that are tried for one place of a batch"""


class TrainDataset(Dataset):
    """Augmented samples; what item `ref` is depends on (seed, ref) and the files alone.

    An image that cannot be decoded is replaced by one from the same place of a later step, which
    every process can tell by itself.
    """

    def __init__(
        self,
        split: Split,
        cfg: DataConfig,
        seed: int,
        labels: Labels = "boxes",
        taxonomy: Taxonomy | None = None,
    ):
        """
        Args:
            taxonomy: where every pixel has a class.
        """
        self.split = split
        self.cfg = cfg
        self.seed = seed
        self.labels = labels
        self.background = None if taxonomy is None else taxonomy.background
        self.stuff = () if taxonomy is None else taxonomy.stuff
        self.every_pixel = labels in EVERY_PIXEL
        # A region of which a tenth is left is as good as a whole one.
        self.augment = Augment(cfg.augment, 0.0 if self.every_pixel else MIN_VISIBILITY)

    def __getitem__(self, ref: SampleRef) -> Sample:
        """
        Raises:
            UserError: if none of the images in question can be decoded.
        """
        bad: list[str] = []
        following = ((ref.index + step) % len(self.split) for step in range(1, len(self.split)))
        candidates = dict.fromkeys(itertools.chain((ref.index, *ref.spares), following))
        for index in itertools.islice(candidates, MAX_CANDIDATES):
            try:
                return replace(self._sample(index, ref), bad=tuple(bad))
            except UserError as error:
                bad.append(str(error))
        raise UserError("too many images in a row cannot be used: " + "; ".join(bad))

    def _sample(self, index: int, ref: SampleRef) -> Sample:
        sample = load_sample(self.split, index, self.cfg.image_size, draft=True)
        planned = sample.canvas
        objects = sample.objects
        planes = None
        if self.every_pixel:
            stuff = None if self.labels == "regions" else self.stuff
            planes, objects = partition(objects, planned, self.background, stuff)
        else:
            objects = objects.take(~objects.iscrowd)
        if self.labels == "masks":
            crowds = sample.objects.take(sample.objects.iscrowd)
            planes = Planes.drawn(objects, planned).ignoring(crowds)
            objects = replace(objects, masks=None)
        seed = (self.seed, ref.epoch, index)
        image, objects, planes = self.augment(sample.image, objects, seed, planned, planes)
        # A transform that crops or rotates by 90 degrees, or another image than the step was cut for
        room = (min(planned[0], ref.canvas[0]), min(planned[1], ref.canvas[1]))
        if image.shape[:2] != room:
            stretch = self.cfg.image_size.fit == "stretch"
            image, objects, planes = fit_into(image, objects, room, planes, stretch)
        if planes is not None and self.every_pixel:
            planes = planes.unlabelled_ignored()
        key = int(np.random.SeedSequence([*seed, NOISE]).generate_state(1, np.uint64)[0] >> 1)
        sample = replace(sample, image=image, objects=objects, planes=planes)
        return replace(sample, canvas=ref.canvas, noise_key=key)


class EvalDataset(Dataset):
    """Samples without augmentation, on the canvas of the exported image processor.

    An image whose pixels cannot be had is blank, and says so.
    """

    def __init__(self, split: Split, rule: CanvasRule):
        self.split = split
        self.rule = rule

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        canvas = self.rule.full
        try:
            sample = load_sample(self.split, index, self.rule.size)
        except UserError:
            record = self.split.records[index]
            size = (record.height, record.width)
            blank = np.zeros((*self.rule.resized(*size), 3), np.uint8)
            return Sample(blank, Objects.none(), record.image_id, index, size, canvas, missing=True)
        objects = replace(sample.objects, masks=None)  # of no use to `predict`
        image = resize(sample.image, sample.canvas)
        return replace(sample, image=image, objects=objects, canvas=canvas)


def load_sample(split: Split, index: int, size: ImageSizeConfig, draft: bool = False) -> Sample:
    """Decode one image, made smaller where it is larger than wanted.

    Args:
        draft: as `decode` has it.

    Returns: the sample with its objects, and its canvas, as the whole resize will have them.

    Raises:
        UserError: naming the file or row of an image that cannot be decoded.
    """
    record = split.records[index]
    planned = resized_size(record.height, record.width, size)
    own_size = (record.height, record.width)
    image = decode(split.images[index], record.where, planned, draft, own_size)
    objects = record.objects.scaled(planned[1] / record.width, planned[0] / record.height)
    return Sample(image, objects, record.image_id, index, own_size, planned)


def fit_into(
    image: np.ndarray,
    objects: Objects,
    size: tuple[int, int],
    planes: Planes | None = None,
    stretch: bool = False,
) -> tuple[np.ndarray, Objects, Planes | None]:
    """Scale an image, its objects and their masks to fit into `size` (height, width).

    Args:
        stretch: to fill it, whatever becomes of the aspect ratio.
    """
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    new = size if stretch else (max(1, int(height * scale)), max(1, int(width * scale)))
    objects = objects.scaled(new[1] / width, new[0] / height)
    if planes is not None:
        planes, objects = planes.resized(new).fit(objects)
    return resize(image, new), objects, planes


def train_loader(
    dataset: TrainDataset, sampler: StepSampler, pin: bool, through_pipe: bool = False
) -> DataLoader[Batch]:
    """Micro-batches of one rank, in the sampler's order."""
    return _loader(dataset, sampler, dataset.cfg.num_workers, pin, through_pipe)


def eval_loader(
    split: Split,
    rule: CanvasRule,
    batch_size: int,
    num_workers: int,
    pin: bool,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Batch]:
    """Every world-th batch of the validation split, beginning with batch `rank`."""
    batches = evaluation_batches(len(split), batch_size)[rank::world]
    short = workers_short(rule.full, batch_size, num_workers) is not None
    return _loader(EvalDataset(split, rule), batches, num_workers, pin, short)


def workers_short(
    canvas: tuple[int, int], batch_size: int, num_workers: int, masks: int = 0
) -> str | None:
    """What workers lack to pass batches on in shared memory, and what is done instead; None if nothing.

    A worker that runs out of shared memory or of file descriptors dies or waits for ever.

    Args:
        canvas: (height, width) of the largest batch, px. masks: most of an image, if masks are learnt.
    """
    if not num_workers:
        return None
    per_px = BYTES_PER_PX + ((masks + 1) / CELL_PIXELS if masks else 0)
    batch_bytes = batch_size * canvas[0] * canvas[1] * per_px
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = batch_bytes * (PREFETCHED * num_workers + 2) * ranks
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    descriptors, wanted = _descriptors(), FEW_DESCRIPTORS + 4 * PREFETCHED * num_workers
    if needed <= free and wanted <= descriptors:
        return None
    instead = "the main process makes them" if _workers_are_out() else "they come through pipes"
    if needed > free:
        lack = (
            f"{SHARED_MEMORY} has {free / 1e6:.1f} MB free, and batches on their way from {num_workers} "
            f"worker(s) may need {needed / 1e6:.0f} MB"
        )
        remedy = "give the container more by --shm-size"
    else:
        lack = (
            f"a process may open {descriptors} files, and batches on their way from {num_workers} "
            f"worker(s) may need {wanted}"
        )
        remedy = "raise `ulimit -n`"
    return f"{lack}: {instead}, which is slower ({remedy}, or lower data.num_workers)"


def _workers_are_out() -> bool:
    """Whether there is too little for any worker at all."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else LEAST_BYTES + 1
    return free <= LEAST_BYTES or _descriptors() < LEAST_DESCRIPTORS


def _descriptors() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _loader(
    dataset: Dataset, batches: object, num_workers: int, pin: bool, through_pipe: bool
) -> DataLoader[Batch]:
    if through_pipe and _workers_are_out():
        num_workers = 0
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=partial(collate, through_pipe=through_pipe),
        pin_memory=pin,
        worker_init_fn=start_worker,
        prefetch_factor=PREFETCHED if num_workers else None,
    )


@contextmanager
def batches_of(loader: DataLoader[Batch]) -> Iterator[Iterator[Batch]]:
    """The batches of a loader, and the end of its workers at the end of the block.

    Left to garbage collection they would outlive an error, whose traceback holds the iterator; and
    since they ignore SIGTERM, the process would wait for them for ever.
    """
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, TO_STOP
    )  # or one would end a worker that is starting
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield _alive(batches)
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]


def _alive(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same; where the queue breaks before torch sees that its worker is gone, the error says so too."""
    try:
        yield from batches
    except (ConnectionError, EOFError) as error:
        raise RuntimeError(f"DataLoader worker (pid unknown) is gone: {error!r}") from error


def start_worker(worker: int) -> None:
    """Settings of a worker process.

    Workers are the parallelism; threads inside them only fight. A signal that asks the run to stop
    often reaches the whole process group: whether to go on is for the main process to say, and a
    worker ends when that one shuts the loader down or is gone.
    """
    torch.set_num_threads(1)
    for number in TO_STOP:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, TO_STOP
    )  # what came since the start is ignored as well
