"""What an exported folder says about how it is best used: `permafrost.json`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from errors import UserError
from settings.image_keys import MOST_OVERLAP, TilesConfig

FILE = "permafrost.json"
THRESHOLD, TILES = "threshold", "tiles"


def write_recommended(folder: Path, threshold: float | None, tiles: TilesConfig) -> None:
    """Write it, if there is something to say.

    Args:
        threshold: lowest score with which F1 was best in validation, if it is worth recommending. tiles: what images were cut into.
    """
    known: dict[str, Any] = {}
    if threshold is not None:
        known[THRESHOLD] = threshold
    if tiles.size is not None:
        known[TILES] = asdict(tiles)
    if known:
        (folder / FILE).write_text(json.dumps(known) + "\n")


def recommended_threshold(folder: Path) -> float | None:
    """The lowest score that a model is recommended to be used with; None where its folder says nothing.

    Raises:
        UserError: if the file is damaged.
    """
    value = _read(folder).get(THRESHOLD)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _damaged(folder, f"{THRESHOLD} {value!r} is no number from 0 to 1")
    return float(value)


def recommended_tiles(folder: Path) -> TilesConfig:
    """The windows that the model was trained and measured on; without a size where its folder says nothing.

    Raises:
        UserError: if the file is damaged.
    """
    value = _read(folder).get(TILES, {})
    try:
        tiles = TilesConfig(**value)
        size, overlap, whole = tiles.size, tiles.overlap, tiles.whole
        known = size is None or (type(size) is int and size > 0)
        if not known or not 0 <= overlap <= MOST_OVERLAP or not isinstance(whole, bool):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise _damaged(folder, f"{TILES} {value!r} are no windows") from error
    return tiles


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, f"cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise _damaged(folder, "holds no table")
    return content


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"{folder / FILE}: {what}; delete the file")
