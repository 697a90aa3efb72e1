"""Datasets and DataLoaders: decode, resize, augment, collate, in worker processes."""

import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.batch import Batch, Sample
from data.canvas import CanvasRule, resized_size
from data.feed.allocator import give_back_large_blocks
from data.feed.collate import collate
from data.feed.features import FeatureStore
from data.feed.sampler import SampleRef, StepSampler, evaluation_batches
from data.feed.transforms import MIN_VISIBILITY, Augment, resize
from data.feed.worker_memory import PREFETCHED, workers_are_out, workers_short
from data.images.decode import decode
from data.masks import Planes
from data.objects import Objects
from data.regions import partition
from data.schema import Split
from data.taxonomy import Taxonomy
from errors import UserError
from settings.keys import DataConfig, ImageSizeConfig
from settings.tasks import EVERY_PIXEL, Labels

T = TypeVar("T")
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
        features: FeatureStore | None = None,
        views: int | None = None,
        class_weights: np.ndarray | None = None,
    ):
        """
        Args:
            taxonomy: where every pixel has a class.
            features: stored maps, in the place of pixels.
            views: epoch e has the augmentation of epoch e mod this; default: each epoch its own.
            class_weights: float32 [C], which the samples' objects get.
        """
        self.split = split
        self.features = features
        self.views = views
        self.class_weights = class_weights
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
        for index in itertools.islice(self._candidates(ref), MAX_CANDIDATES):
            try:
                return replace(self._sample(index, ref), bad=tuple(bad))
            except UserError as error:
                bad.append(str(error))
        raise UserError("too many images in a row cannot be used: " + "; ".join(bad))

    def _candidates(self, ref: SampleRef) -> Iterator[int]:
        """Images for this place, each once, in turn: all of the split, of which none is made before it is wanted."""
        first = dict.fromkeys((ref.index, *ref.spares))
        yield from first
        num = len(self.split)
        following = ((ref.index + step) % num for step in range(1, num))
        yield from (index for index in following if index not in first)

    def _sample(self, index: int, ref: SampleRef) -> Sample:
        view = ref.epoch if self.views is None else (ref.epoch + ref.repeat) % self.views
        if self.features is None:
            return self.view(index, view, ref)
        if reason := self.features.failure(index, view):
            raise UserError(reason)
        sample = self.view(index, view, ref, blank=not ref.shown)
        return replace(sample, maps=self.features.maps(index, view))

    def view(self, index: int, view: int, ref: SampleRef, blank: bool = False) -> Sample:
        """One image with the augmentation of epoch `view`, as the step of `ref` needs it.

        Args:
            blank: without its pixels; all else is as it would be with them.

        Raises:
            UserError: if it cannot be decoded.
        """
        load = blank_sample if blank else partial(load_sample, draft=True)
        sample = load(self.split, index, self.cfg.image_size)
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
        again = (ref.repeat,) if ref.repeat else ()
        seed = (self.seed, view, index, *(again if self.views is None else ()))
        image, objects, planes = self.augment(sample.image, objects, seed, planned, planes)
        # A transform that crops or rotates by 90 degrees, or another image than the step was cut for
        room = (min(planned[0], ref.canvas[0]), min(planned[1], ref.canvas[1]))
        if image.shape[:2] != room:
            stretch = self.cfg.image_size.fit == "stretch"
            image, objects, planes = fit_into(image, objects, room, planes, stretch)
        if planes is not None and self.every_pixel:
            planes = planes.unlabelled_ignored()
        if self.class_weights is not None:
            objects = replace(objects, weights=self.class_weights[objects.classes])
        noise = np.random.SeedSequence([self.seed, ref.epoch, index, NOISE, *again])
        key = int(noise.generate_state(1, np.uint64)[0] >> 1)
        sample = replace(sample, image=image, objects=objects, planes=planes)
        return replace(sample, canvas=ref.canvas, noise_key=key)


class EvalDataset(Dataset):
    """Samples without augmentation, on the canvas of the exported image processor.

    An image whose pixels cannot be had is blank, and says so.
    """

    def __init__(self, split: Split, rule: CanvasRule, features: FeatureStore | None = None):
        """
        Args:
            features: stored maps, in the place of pixels.
        """
        self.split = split
        self.rule = rule
        self.features = features

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        canvas = self.rule.full
        maps: tuple[torch.Tensor, ...] = (
            () if self.features is None else self.features.maps(index, 0)
        )
        try:
            if self.features is None:
                sample = load_sample(self.split, index, self.rule.size)
            elif reason := self.features.failure(index, 0):
                raise UserError(reason)
            else:
                sample = blank_sample(self.split, index, self.rule.size)
        except UserError:
            record = self.split.records[index]
            size = (record.height, record.width)
            blank = np.zeros((*self.rule.resized(*size), 3), np.uint8)
            return Sample(
                *(blank, Objects.none(), record.image_id, index, size, canvas),
                missing=True,
                maps=maps,
            )
        objects = replace(sample.objects, masks=None)  # of no use to `predict`
        image = resize(sample.image, sample.canvas)
        return replace(sample, image=image, objects=objects, canvas=canvas, maps=maps)


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


def blank_sample(split: Split, index: int, size: ImageSizeConfig) -> Sample:
    """As `load_sample`, black, without decoding anything; already resized."""
    record = split.records[index]
    planned = resized_size(record.height, record.width, size)
    objects = record.objects.scaled(planned[1] / record.width, planned[0] / record.height)
    image = np.zeros((*planned, 3), np.uint8)
    own_size = (record.height, record.width)
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
    features: FeatureStore | None = None,
) -> DataLoader[Batch]:
    """Every world-th batch of the validation split, beginning with batch `rank`."""
    batches = evaluation_batches(len(split), batch_size)[rank::world]
    short = workers_short(rule.full, batch_size, num_workers, features=features) is not None
    return _loader(EvalDataset(split, rule, features), batches, num_workers, pin, short)


def _loader(
    dataset: Dataset, batches: object, num_workers: int, pin: bool, through_pipe: bool
) -> DataLoader[Batch]:
    if through_pipe and workers_are_out():
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
def batches_of(loader: DataLoader[T]) -> Iterator[Iterator[T]]:
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


def _alive(batches: Iterator[T]) -> Iterator[T]:
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
    give_back_large_blocks()
    for number in TO_STOP:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, TO_STOP
    )  # what came since the start is ignored as well
