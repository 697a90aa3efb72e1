"""The work of a prediction: from decoded pictures to drawings and rows of results."""

import sys
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.objects import Objects
from errors import printable
from export.detector import LoadedDetector
from tools.prediction_files import is_video
from tools.prediction_inputs import Picture, Unreadable, batches, pictures_ahead, video_frames
from tools.prediction_results import (
    CocoResults,
    DrawnVideo,
    entries,
    picture,
    save_drawing,
    save_label_map,
    told_of,
)

FEW = 20
"""Up to so many images have a line each"""


@dataclass(frozen=True)
class Places:
    """Where what is drawn of each file goes."""

    drawings: Sequence[Path]
    maps: Sequence[Path]
    """Of label maps, where every pixel has a class"""


class Writer:
    """Predicts batch by batch; threads decode before it, and draw behind it."""

    def __init__(
        self,
        detector: LoadedDetector,
        files: Sequence[Path],
        places: Places | None,
        coco: CocoResults | None,
        pool: Executor,
        threshold: float,
    ):
        """
        Args:
            places: of drawings and label maps of all files, if there are to be some.
            coco: gets what is found. threshold: lowest score.
        """
        self.results: list[dict[str, Any]] = []
        self.unreadable: list[str] = []
        self.kinds: Counter[str] = Counter()
        self._detector, self._files, self._coco, self._pool = detector, files, coco, pool
        self._places, self._threshold, self._every = places, threshold, 1
        self._writing: deque[Future[None]] = deque()
        self._video: tuple[int, DrawnVideo] | None = None
        self._few = len(files) <= FEW and not any(map(is_video, files))

    def predict_all(self, size: int, every: int) -> None:
        """
        Args:
            size: images at once. every: of videos, each so manieth frame.

        Raises:
            OSError: if something cannot be written.
        """
        self._every = every
        ahead = pictures_ahead(self._files, self._detector, self._pool, size, every)
        total = None if self._few else planned(self._files, every)
        with tqdm(total=total, unit="image", disable=True if self._few else None) as bar:
            for batch in batches(ahead, size):
                bar.update(len(batch))
                self._unreadable(row for row in batch if isinstance(row, Unreadable))
                pictures = [row for row in batch if isinstance(row, Picture)]
                views = [own.views for own in pictures]
                found = self._detector.find_on(views, self._threshold, size) if views else []
                for own, objects in zip(pictures, found, strict=True):
                    self._take(own, objects)
                while len(self._writing) > size:
                    self._writing.popleft().result()
        while self._writing:
            self._writing.popleft().result()
        self._finish_video()

    def give_up(self) -> None:
        """Remove what is half written."""
        if self._video is not None:
            self._video[1].give_up()

    def _unreadable(self, rows: Iterable[Unreadable]) -> None:
        for row in rows:
            self.unreadable.append(row.reason)
            tqdm.write(printable(f"skipped: {row.reason}"), file=sys.stderr)

    def _take(self, own: Picture, found: Objects) -> None:
        file = self._files[own.place]
        result: dict[str, Any] = {"image": str(file)}
        if own.frame is not None:
            result["frame"] = own.frame
        if self._places is not None:
            result["drawing"] = str(self._places.drawings[own.place])
        result["objects"] = entries(found, self._detector)
        if self._places is not None:
            self._write(own, found, self._places.drawings[own.place])
            if self._detector.labels == "regions" and own.frame is None:
                place = self._places.maps[own.place]
                result["label_map"] = str(place)
                size = (own.pixels.shape[0], own.pixels.shape[1])
                self._writing.append(self._pool.submit(save_label_map, found, size, place))
        if self._coco is not None:
            self._coco.add(own.place, file, own.frame, found)
        self.results.append(result)
        self.kinds.update(self._detector.names[kind] for kind in found.classes)
        if self._few:
            texts = told_of(found, self._detector)
            print(printable(f"{file}: {', '.join(texts) or 'nothing found'}"))

    def _write(self, own: Picture, found: Objects, place: Path) -> None:
        if own.frame is None:
            self._writing.append(self._pool.submit(self._draw, own.pixels, found, place))
            return
        if self._video is None or self._video[0] != own.place:
            self._finish_video()
            _, rate = video_frames(self._files[own.place])
            self._video = (own.place, DrawnVideo(place, rate / self._every))
        self._video[1].add(picture(own.pixels, found, self._detector))

    def _draw(self, pixels: np.ndarray, found: Objects, place: Path) -> None:
        save_drawing(picture(pixels, found, self._detector), place)

    def _finish_video(self) -> None:
        if self._video is not None:
            self._video[1].close()
            self._video = None


def planned(files: Sequence[Path], every: int) -> int:
    """Images and frames to come, as far as containers say."""
    return sum(-(-video_frames(file)[0] // every) if is_video(file) else 1 for file in files)
