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


def damage(model: Path, folder: Path, how: str) -> tuple[Path, str]:
    """A copy of a checkpoint in which a convolution of its backbone is missing, or a matrix of its
    encoder misnamed; and the end of the tensor's name, which no loader changes."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    end = {"missing": "layer.0.convolution.weight", "misnamed": "fc1.weight"}[how]
    name = next(name for name in tensors if name.endswith(end))
    tensor = tensors.pop(name)
    if how == "misnamed":
        tensors[name.replace("fc1", "fc_1")] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, end
