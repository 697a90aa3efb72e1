"""What a dataset asks of a configuration: figures that are counted anew here, and values that end the advice."""

import dataclasses
import json

import pytest

from builders import SHARED, launch, write_coco
from data.build import build_data
from data.check.advice import Head, advise, enough_queries
from settings.keys import Config, DataConfig, ImageSizeConfig, TrainConfig
from settings.load import load_config


def given(root, longest=96, steps=2000, **data):
    size = ImageSizeConfig(longest, fit="stretch")
    own = DataConfig("coco", str(root), image_size=size, val_fraction=0.25, **data)
    return Config(data=own, train=TrainConfig(steps=steps, global_batch_size=4))


def topics(cfg, head):
    data = build_data(cfg.data, 0)
    return {advice.topic: advice for advice in advise(cfg, data, head)}


def changed(cfg, keys):
    for key, value in keys.items():
        section, *inner = key.split(".")
        if inner == ["image_size", "longest"]:
            size = dataclasses.replace(cfg.data.image_size, longest=value)
            cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, image_size=size))
        elif section == "train":
            cfg = dataclasses.replace(
                cfg, train=dataclasses.replace(cfg.train, **{inner[0]: value})
            )
    return cfg


def test_nothing_is_advised_where_all_fits(tmp_path):
    assert not topics(given(write_coco(tmp_path, 8)), Head("deimv2", 10, 80, "why"))


def test_too_few_queries(tmp_path):
    cfg = given(write_coco(tmp_path, 8))
    advice = topics(cfg, Head("deimv2", 1, 80, "why"))["queries"]
    assert "2 images have more boxes (up to 2) than the head's 1 queries" in advice.text
    value = advice.keys["model.head_args.num_queries"]
    assert f"num_queries {value}" in advice.text
    assert "queries" not in topics(cfg, Head("deimv2", value, 80, "why"))
    assert topics(cfg, Head("rt_detr_v2", 1, whole=True))["queries"].keys == {}


@pytest.mark.parametrize("most", [1, 9, 60, 151, 800])
def test_enough_queries_are_more_than_objects(most):
    assert most < enough_queries(most) <= 1.3 * most + 20


def test_small_objects_ask_for_larger_images(tmp_path):
    cfg = given(write_coco(tmp_path, 8), longest=48)
    advice = topics(cfg, Head("deimv2", 10))["size"]
    value = advice.keys["data.image_size.longest"]
    assert value > 48
    assert f"data.image_size.longest {value}" in advice.text
    assert "size" not in topics(changed(cfg, advice.keys), Head("deimv2", 10))


def test_enlarging_for_nothing_is_told(tmp_path):
    advice = topics(given(write_coco(tmp_path, 8), longest=640), Head("deimv2", 10))["size"]
    assert advice.keys == {"data.image_size.longest": 96}
    assert "44.4 times cheaper" in advice.text


@pytest.mark.parametrize("head", [Head("deimv2", 10, 80, "why"), Head("detr", 10, 30_000, "why")])
def test_too_few_steps(tmp_path, head):
    cfg = given(write_coco(tmp_path, 32), steps=10)
    advice = topics(cfg, head)["steps"]
    assert advice.keys["train.steps"] >= 2 * head.few_steps
    assert "steps" not in topics(changed(cfg, advice.keys), head)


def test_uneven_classes_are_told(tmp_path):
    root = write_coco(tmp_path, 60, ids=(1, 3))
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 3 if number < 2 else 1
    file.write_text(json.dumps(content))
    write_coco(root, 4, "val", ids=(1, 3), seed=1)
    cfg = given(root)
    data = build_data(cfg.data, 0)
    (advice,) = [a for a in advise(cfg, data, Head("deimv2", 10)) if a.topic == "balance"]
    assert (
        f"class1 has {len(content['annotations']) - 2} objects and class class3 2 " in advice.text
    )


def test_a_class_of_few_objects_on_many_images_is_weighed(tmp_path):
    """Images of it cannot come more often than others."""
    root = write_coco(tmp_path, 8, ids=(1, 3))
    file = root / "annotations/train.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    content["annotations"] = [
        {**first, "id": 100 * image + n, "image_id": 10 + image, "category_id": 3 if n == 0 else 1}
        | {"bbox": [n, n, 20, 20], "segmentation": []}
        for image in range(8)
        for n in range(25)
    ]
    file.write_text(json.dumps(content))
    cfg = given(root)
    advice = topics(cfg, Head("deimv2", 40))["balance"]
    assert "on images that are not rare (100%): train.class_weights balanced" in advice.text
    assert not advice.keys
    weighed = dataclasses.replace(cfg.train, class_weights="balanced")
    cfg = dataclasses.replace(cfg, train=weighed)
    assert "balance" not in topics(cfg, Head("deimv2", 40))


@pytest.mark.slow
def test_the_advised_file_is_a_configuration_with_the_values(tmp_path):
    root = SHARED / "data" / "nuclei-instances"
    if not root.is_dir():
        pytest.skip("no ../shared/data")
    file = tmp_path / "advised.yaml"
    keys = [
        "--config",
        "configs/coco_small.yaml",
        "--data.path",
        str(root),
        "--data.image_size",
        "160",
    ]
    done = launch([*keys, "--advise", str(file)], script="tools.check_data", module=True)
    assert done.returncode == 0, done.stderr
    cfg = load_config(["--config", str(file)])
    assert cfg.model.head_args["num_queries"] >= 151
    assert cfg.data.image_size.longest > 160
    assert f"num_queries {cfg.model.head_args['num_queries']}" in done.stdout
    again = launch([*keys, "--advise", str(file)], script="tools.check_data", module=True)
    assert again.returncode == 2
    assert "is there already" in again.stderr
