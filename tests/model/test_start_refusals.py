"""What is said of a detector that cannot be started from."""

import json

import pytest
import torch

from builders import REAL_TIME, save_backbone, some
from donors import (
    FIRST_WEIGHT,
    OTHERS,
    SIDE_PX,
    SOME,
    changed_copy,
    config_of,
    in_file,
    saved,
    start,
    taxonomy,
    whole,
)
from errors import UserError
from model.build import build_model
from model.heads.registry import get_family
from model.start import completed
from settings.keys import ImageSizeConfig
from settings.load import load_config


def test_no_such_folder():
    for attempt in (
        lambda: completed(config_of(whole("./absent", None))),
        lambda: start("./absent", "detr"),
    ):
        with pytest.raises(UserError, match=r"model.init_from ./absent: no such folder"):
            attempt()


def test_folder_that_is_no_detector(tmp_path):
    folder = save_backbone(tmp_path / "b")
    message = (
        "'dinov3_convnext' cannot be trained here; .*it is a backbone, which belongs into model"
    )
    with pytest.raises(UserError, match=message):
        completed(config_of(whole(folder, None)))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"model.init_from .*config.json"):
        completed(config_of(whole(folder, None)))


def test_detector_of_a_type_that_is_not_trained_here(tmp_path):
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    YolosForObjectDetection(config).save_pretrained(tmp_path / "yolos")
    with pytest.raises(UserError, match="a model of the type 'yolos' cannot be trained here"):
        completed(config_of(whole(tmp_path / "yolos", None)))


def test_head_that_is_not_the_donors(donors):
    with pytest.raises(UserError, match=r"model.head detr: .* has the head d_fine; leave"):
        completed(config_of(whole(donors("d_fine"), "detr")))


@pytest.mark.parametrize("head", ["detr", "deimv2"])
def test_donor_that_lacks_a_tensor_of_its_backbone(donors, head, tmp_path):
    name = in_file(donors(head), FIRST_WEIGHT)
    folder = changed_copy(donors(head), tmp_path / "donor", lambda t: t.pop(name))
    message = f"1 tensors of its backbone are missing; first: .*{FIRST_WEIGHT}"
    with pytest.raises(UserError, match=message):
        start(folder, head)


@pytest.mark.parametrize("change", ["missing", "misnamed"])
@pytest.mark.parametrize(
    ("head", "tail"), [("detr", "decoder.layers.0.fc1.weight"), ("deimv2", "enc_output.0.weight")]
)
def test_donor_that_lacks_a_tensor_of_its_head(donors, head, tail, change, tmp_path):
    """What was trained would otherwise begin from nothing, in one line among others."""
    name = in_file(donors(head), tail)

    def edit(tensors):
        tensor = tensors.pop(name)
        if change == "misnamed":
            tensors[f"{name}_old"] = tensor

    folder = changed_copy(donors(head), tmp_path / "donor", edit)
    with pytest.raises(
        UserError,
        match=rf"1 tensors are missing in its file, .*first: .*{'.'.join(tail.split('.')[-2:])}",
    ):
        start(folder, head)


def test_pickled_weights_of_a_donor_are_not_read(donors, tmp_path):
    folder = changed_copy(donors("deimv2"), tmp_path / "donor")
    (folder / "model.safetensors").unlink()
    torch.save(saved(donors("deimv2")), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model.init_from .*safetensors"):
        start(folder, "deimv2")


def test_truncated_weights_of_a_donor_are_refused(donors, tmp_path):
    folder = changed_copy(donors("deimv2"), tmp_path / "donor")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.init_from "):
        start(folder, "deimv2")


@pytest.mark.parametrize("tail", [FIRST_WEIGHT, "enc_output.0.weight"], ids=["backbone", "head"])
def test_weights_that_are_not_finite_are_refused(donors, tail, tmp_path):
    name = in_file(donors("deimv2"), tail)
    folder = changed_copy(donors("deimv2"), tmp_path / "donor", lambda t: t[name].fill_(torch.nan))
    with pytest.raises(UserError, match=r"model.init_from .*not finite"):
        start(folder, "deimv2")


@pytest.mark.parametrize("tail", [FIRST_WEIGHT, "enc_output.0.weight"], ids=["backbone", "head"])
def test_tensor_that_is_not_what_the_file_has_is_refused(donors, tail, monkeypatch):
    """Whatever transformers does on loading, what it gives is compared with the file."""
    kind = get_family("deimv2").model_class
    load = kind.from_pretrained

    def careless(*args, **kwargs):
        model, info = load(*args, **kwargs)
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if name.endswith(tail)).mul_(1.001)
        return model, info

    monkeypatch.setattr(kind, "from_pretrained", careless)
    with pytest.raises(UserError, match=rf"model.init_from .*do not equal .*{tail}"):
        start(donors("deimv2"), "deimv2")


