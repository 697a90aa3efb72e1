import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, DetrConfig, DetrForObjectDetection

from builders import SHARED, TINY_HEAD, losses_of, make_batch, save_backbone, task_of
from data.taxonomy import Taxonomy
from disk import ROOT
from errors import UserError
from model.backbone import load_backbone, tensor_digests, verify
from model.build import build_model
from settings.keys import ModelConfig

TAXONOMY = Taxonomy(("plate",), (1,))
FEMTO = SHARED / "data" / "backbones" / "hgnetv2-femto-deimv2-coco"
STREET = ROOT / "street" / "backbone"


def tiny(folder, head="detr", **changes):
    return ModelConfig(
        task=task_of(head),
        **{"backbone": str(folder), "head": head, "head_args": TINY_HEAD[head], **changes},
    )


def tamper(folder, edit):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("head", TINY_HEAD)
@pytest.mark.parametrize("folder", ["tiny", FEMTO, STREET], ids=["tiny", "femto", "street"])
def test_every_backbone_tensor_of_the_detector_equals_the_checkpoint(tmp_path, head, folder):
    folder = save_backbone(tmp_path / "b") if folder == "tiny" else folder
    if not folder.is_dir():
        pytest.skip(f"{folder.name} does not lie beside this checkout")
    detector = build_model(tiny(folder, head), TAXONOMY)
    file = load_file(folder / "model.safetensors")
    state = detector.backbone_module.state_dict()
    compared = {name for name in state if not name.endswith("num_batches_tracked")}
    assert detector.backbone.num_tensors == len(compared) > 10
    for name in compared:
        saved_name = name if name in file else name.removeprefix("model.")
        assert torch.equal(state[name], file[saved_name]), name


def test_canary_transformers_still_builds_detectors_with_random_backbones(tmp_path):
    """Why the weights are loaded by hand: DetrConfig alone leaves the backbone random."""
    folder = save_backbone(tmp_path)
    config = load_backbone(tiny(folder), 1).module.config
    model = DetrForObjectDetection(DetrConfig(backbone_config=config, **TINY_HEAD["detr"]))
    with pytest.raises(UserError, match="do not equal the checkpoint"):
        verify(tensor_digests(model.model.backbone.model), folder)


def test_canary_auto_backbone_still_refuses_local_folders(tmp_path):
    """Why the concrete class is looked up: AutoBackbone asks the Hub about a path."""
    with pytest.raises(Exception, match="(?i)repo id|offline|hub"):
        AutoBackbone.from_pretrained(str(save_backbone(tmp_path)))


def test_folder_without_weights(tmp_path):
    (save_backbone(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="has no weights"):
        build_model(tiny(tmp_path), TAXONOMY)


def test_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    tamper(save_backbone(tmp_path), lambda t: t.pop("stages.1.layers.0.pointwise_conv1.weight"))
    with pytest.raises(UserError, match=r"lacks 1 tensors .*stages.1.layers.0.pointwise_conv1"):
        build_model(tiny(tmp_path), TAXONOMY)


def test_checkpoint_of_another_shape_is_refused(tmp_path):
    save_backbone(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["hidden_sizes"] = [8, 16, 24]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="model.backbone"):
        build_model(tiny(tmp_path), TAXONOMY)


def test_truncated_checkpoint_is_refused(tmp_path):
    file = save_backbone(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="model.backbone"):
        build_model(tiny(tmp_path), TAXONOMY)


def test_half_precision_checkpoint_is_loaded_in_fp32_and_verified(tmp_path):
    def halve(tensors):
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    tamper(save_backbone(tmp_path), halve)
    backbone = load_backbone(tiny(tmp_path), 1)
    assert {p.dtype for p in backbone.module.parameters()} == {torch.float32}
    assert backbone.num_tensors == len(load_file(tmp_path / "model.safetensors"))


def test_model_type_without_backbone_class(tmp_path):
    (save_backbone(tmp_path) / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    with pytest.raises(UserError, match="no backbone class for model type 'vit_mae'"):
        build_model(tiny(tmp_path), TAXONOMY)


def test_out_features_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match=r"\['stem', 'stage1', 'stage2', 'stage3'\]"):
        build_model(tiny(save_backbone(tmp_path), out_features=["stage9"]), TAXONOMY)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./absent", "no such folder"),
        (
            "facebook/dinov3-convnext-large-pretrain-lvd1689m",
            "licence page: https://huggingface.co/",
        ),
        ("not a name!", "neither a folder here nor a model on the Hub"),
    ],
)
def test_model_that_cannot_be_had(name, message):
    with pytest.raises(UserError, match=message) as error:
        build_model(tiny(name), TAXONOMY)
    if name.startswith("facebook"):
        assert "facebook/dinov2-base needs no licence" in str(error.value)


