"""Pretrained weights without a gate, and which of them can be had on this machine."""

from dataclasses import dataclass

import huggingface_hub
from huggingface_hub import constants

PATIENCE_S = 4.0
EMBEDDED = "street/backbone"


@dataclass(frozen=True)
class Weights:
    """Weights of the Hub, as their page has them."""

    name: str
    licence: str
    megabytes: float
    what: str
    key: str = "model.backbone"

    def __str__(self) -> str:
        return f"{self.name} ({self.what}, {self.megabytes:g} MB, {self.licence})"


DETECTORS = [
    Weights(
        "ustc-community/dfine-nano-coco", "Apache-2.0", 15.3, "D-FINE-N, COCO", "model.init_from"
    ),
    Weights(
        "ustc-community/dfine-small-coco", "Apache-2.0", 41.5, "D-FINE-S, COCO", "model.init_from"
    ),
    Weights(
        "ustc-community/dfine-medium-coco", "Apache-2.0", 78.7, "D-FINE-M, COCO", "model.init_from"
    ),
    Weights("PekingU/rtdetr_v2_r50vd", "Apache-2.0", 172, "RT-DETRv2, COCO", "model.init_from"),
]
BACKBONES = [
    Weights("facebook/dinov2-small", "Apache-2.0", 88.2, "DINOv2 ViT-S/14"),
    Weights("microsoft/swin-tiny-patch4-window7-224", "Apache-2.0", 113, "Swin-T, ImageNet-1k"),
    Weights("facebook/convnextv2-tiny-1k-224", "Apache-2.0", 115, "ConvNeXtV2-T, ImageNet-1k"),
]
GATED = "facebook/dinov3-convnext-tiny-pretrain-lvd1689m"
"""Stronger, and its licence has to be accepted on its page"""


def offline() -> bool:
    """Whether the Hub must not be asked."""
    return constants.HF_HUB_OFFLINE


def is_cached(name: str) -> bool:
    """Whether weights of the Hub lie in its cache."""
    found = huggingface_hub.try_to_load_from_cache(name, "model.safetensors")
    return isinstance(found, str)


def can_be_reached(name: str) -> bool:
    """Whether the Hub answers and has these weights for everybody."""
    if offline():
        return False
    try:
        info = huggingface_hub.HfApi().model_info(name, timeout=PATIENCE_S)
    except Exception:  # no network, a proxy's page, a refusal: other weights are taken
        return False
    return not info.gated


def obtainable(weights: list[Weights]) -> Weights | None:
    """The first that is in the cache, else the first of all if the Hub has it."""
    cached = next((w for w in weights if is_cached(w.name)), None)
    if cached is not None or not weights:
        return cached
    return weights[0] if can_be_reached(weights[0].name) else None