def test_donor_without_image_processor_needs_a_size(donors, tmp_path):
    folder = changed_copy(donors("deimv2"), tmp_path / "donor")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"cannot be told .*; set data.image_size.longest"):
        completed(config_of(whole(folder, None)))
    assert completed(config_of(whole(folder, None), 64)).model.head == "deimv2"
    (folder / "preprocessor_config.json").write_text('{"size": 3}')
    with pytest.raises(UserError, match=r"cannot be told .*; set data.image_size.longest"):
        completed(config_of(whole(folder, None)))


def test_code_that_lies_beside_a_donor_is_refused(donors, tmp_path):
    folder = changed_copy(donors("detr"), tmp_path / "donor")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model.init_from: .*auto_map.*never run here"):
        completed(config_of(whole(folder, None)))


NOTHING = "null: is that of model.init_from, which is not set"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.backbone", "null"], f"model.backbone {NOTHING}"),
        (["--model.head", "null"], f"model.head {NOTHING}"),
        (["--data.image_size.longest", "null"], f"data.image_size.longest {NOTHING}"),
        (["--model.init_from_revision", "abc"], "model.init_from_revision abc: has no effect"),
        (["--optim.new_layers_lr", "0.01"], "optim.new_layers_lr 0.01: has no effect"),
        (
            ["--model.init_from", "x", "--model.backbone", "null", "--model.out_features", "[a]"],
            "model.out_features .*a whole detector .* reads its own",
        ),
    ],
)
def test_keys_that_need_a_donor_or_contradict_it(arguments, message):
    with pytest.raises(UserError, match=message):
        load_config(arguments)


def test_recipe_for_a_donor_asks_for_one():
    recipe = ["--config", "configs/finetune.yaml", "--data.path", "mine"]
    with pytest.raises(UserError, match="4 problems in the configuration") as error:
        load_config([*recipe, "--model.init_from", "null"])
    for key in ("model.backbone null", "model.head null", "longest null", "new_layers_lr"):
        assert key in str(error.value)
    cfg = load_config(recipe)
    assert cfg.model.init_from == "ustc-community/dfine-small-coco"
    assert (cfg.model.backbone, cfg.model.head, cfg.data.image_size.longest) == (None,) * 3


@pytest.mark.parametrize("head", some(REAL_TIME, ["deimv2"]))
def test_more_queries_than_places(donors, head):
    most = sum((SIDE_PX // stride) ** 2 for stride in (4, 8, 16))
    message = rf"num_queries {most + 1}: .*data.image_size.longest {SIDE_PX + 32} has"
    with pytest.raises(UserError, match=message):
        start(donors(head), head, head_args={"num_queries": most + 1})
    assert start(donors(head), head, head_args={"num_queries": most}).num_queries == most


@pytest.mark.parametrize("head", REAL_TIME)
def test_small_images_with_enough_places(donors, head):
    """At 64 px the maps have 336 places for 6 queries."""
    build_model(whole(donors(head), head), taxonomy(OTHERS), ImageSizeConfig(64))


@pytest.mark.parametrize("head", SOME)
def test_arguments_of_a_donors_head(donors, head):
    name = type(get_family(head).config_class()).__name__
    with pytest.raises(UserError, match=f"model.head_args.absent: {name} has no such argument"):
        start(donors(head), head, head_args={"absent": 1})
    with pytest.raises(UserError, match="model.head_args.backbone_config: "):
        start(donors(head), head, head_args={"backbone_config": {}})
    with pytest.raises(UserError, match=r"model.head_args|model.init_from"):
        start(donors(head), head, head_args={"d_model": "wide"})


@pytest.mark.parametrize(
    "args",
    [
        {"share_bbox_head": True},
        {"eval_size": [64, 64]},
        {"anchor_image_size": [64, 64]},
        {"eval_idx": 0},
        {"feat_strides": [8, 16, 32]},
    ],
    ids=lambda args: next(iter(args)),
)
def test_arguments_that_a_head_on_a_backbone_refuses_are_refused_for_a_donor(donors, args):
    with pytest.raises(UserError, match=f"model.head_args.{next(iter(args))}"):
        start(donors("deimv2"), "deimv2", head_args=args)
