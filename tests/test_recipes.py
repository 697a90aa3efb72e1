import dataclasses
from pathlib import Path

import pytest

from backbones import KINDS, write_backbone
from benchmarks.all import SCRIPTS, main
from data.taxonomy import Taxonomy
from model.build import build_model
from settings.load import load_config

NO_TABLES = {"all", "conditions", "default_criterion", "exactness", "same_runs"}
"""Not of docs/benchmarks.md"""


@pytest.mark.parametrize("name", ["coco", "coco_small"])
def test_a_recipe_for_photos_builds_on_another_backbone(name):
    """Its head's arguments fit each other; a first small step shows it."""
    cfg = load_config(["--config", f"configs/{name}.yaml", "--model.backbone", "street/backbone"])
    size = dataclasses.replace(cfg.data.image_size, longest=256)
    detector = build_model(cfg.model, Taxonomy(("a", "b"), (0, 1)), size)
    assert detector.num_queries == cfg.model.head_args["num_queries"]
    assert detector.strides == (16,)
    assert not detector.unused
    config = detector.model.config
    assert (config.weight_loss_mal, config.matcher_class_cost) == (4.0, 4.0)


def test_the_recipe_for_photos_reads_the_last_layer_of_a_vision_transformer(tmp_path, monkeypatch):
    monkeypatch.setitem(
        KINDS, "deep", ("Dinov2Config", {**KINDS["dinov2"][1], "num_hidden_layers": 12})
    )
    folder = write_backbone(tmp_path / "vit", "deep")
    argv = ["--config", "configs/coco.yaml", "--model.backbone", str(folder)]
    cfg = load_config([*argv, "--model.out_features", "[stage12]"])
    size = dataclasses.replace(cfg.data.image_size, longest=224)
    detector = build_model(cfg.model, Taxonomy(("a", "b"), (0, 1)), size)
    assert (detector.strides, detector.neck) == ((14,), "none")


def test_make_bench_runs_every_benchmark(tmp_path, monkeypatch):
    """A new one is in the list; what it prints ends up in the file, and a failure in the exit status."""
    scripts = {file.stem for file in Path("benchmarks").glob("*.py")} - {"__init__"}
    assert scripts - NO_TABLES == set(SCRIPTS)
    file = tmp_path / "found.md"
    monkeypatch.setitem(SCRIPTS, "not_there", ("", ""))
    argv = ["all", "--quick", "--only", "not_there", "padding", "--out", str(file)]
    monkeypatch.setattr("sys.argv", argv)
    assert main() == 1
    text = file.read_text()
    assert "No module named benchmarks.not_there" in text
    assert "-m benchmarks.padding`; torch " in text
    assert "| 1333 | 16 |" in text
