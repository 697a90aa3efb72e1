"""Imports point one way: config -> data -> model -> training -> evaluation -> export -> entries."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "config": set(),
    "data": {"config"},
    "model": {"config", "data"},
    "training": {"config", "data", "model"},
    "evaluation": {"config", "data", "model"},
    "export": {"config", "data", "model", "evaluation"},
    "tools": {"config", "data", "model", "evaluation", "export", "training"},
}
OURS = {*MAY_IMPORT, "train_accelerate", "benchmarks"}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_layer_imports_only_what_lies_below(layer):
    files = [ROOT / "config.py"] if layer == "config" else list((ROOT / layer).glob("*.py"))
    assert files
    for file in files:
        used = set(imported(file)) & OURS - {layer}
        assert used <= MAY_IMPORT[layer], file


def test_only_one_module_knows_albumentations():
    others = ("tests", "benchmarks")  # a benchmark runs the published recipe beside ours
    files = [f for f in ROOT.glob("*/*.py") if f.parent.name not in others]
    users = [f for f in files if "albumentations" in set(imported(f))]
    assert users == [ROOT / "data" / "transforms.py"]


def test_transformers_seams_that_can_run_foreign_code_are_not_used():
    for file in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]:
        if file.parent.name == "tests":
            continue
        text = file.read_text()
        for word in ("trust_remote_code=True", "weights_only=False", "pickle.load"):
            assert word not in text, file
        for call in re.findall(r"torch\.load\(.*", text):
            assert "weights_only=True" in call, file
