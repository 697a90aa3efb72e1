"""Imports point one way, file by file, and nothing that can run foreign code is called."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"errors", "disk", "devices"}
DATA = {*BASE, "settings", "data"}
MODEL = {*DATA, "model", "model.losses"}
EVALUATION = {*MODEL, "data.feed", "data.images", "evaluation"}
MAY_IMPORT = {
    "devices": set(),
    "errors": set(),
    "disk": {"errors"},
    "settings": BASE,
    "street.paint": set(),
    "street.scenes": {"street.paint"},
    "data": {*BASE, "settings"},
    "data.images": DATA,
    "data.sources": {*DATA, "data.images", "street.scenes", "street.paint"},
    "data.build": {*DATA, "data.sources", "data.images", "data.index", "data.packed"},
    "data.packed": {*DATA, "data.images", "data.index"},
    "data.index": {*DATA, "data.images", "data.places"},
    "data.places": {*DATA, "data.sources"},
    "data.feed": {*DATA, "data.images"},
    "data.check": {*DATA, "data.images", "data.build", "data.sources"},
    "model": {*DATA, "model.losses", "model.heads"},
    "model.losses": {*DATA, "model"},
    "model.heads": MODEL,
    "training": {*BASE, "settings"},
    "evaluation": EVALUATION,
    "report": {*EVALUATION, "data.check", "data.build"},
    "export": {*EVALUATION, "model.heads"},
    "street": {*MODEL, "model.heads", "data.sources", "street.scenes", "street.paint"},
    "run": {
        *(EVALUATION | DATA),
        *("data.build", "data.check", "model.heads", "training", "report", "export"),
    },
}
"""What the files of a room may import besides their own room; the longest name that fits counts"""
ENTRIES = ("train_accelerate", "tools", "benchmarks", "conformance")
"""Nothing imports these"""


def modules():
    """(dotted name, file) of every Python file that is ours and no test."""
    rooms = [f for room in MAY_IMPORT if "." not in room for f in (ROOT / room).rglob("*.py")]
    tops = [*ROOT.glob("*.py"), *ROOT.glob("tools/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    tops += ROOT.glob("conformance/**/*.py")
    for file in (*rooms, *tops):
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


NAMES = dict(modules())


def room_of(name):
    """The longest name in MAY_IMPORT that begins `name`; its first part for entry points."""
    fitting = [room for room in MAY_IMPORT if name == room or name.startswith(f"{room}.")]
    return max(fitting, key=len, default=name.partition(".")[0])


def imported(file):
    """Dotted names of the modules that a file imports, also inside of functions."""
    text = file.read_text()
    by_name = "importlib" in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name if name in NAMES else node.module for name in inner]
        elif by_name and isinstance(node, ast.Constant) and node.value in NAMES:
            yield from [node.value] if "." in node.value else []


def ours(file):
    return {name for name in imported(file) if name in NAMES}


@pytest.mark.parametrize("name", [name for name in NAMES if room_of(name) in MAY_IMPORT])
def test_file_imports_only_what_its_room_may(name):
    room = room_of(name)
    used = {room_of(other) for other in ours(NAMES[name])}
    assert used <= MAY_IMPORT[room] | {room}, name


def test_nothing_imports_entry_points():
    for name, file in NAMES.items():
        room = name.partition(".")[0]
        used = {other.partition(".")[0] for other in ours(file)} & set(ENTRIES)
        tries_the_loop = room == "benchmarks" or name.startswith("tools.selftest")
        assert used <= ({room, "train_accelerate"} if tries_the_loop else {room}), name


def test_conformance_knows_us_by_command_lines_alone():
    for name, file in NAMES.items():
        if room_of(name) == "conformance":
            assert {room_of(other) for other in ours(file)} <= {"conformance", *BASE}, name


def test_no_circle_of_imports():
    following = {name: ours(file) - {name} for name, file in NAMES.items()}
    while following:
        ends = [name for name, used in following.items() if not used & set(following)]
        assert ends, f"a circle among {sorted(following)}"
        for name in ends:
            del following[name]


def test_every_file_has_a_room():
    assert {room_of(name) for name in NAMES} <= {*MAY_IMPORT, *ENTRIES}
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
    assert folders <= {name.partition(".")[0] for name in NAMES}


def test_only_one_module_knows_albumentations():
    # A benchmark runs the published recipe beside ours, a witness leaves out what a script has no key for.
    others = ("tools", "benchmarks", "conformance")
    users = [
        name
        for name, file in NAMES.items()
        if any(used.partition(".")[0] == "albumentations" for used in imported(file))
        and name.partition(".")[0] not in others
    ]
    assert users == ["data.feed.transforms"]


def test_transformers_seams_that_can_run_foreign_code_are_not_used():
    for file in NAMES.values():
        text = file.read_text()
        for word in ("weights_only=False", "pickle.load"):
            assert word not in text, file
        # Called with it, that is; the card of a model with code of its own says how others load it.
        for node in ast.walk(ast.parse(text)):
            trusting = isinstance(node, ast.keyword) and node.arg == "trust_remote_code"
            assert not trusting or ast.unparse(node.value) == "False", file
            named = isinstance(node, ast.Constant) and node.value == "trust_remote_code"
            assert not named or file.name == "source.py", file
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, file
