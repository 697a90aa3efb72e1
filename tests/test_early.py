"""What is wrong with a command line is told before anything that takes seconds to import."""

import subprocess
import sys

import pytest

from disk import ROOT

SCRIPT = """
import runpy, sys
name, *sys.argv[1:] = sys.argv[1:]
try:
    if name.endswith(".py"):
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__")
finally:
    heavy = {"torch", "transformers", "accelerate", "albumentations", "datasets", "numpy", "cv2"}
    print("imported:", sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
MISTAKES = {
    "train_accelerate.py": (["--optim.lr", "fast"], "optim.lr"),
    "tools.cache_features": (["--data.cache_features", "0"], "data.cache_features"),
    "tools.check_data": (["--data.paht", "x"], "data.path"),
    "tools.compare": (["runs/a"], "two or more"),
    "tools.demo": (["--model", "m", "--threshold", "7"], "--threshold"),
    "tools.export": (["nowhere"], "neither a run folder with checkpoints nor a checkpoint"),
    "tools.evaluate": (["--model", "m", "--eval.batch_size", "0"], "eval.batch_size"),
    "tools.predict": (["--model", "m", "--out", "o", "--threshold", "7", "i"], "--threshold"),
    "tools.random_backbone": (["--backbone", "b"], "--out"),
}


def call(name, *arguments):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, name, *arguments], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", MISTAKES)
def test_help_imports_nothing_heavy(name):
    done = call(name, "--help")
    assert done.returncode == 0
    assert "usage: " in done.stdout
    assert "imported: []" in done.stderr


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_heavy_imports(name):
    arguments, named = MISTAKES[name]
    done = call(name, *arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert "imported: []" in done.stderr
