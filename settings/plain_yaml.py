"""YAML as plain data, and no more of it than stands in the file."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000


class _PlainLoader(yaml.SafeLoader):
    """YAML without references, which let a short file grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*name) are not read here")
        return super().compose_node(parent, index)


def load_plain(file: Path) -> Any:
    """Content of a YAML file.

    Raises:
        ValueError: if it is too large, not YAML, or has references; OSError if it cannot be read.
    """
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"has {file.stat().st_size} bytes; {MAX_BYTES} are read at most")
    try:
        return yaml.load(file.read_bytes(), Loader=_PlainLoader)
    except OSError:
        raise
    except Exception as error:  # the YAML library raises whatever its constructors run into
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
