"""Which head an argument is of, for messages."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import transformers

CONFIGS = {
    "detr": "DetrConfig",
    "conditional_detr": "ConditionalDetrConfig",
    "deformable_detr": "DeformableDetrConfig",
    "rt_detr_v2": "RTDetrV2Config",
    "d_fine": "DFineConfig",
    "deimv2": "Deimv2Config",
    "maskformer": "MaskFormerConfig",
    "mask2former": "Mask2FormerConfig",
}


def owners(argument: str) -> Iterator[str]:
    """Names of the heads whose config of transformers has an argument."""
    for head, name in CONFIGS.items():
        kind: Any = getattr(transformers, name)
        if argument in {field.name for field in dataclasses.fields(kind)}:
            yield head
