"""What an exported folder says about how it is best used: `permafrost.json`."""

import json
from pathlib import Path

from errors import UserError

FILE = "permafrost.json"
THRESHOLD = "threshold"


def recommended_threshold(folder: Path) -> float | None:
    """The lowest score that a model is recommended to be used with; None where its folder says nothing.

    Raises:
        UserError: if the file is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_bytes()).get(THRESHOLD)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read ({error}); delete it") from error
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{file}: {THRESHOLD} {value!r} is no number from 0 to 1; delete the file")
    return float(value)
