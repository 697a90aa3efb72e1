"""What of `tools.check_data` is done range by range: reading the dataset, and looking at its images, here or elsewhere."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tqdm import tqdm

from data.build import read_data
from data.check.ranges import Facts, ImageCheck, Range, examine_piece, examined, made_by, piece_of
from data.dataset import Data
from data.findings import Findings
from data.index import indexed
from run.on_ray import on_ray
from settings.keys import Config
from settings.tasks import LABELS


def read(args: argparse.Namespace, cfg: Config, noted: Findings) -> Data:
    """The dataset; where many jobs read it, from the index if it is there."""

    def anew() -> Data:
        return read_data(cfg.data, cfg.run.seed, noted, LABELS[cfg.model.task])

    if args.ranges is None:
        return anew()
    return indexed(cfg.data, cfg.run.seed, LABELS[cfg.model.task], anew)


def look_at(images: ImageCheck, args: argparse.Namespace) -> None:
    """Look at those images of a share that nobody has looked at."""
    missing, (number, jobs) = images.missing(args.share), args.share
    own = [part for part in images.ranges if part.number % jobs == number - 1]
    total, todo = (sum(len(part.places) for part in parts) for parts in (own, missing))
    bar = tqdm(total=total, initial=total - todo, unit=" images", desc="checking", disable=None)
    kept = len(own) - len(missing)
    with bar:
        for part, facts in _seen(images, missing, args, bar.update):
            kept += images.add(part, facts)
    if jobs > 1:
        print(
            f"checked     share {number} of {jobs}: {total:,} images, {kept} of {len(own)} ranges are in {args.ranges}"
        )


def _seen(
    images: ImageCheck,
    missing: Sequence[Range],
    args: argparse.Namespace,
    progress: Callable[[], object],
) -> Iterator[tuple[Range, list[Facts]]]:
    left = {part.number: part for part in missing}
    if args.engine == "ray" and missing:
        jobs = ((part, piece_of(images.splits[part.split], part)) for part in missing)
        for part, facts in on_ray(partial(examine_piece, made_by()), jobs):
            for _ in facts:
                progress()
            del left[part.number]
            yield part, facts
    yield from examined(images.splits, [*left.values()], progress, args.workers)
