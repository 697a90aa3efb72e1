"""Images and frames of videos, decoded ahead of the model by threads."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from data.images.decode import decode
from errors import UserError
from export.detector import LoadedDetector, Views
from tools.prediction_files import is_video

T = TypeVar("T")
FULL_SHARE = 0.9
"""A video that ends before this part of the frames that it says to have is damaged; containers estimate them"""
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # damage is told by us
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")


@dataclass(frozen=True)
class Picture:
    """An image, or a frame of a video."""

    place: int
    """Of its file among the inputs"""
    frame: int | None
    """Number in its video, from 0"""
    pixels: np.ndarray
    """uint8 [H, W, 3], as a person sees it"""
    views: Views
    """What the model gets of it"""


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be read, or the rest of a video."""

    place: int
    reason: str


def pictures_ahead(
    files: Sequence[Path], detector: LoadedDetector, pool: Executor, ahead: int, every: int = 1
) -> Iterator[Picture | Unreadable]:
    """The files' pictures in order; `ahead` of them are being decoded meanwhile.

    Args:
        every: of videos, each so manieth frame.
    """
    tasks = (_tasks(place, file, detector, every) for place, file in enumerate(files))
    waiting: deque[Future[Picture | Unreadable]] = deque()
    for task in itertools.chain.from_iterable(tasks):
        waiting.append(pool.submit(task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def batches(rows: Iterator[T], size: int) -> Iterator[list[T]]:
    """`size` rows at a time, and what is left."""
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _tasks(
    place: int, file: Path, detector: LoadedDetector, every: int
) -> Iterator[Callable[[], Picture | Unreadable]]:
    if is_video(file):
        yield from _frames(place, file, detector, every)
    else:
        yield partial(_read, place, file, detector)


def _read(place: int, file: Path, detector: LoadedDetector) -> Picture | Unreadable:
    try:
        return _picture(place, None, decode(file, str(file)), detector)
    except UserError as error:
        return Unreadable(place, str(error))


def _picture(
    place: int, frame: int | None, pixels: np.ndarray, detector: LoadedDetector
) -> Picture:
    return Picture(place, frame, pixels, detector.views(pixels))


def _frames(
    place: int, file: Path, detector: LoadedDetector, every: int
) -> Iterator[Callable[[], Picture | Unreadable]]:
    capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG) if file.is_file() else None
    if capture is None or not capture.isOpened():
        yield partial(Unreadable, place, f"{file}: cannot open the video")
        return
    try:
        number = 0
        while capture.grab():
            if number % every == 0:
                whole, pixels = capture.retrieve()
                if not whole:
                    break
                rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
                yield partial(_picture, place, number, rgb, detector)
            number += 1
        expected = round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if number == 0 or number < FULL_SHARE * expected:
            told = f"{file}: the video breaks off after {number} of {expected} frames"
            yield partial(Unreadable, place, told)
    finally:
        capture.release()


def video_frames(file: Path) -> tuple[int, float]:
    """Frames that a video says to have, and frames a second."""
    capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)
    try:
        frames = max(0, round(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return frames, rate if 0 < rate < 1000 else 25.0
