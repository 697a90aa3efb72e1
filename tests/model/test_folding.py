import pytest
import torch
from safetensors.torch import load_file
from transformers import RTDetrResNetBackbone, RTDetrResNetConfig

from backbones import detector_on, write_backbone
from builders import four_images, part_of, tiny_run
from model.backbone import checkpoint_digests, tensor_digests
from model.folding import Folded, fold, folded_copy, unfolded
from runs import stopped_and_resumed

HEADS = {"hgnet_v2": "rt_detr_v2", "resnet": "detr"}


def distance(ones, others):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("kind", HEADS)
def test_a_frozen_backbone_computes_the_same_on_a_folded_copy(tmp_path, kind):
    detector = detector_on(tmp_path / kind, kind, HEADS[kind], freeze="all")
    backbone, pixels = detector.backbone_module, torch.randn(2, 3, 64, 96)
    names = [name for name, _ in detector.model.named_modules()]
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        backbone.to(dtype)
        maps = backbone(pixels.to(dtype)).feature_maps
        with unfolded(detector.model):
            wanted = backbone(pixels.to(dtype)).feature_maps
        assert 0 < distance(maps, wanted) < limit
        assert all(found.is_contiguous() for found in maps)
        alone = backbone(pixels[:1].to(dtype)).feature_maps
        assert distance(alone, [found[:1] for found in maps]) < limit
    assert names == [name for name, _ in detector.model.named_modules()]


def test_the_copy_follows_the_backbone(tmp_path):
    backbone = detector_on(tmp_path / "resnet", "resnet", "detr", freeze="all").backbone_module
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(pixels).feature_maps[-1].clone()
        assert torch.equal(before, backbone(pixels).feature_maps[-1])
        next(b for name, b in backbone.named_buffers() if name.endswith("running_mean")).add_(1.0)
        after = backbone(pixels).feature_maps[-1]
        with unfolded(backbone):
            assert distance([after], backbone(pixels).feature_maps[-1:]) < 1e-5
    assert distance([after], [before]) > 1e-3


@pytest.mark.parametrize("kind", HEADS)
def test_a_step_leaves_the_frozen_tensors_those_of_the_file(tmp_path, kind):
    detector = detector_on(tmp_path / kind, kind, HEADS[kind], freeze="all")
    trainable = detector.trainable.train()
    trained = [p for p in detector.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    batch = part_of(four_images("uneven"), slice(0, 4))
    trainable(batch, trainable.counts(batch).alone).total.backward()
    optimizer.step()
    assert isinstance(detector.backbone_module.forward, Folded)
    files = set(checkpoint_digests(tmp_path / kind).values())
    assert set(tensor_digests(detector.backbone_module).values()) <= files
    assert not any(p.requires_grad for p in detector.backbone_module.parameters())


def test_rt_detrs_resnet_computes_the_same():
    torch.manual_seed(0)
    config = RTDetrResNetConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, embedding_size=8, layer_type="basic"
    )
    backbone = RTDetrResNetBackbone(config).eval()
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)
        pixels = torch.randn(1, 3, 64, 64)
        ones, others = (m(pixels).feature_maps for m in (folded_copy(backbone), backbone))
    assert 0 < distance(ones, others) < 1e-5


@pytest.mark.parametrize("kind", ["convnext", "dinov2"])
def test_what_has_no_batch_norm_is_left_as_it_is(tmp_path, kind):
    head = "detr"
    backbone = detector_on(tmp_path / kind, kind, head, freeze="all").backbone_module
    own = backbone.forward
    fold(backbone)
    assert backbone.forward is own
    assert not isinstance(own, Folded)


@pytest.mark.usefixtures("fresh_accelerator")
def test_run_on_a_folded_backbone_goes_on_bit_exactly_and_exports_the_file(tmp_path):
    write_backbone(tmp_path / "backbone", "hgnet_v2")
    one, _ = stopped_and_resumed(tmp_path, lambda **keys: tiny_run(tmp_path, **keys))
    exported = load_file(one / "export/model.safetensors")
    contents = {(tuple(t.shape), t.numpy().tobytes()) for t in exported.values()}
    file = load_file(tmp_path / "backbone/model.safetensors")
    weights = {n: t for n, t in file.items() if not n.endswith("num_batches_tracked")}
    assert len(weights) > 100
    for name, tensor in weights.items():
        assert (tuple(tensor.shape), tensor.numpy().tobytes()) in contents, name
