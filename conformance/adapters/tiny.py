"""Tiny checkpoints with random weights, the same for every framework that loads transformers' models."""

from pathlib import Path

from conformance.dataset import NAMES, SIDE


def write_detr(folder: Path, dropout: bool) -> None:
    """A DETR of 100,000 parameters on a tiny ResNet, with the processor that the detection scripts load."""
    import torch
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    rate = 0.1 if dropout else 0.0
    torch.manual_seed(0)
    stem = ResNetConfig(  # type: ignore[call-arg]
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = DetrConfig(  # type: ignore[call-arg]
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=stem,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=10,
        dropout=rate,
        attention_dropout=rate,
        activation_dropout=rate,
        id2label=dict(enumerate(NAMES)),
        label2id={name: number for number, name in enumerate(NAMES)},
    )
    model = DetrForObjectDetection(config)
    with torch.no_grad():  # all say that they see a square, which some of them do: an AP above 0
        model.class_labels_classifier.bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
    model.save_pretrained(folder)
    size = {"max_height": SIDE, "max_width": SIDE}
    pad_size = {"height": SIDE, "width": SIDE}
    DetrImageProcessor(size=size, pad_size=pad_size).save_pretrained(folder)


def write_mask2former(folder: Path, dropout: bool) -> None:
    """A Mask2Former on a tiny Swin, with the processor that the script for instances loads."""
    import torch
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    stem = SwinConfig(  # type: ignore[call-arg]
        image_size=SIDE,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        window_size=2,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(  # type: ignore[call-arg]
        backbone_config=stem,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        dim_feedforward=64,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        num_queries=10,
        dropout=0.1 if dropout else 0.0,
        train_num_points=256,
        num_labels=len(NAMES),
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    Mask2FormerImageProcessor(size=size, ignore_index=255).save_pretrained(folder)


DETR_ENDS = {"missing": "layer.0.convolution.weight", "misnamed": "fc1.weight"}
MASK2FORMER_ENDS = {"missing": "downsample.reduction.weight", "misnamed": "class_predictor.bias"}


def damage(
    model: Path, folder: Path, how: str, ends: dict[str, str] = DETR_ENDS
) -> tuple[Path, str]:
    """A copy of a checkpoint in which a tensor of its backbone is missing, or one of its head misnamed.

    Args:
        ends: how the names of these two end, which no loader changes.
    """
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    end = ends[how]
    name = next(name for name in tensors if name.endswith(end))
    tensor = tensors.pop(name)
    if how == "misnamed":
        tensors[name.replace(end, f"_{end}")] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, end
