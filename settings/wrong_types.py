"""What is said of a value of another type than its key's."""

import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from errors import nearest, printable
from settings.walk import leaf_keys

SIMPLE: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a table",
    type(None): "null",
}
MANY = {str: "texts", int: "whole numbers", float: "numbers", dict: "tables"}
WRITTEN = {
    "data.augment": "'[{HorizontalFlip: {p: 0.5}}]'; or --config configs/augment/NAME.yaml: light, medium, strong",
    "data.label_values": "'[10, 30, 200]'",
    "data.labels": "'[car, truck]'",
    "data.stuff": "'[sky, road]'",
    "model.head_args": "'{num_queries: 50, decoder_layers: 3}'",
    "model.out_features": "'[stage3, stage4]'",
    "optim.betas": "'[0.9, 0.999]'",
    "train.class_weights": "'{car: 1, truck: 2.5}'",
}
"""How a list or a table is written, which is not as other values are"""
PLAIN = re.compile(r"[\w.-]+")
LONGEST = 200
"""Characters of a value that are quoted"""


def in_short(text: str) -> str | None:
    """What jsonargparse says of a value of another type than its key's, in fewer words; None of any other mistake.

    Args:
        text: on one line.
    """
    found = re.match(r'Parser key "([\w.]+)": (.*)$', text)
    if found is None:
        return None
    key, said = found.groups()
    known = dict(leaf_keys())
    if said.startswith("Unable to load config"):
        first = next((name for name in known if name.startswith(f"{key}.")), None)
        return first and f"--{key}: is a section; give its keys one by one, as in --{first} VALUE"
    value = re.search(r"Given value: (.*)$", said) or re.search(r"Got value: (.*)$", said)
    if key not in known or value is None:
        return None
    words: list[str] = []
    kinds: list[str] = []
    for one in _alternatives(known[key]):
        if typing.get_origin(one) is Literal:
            words += typing.get_args(one)
        else:
            kinds.append(_name(one))
    near = nearest(value[1], words, 0.5)
    hint = f" - did you mean {near}?" if near else _written(key, value[1], known[key])
    *first_ones, last = [*words, *kinds]
    must_be = f"{', '.join(first_ones)}{' or ' if first_ones else ''}{last}"
    return f"{key} {printable(value[1], LONGEST)}: must be {must_be}{hint}"


def of_argument(text: str) -> str | None:
    """What huggingface_hub says of an argument of another type than its field's, in fewer words: `num_queries many: must
    be a whole number`; None of any other mistake."""
    found = re.search(r"Field '(\w+)'.*\(value: (.*?)\)", text)
    names = dict.fromkeys(re.findall(r"expected (\w+), got", text))
    words = {getattr(kind, "__name__", ""): word for kind, word in SIMPLE.items()}
    kinds = list(dict.fromkeys(words.get(name, f"a {name}") for name in names))
    if SIMPLE[float] in kinds:
        kinds = [word for word in kinds if word != SIMPLE[int]]
    if found is None or not kinds:
        return None
    value = found[2].strip("'")
    return f"{found[1]} {printable(value, LONGEST)}: must be {' or '.join(kinds)}"


def _alternatives(kind: Any) -> Iterator[Any]:
    several = typing.get_origin(kind) in (typing.Union, types.UnionType)
    yield from typing.get_args(kind) if several else (kind,)


def _name(kind: Any) -> str:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is list:
        return f"a list of {MANY[typing.get_origin(inner[0]) or inner[0]]}"
    if origin is tuple:
        return f"a list of {len(inner)} {MANY[inner[0]]}"
    return SIMPLE[origin]


def _written(key: str, value: str, kind: Any) -> str:
    """How a key's list or table is written: with the value itself, where it only lacks its brackets."""
    if key not in WRITTEN:
        return ""
    for opening, closing in (("[", "]"), ("{", "}")):
        if value.startswith(opening) and value.count(opening) > value.count(closing):
            return f"; a {closing} is missing"
    of_texts = any(typing.get_args(one)[:1] == (str,) for one in _alternatives(kind))
    if of_texts and _name(next(_alternatives(kind))).startswith("a list"):
        parts = value.split(",")
        if all(PLAIN.fullmatch(part.strip()) for part in parts):
            own = ", ".join(part.strip() for part in parts)
            return f", written '[{own}]'"
    return f", for instance {WRITTEN[key]}"
