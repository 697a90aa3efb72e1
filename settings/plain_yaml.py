"""YAML as plain data, and no more of it than stands in the file."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000


class _PlainLoader(yaml.SafeLoader):
    """YAML without references, which let a short file grow without bound, and without surprises: a key
    stands once, and 010 or 1:30 is not taken for 8 or 90."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if isinstance(key, list | dict):
                raise yaml.YAMLError("a table or a list is no key")
        seen: set[Any] = set()
        for key in keys:
            if key in seen:
                raise yaml.YAMLError(f"the key {key!r} stands twice{node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        return int(super().construct_yaml_int(self._decimal(node)))

    def construct_yaml_float(self, node: Any) -> float:
        return float(super().construct_yaml_float(self._decimal(node)))

    def _decimal(self, node: Any) -> Any:
        digits = node.value.lstrip("+-")
        if ":" in digits or (digits[:1] == "0" and digits[1:2].isdigit()):
            raise yaml.YAMLError(
                f"YAML reads {node.value} as another number; write it without leading 0 and colon, or in "
                f"quotes{node.start_mark}"
            )
        return node

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*name) are not read here")
        return super().compose_node(parent, index)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_yaml_float)


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