@pytest.mark.parametrize("status", [401, 403])
def test_gated_model_names_licence_page_and_alternative(monkeypatch, status):
    import httpx
    from huggingface_hub.errors import GatedRepoError

    request = httpx.Request("GET", "https://huggingface.co/x")
    error = GatedRepoError("gated", response=httpx.Response(status, request=request))

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("model.source.snapshot_download", refuse)
    with pytest.raises(
        UserError, match="gated. Accept the licence at https://huggingface.co/a/b"
    ) as e:
        build_model(tiny("a/b"), TAXONOMY)
    assert "facebook/dinov2-base" in str(e.value)


def test_hub_format_cache_is_read_offline(tmp_path, monkeypatch):
    """A model id whose snapshot lies in the Hub's cache loads without network."""
    repo = tmp_path / "models--someone--tiny"
    save_backbone(repo / "snapshots" / "abc123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    import model.source as source

    original = source.snapshot_download
    monkeypatch.setattr(
        source, "snapshot_download", lambda *a, **k: original(*a, cache_dir=tmp_path, **k)
    )
    assert load_backbone(tiny("someone/tiny"), 1).num_tensors > 10


def test_frozen_backbone_stays_frozen(tmp_path):
    detector = build_model(tiny(save_backbone(tmp_path), "deformable_detr"), TAXONOMY)
    module = detector.backbone_module
    before = tensor_digests(module)
    detector.trainable.train()
    assert detector.model.training
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    features = module(torch.randn(1, 3, 64, 64, requires_grad=True)).feature_maps
    assert not features[0].requires_grad
    optimizer = torch.optim.SGD([p for p in detector.model.parameters() if p.requires_grad], lr=1.0)
    losses_of(detector.trainable, make_batch([1], num_classes=1)).total.backward()
    optimizer.step()
    assert tensor_digests(module) == before


def test_unfrozen_backbone_trains(tmp_path):
    detector = build_model(tiny(save_backbone(tmp_path), freeze="none"), TAXONOMY)
    losses_of(detector.trainable.train(), make_batch([1], num_classes=1)).total.backward()
    assert all(p.grad is not None for p in detector.backbone_module.parameters())


def test_normalization_comes_from_the_backbones_folder(tmp_path):
    own = load_backbone(tiny(save_backbone(tmp_path)), 1).normalization
    assert (own.mean, own.std, own.declared) == ((0.5,) * 3, (0.25,) * 3, True)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": false}')
    none = load_backbone(tiny(tmp_path), 1).normalization
    pixels, mask = (
        torch.full((1, 3, 2, 2), 255, dtype=torch.uint8),
        torch.ones(1, 2, 2, dtype=torch.bool),
    )
    mask[0, 0, 0] = False
    assert none(pixels, mask)[0, 0].tolist() == [[0.0, 1.0], [1.0, 1.0]]
    (tmp_path / "preprocessor_config.json").unlink()
    assert not load_backbone(tiny(tmp_path), 1).normalization.declared


def test_wrong_head_arguments_are_named(tmp_path):
    save_backbone(tmp_path)
    for arguments, message in (
        ({"cls_loss_coefficient": 2}, "cls_loss_coefficient: DetrConfig has no such argument"),
        ({"d_model": 30}, "model.head_args"),
        ({"num_queries": "many"}, "model.head_args.num_queries many: must be a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            build_model(tiny(tmp_path, head_args=arguments), TAXONOMY)


@pytest.mark.parametrize("head", TINY_HEAD)
def test_head_weights_are_taken_where_shapes_agree(tmp_path, head):
    save_backbone(tmp_path / "b")
    two_classes = Taxonomy(("a", "b"), (0, 1))
    donor = build_model(tiny(tmp_path / "b", head), two_classes)
    donor.model.save_pretrained(tmp_path / "donor")
    cfg = tiny(tmp_path / "b", head, init_from=str(tmp_path / "donor"))
    detector = build_model(cfg, TAXONOMY)
    theirs, ours = donor.model.state_dict(), detector.model.state_dict()
    agreeing = [n for n in ours if ours[n].shape == theirs[n].shape]
    assert all(torch.equal(ours[n], theirs[n]) for n in agreeing)
    assert 0 < len(ours) - len(agreeing) <= 11  # the class layers
    fresh = {n for n, _ in detector.model.named_parameters()} - set(agreeing)
    assert set(detector.fresh) == fresh != set()
    assert detector.taken + len(fresh) == count_head(detector)


def count_head(detector):
    inside = {id(p) for p in detector.backbone_module.parameters()}
    return sum(id(p) not in inside for p in detector.model.parameters())


def test_parameters_that_nothing_uses_are_not_trained(tmp_path):
    """DDP would wait for their gradients: level embeddings without encoder, stages not read."""
    arguments = {**TINY_HEAD["deformable_detr"], "encoder_layers": 0}
    cfg = tiny(
        save_backbone(tmp_path),
        "deformable_detr",
        head_args=arguments,
        freeze="none",
        out_features=["stage2"],
    )
    detector = build_model(cfg, TAXONOMY)
    assert "model.level_embed" in detector.unused
    assert any("stages.2" in name for name in detector.unused)
    losses_of(detector.trainable, make_batch([1], num_classes=1)).total.backward()
    trained = [p for p in detector.model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)


def test_maps_that_do_not_fit_the_head_are_refused(tmp_path):
    save_backbone(tmp_path)
    three_maps = tiny(tmp_path, "deformable_detr", out_features=["stage1", "stage2", "stage3"])
    with pytest.raises(UserError, match="model.out_features and model.head_args do not fit"):
        build_model(three_maps, TAXONOMY)


@pytest.mark.parametrize(
    ("features", "number"), [(["stage2", "stage3"], 1), (["stage3"], 2), (None, 9)]
)
def test_number_of_maps_that_the_backbone_does_not_give_is_refused(tmp_path, features, number):
    """Named stages and a number of the last ones contradict each other; neither wins silently."""
    save_backbone(tmp_path)
    cfg = tiny(tmp_path, "linear", out_features=features, head_args={"num_maps": number})
    given = r"stage2, stage3|stage3|stage1, stage2, stage3"
    with pytest.raises(UserError, match=rf"num_maps {number}: .* gives \d map\(s\), \[({given})\]"):
        build_model(cfg, TAXONOMY)


@pytest.mark.parametrize(("features", "number"), [(["stage2", "stage3"], 2), (None, 2)])
def test_number_of_maps_that_agrees_is_no_contradiction(tmp_path, features, number):
    save_backbone(tmp_path)
    cfg = tiny(tmp_path, "linear", out_features=features, head_args={"num_maps": number})
    assert build_model(cfg, TAXONOMY).model.config.backbone_config.out_features == [
        "stage2",
        "stage3",
    ]


def test_canary_two_stage_proposals_get_no_loss_from_transformers(tmp_path):
    """Why the head file hands them to the criterion."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    config = load_backbone(tiny(save_backbone(tmp_path)), 1).module.config
    arguments = {**TINY_HEAD["deformable_detr"], "auxiliary_loss": True, "with_box_refine": True}
    model = DeformableDetrForObjectDetection(
        DeformableDetrConfig(
            backbone_config=config, two_stage=True, two_stage_num_proposals=6, **arguments
        )
    )
    labels = [{"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    model(pixel_values=torch.randn(1, 3, 64, 64), labels=labels).loss.backward()
    assert model.model.enc_output.weight.grad is None


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_lies_beside_a_model_is_refused_and_not_asked_for(tmp_path, file, monkeypatch):
    """transformers would ask on stdin whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    save_backbone(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    content = json.loads((tmp_path / file).read_text())
    content["auto_map"] = {"AutoConfig": "evil.Config", "AutoImageProcessor": "evil.Processor"}
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"model.backbone: .*auto_map.*never run here"):
        build_model(tiny(tmp_path), TAXONOMY)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_read_for_init_from_and_prediction(tmp_path):
    from export.detector import load_detector

    save_backbone(tmp_path / "b")
    detector = build_model(tiny(tmp_path / "b"), TAXONOMY)
    folder = tmp_path / "pickled"
    detector.model.save_pretrained(folder)
    detector.trainable.processor.save_pretrained(folder)
    assert load_detector(str(folder)).names == ["plate"]
    (folder / "model.safetensors").unlink()
    torch.save(detector.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="model.init_from"):
        build_model(tiny(tmp_path / "b", init_from=str(folder)), TAXONOMY)
    with pytest.raises(UserError, match="--model .*safetensors"):
        load_detector(str(folder))
