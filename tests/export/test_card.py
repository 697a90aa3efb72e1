import pytest
from huggingface_hub import ModelCard

from evaluation.metrics import TOTALS
from export.card import model_card
from settings.keys import Config, DataConfig, EvalConfig, ModelConfig, RunConfig

FACTS = {
    "backbone_is_local": False,
    "backbone_tensors": 3,
    "backbone_sha256": "abc",
    "train_images": 10,
    "val_images": 5,
    "versions": {"torch": "2"},
    "code": {"commit": "0123456789abcdef", "dirty": True, "sha256": "feed"},
    "image_processor": "X",
}
METRICS = dict.fromkeys(TOTALS, 0.12345) | {
    "AP_large": None,
    "per_class": {"plate": {"AP": 0.1, "AP50": None, "boxes": 3}},
}


def card(tmp_path, **data):
    cfg = Config(
        run=RunConfig(name="odd: 'name' #1"),
        data=DataConfig(**data),
        model=ModelConfig(backbone="facebook/dinov2-base"),
        eval=EvalConfig(),
    )
    file = tmp_path / "README.md"
    file.write_text(model_card(cfg, METRICS, FACTS, 70))
    return ModelCard.load(file)


def test_the_hub_reads_task_origins_and_metrics(tmp_path):
    read = card(tmp_path, source="hub", path="someone/plates", val_split="test")
    assert read.data.pipeline_tag == "object-detection"
    assert read.data.base_model == "facebook/dinov2-base"
    assert read.data.datasets == ["someone/plates"]
    assert read.data.model_name == "odd: 'name' #1"
    results = {r.metric_type: r.metric_value for r in read.data.eval_results}
    assert results == {name: 0.1235 for name in TOTALS if name != "AP_large"}
    assert {(r.dataset_type, r.dataset_split) for r in read.data.eval_results} == {
        ("someone/plates", "test")
    }


@pytest.mark.parametrize("path", ["/home/somebody/secret/photos", "~/secret/photos"])
def test_folders_of_the_machine_stay_private(tmp_path, path):
    caches = dict.fromkeys(("packed", "packed_cache_folder", "cache_folder"), path)
    read = card(tmp_path, source="coco", path=path, train_images=path, val_images=path, **caches)
    assert {r.dataset_name for r in read.data.eval_results} == {"photos"}
    assert read.data.datasets is None
    assert "secret" not in read.content


def test_the_example_uses_the_threshold_that_is_recommended(tmp_path):
    cfg = Config(data=DataConfig(source="coco", path="photos"))
    assert "threshold=0.29)" in model_card(cfg, METRICS | {"threshold": 0.29}, FACTS, 70)
    assert f"threshold={cfg.eval.score_threshold})" in model_card(cfg, METRICS, FACTS, 70)


def test_pictures_are_paragraphs_of_their_own(tmp_path):
    cfg = Config(data=DataConfig(source="coco", path="photos"))
    text = model_card(cfg, METRICS, FACTS, 70, ["images/results.png"])
    assert "\n\n![Curves of the training](images/results.png)\n\n## Limits" in text
