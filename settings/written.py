"""A configuration as a YAML file for people: what differs from the defaults, with a comment where there is one."""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from errors import UserError, printable
from settings.keys import Config
from settings.walk import config_to_dict

WIDTH = 100
SIZE = "image_size"
"""The one section inside of another"""


def set_keys(cfg: Config) -> dict[str, Any]:
    """Value by dotted name of every key that differs from its default; tables and lists whole. What lies at data.path is
    always said."""
    default = _flat(config_to_dict(Config()))
    said = {"data.source"} if cfg.data.path else set()
    return {
        key: value
        for key, value in _flat(config_to_dict(cfg)).items()
        if value != default[key] or key in said
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        section = isinstance(value, dict) and (not prefix or name == f"data.{SIZE}")
        found.update(_flat(value, f"{name}.") if section else {name: value})
    return found


def with_values(keys: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with other values, of which those of model.head_args are entries of it."""
    changed = dict(keys)
    for key, value in values.items():
        if key.startswith("model.head_args."):
            name = key.removeprefix("model.head_args.")
            changed["model.head_args"] = {**changed.get("model.head_args", {}), name: value}
        else:
            changed[key] = value
    return changed


def commented_yaml(keys: Mapping[str, Any], comments: Mapping[str, str], title: str) -> str:
    """The text of a file.

    Args:
        keys: value by dotted name. comments: by dotted name, of keys, sections or entries of model.head_args.
    """
    lines = [f"# {line}" for line in _wrapped(title)]
    sections: dict[str, dict[str, Any]] = {}
    for key, value in keys.items():
        section, _, name = key.partition(".")
        entries = sections.setdefault(section, {})
        if name.startswith(f"{SIZE}."):
            entries.setdefault(SIZE, {})[name.removeprefix(f"{SIZE}.")] = value
        else:
            entries[name] = value
    for section, values in sections.items():
        lines.append(f"{section}:")
        for name, value in values.items():
            lines += _entry(name, value, f"{section}.{name}", comments)
    return "\n".join(lines) + "\n"


def _entry(name: str, value: Any, key: str, comments: Mapping[str, str]) -> list[str]:
    lines = [f"  # {line}" for line in _wrapped(comments.get(key, ""))]
    if name == SIZE:
        told = "\n".join(comments[f"{key}.{own}"] for own in value if f"{key}.{own}" in comments)
        return [*lines, *(f"  # {line}" for line in _wrapped(told)), f"  {name}: {_flow(value)}"]
    if isinstance(value, dict) and value:
        lines.append(f"  {name}:")
        for entry, own in value.items():
            lines += [f"    # {line}" for line in _wrapped(comments.get(f"{key}.{entry}", ""))]
            lines.append(f"    {entry}: {_flow(own)}")
        return lines
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [*lines, f"  {name}:", *(f"    - {_flow(item)}" for item in value)]
    return [*lines, f"  {name}: {_flow(value)}"]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _wrapped(text: str) -> list[str]:
    return [
        line
        for part in text.splitlines()
        for line in textwrap.wrap(
            printable(part), WIDTH, break_on_hyphens=False, break_long_words=False
        )
    ]


def write_new(file: Path, text: str, option: str) -> None:
    """
    Raises:
        UserError: if the file is there already, or cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError as error:
        raise UserError(f"{option} {file}: is there already; name another file") from error
    except OSError as error:
        raise UserError(f"{option} {file}: cannot be written: {error.strerror}") from error
