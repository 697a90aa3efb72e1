"""All keys of a configuration, one by one."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, cast

from settings.keys import Config


def config_to_dict(cfg: Config) -> dict[str, Any]:
    """Plain nested dictionary of a configuration, for YAML, JSON and trackers."""
    plain = dataclasses.asdict(cfg)
    plain["optim"]["betas"] = list(cfg.optim.betas)
    return plain


def leaf_keys(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every key of the configuration."""
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from leaf_keys(cast(type, kind), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def harmless_keys(cls: type = Config, prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys that may change at a resume."""
    kinds = typing.get_type_hints(cls)
    for key in dataclasses.fields(cls):
        if dataclasses.is_dataclass(kinds[key.name]):
            yield from harmless_keys(cast(type, kinds[key.name]), f"{prefix}{key.name}.")
        elif key.metadata.get("harmless"):
            yield f"{prefix}{key.name}"
