"""Every head by its name."""

import importlib

from model.heads.family import HeadFamily

HEADS = {
    "detr": "model.heads.detr",
    "conditional_detr": "model.heads.conditional_detr",
    "deformable_detr": "model.heads.deformable_detr",
    "rt_detr_v2": "model.heads.rt_detr_v2",
    "d_fine": "model.heads.d_fine",
    "deimv2": "model.heads.deimv2",
    "rf_detr": "model.heads.rf_detr",
    "rf_detr_seg": "model.heads.rf_detr_seg",
    "maskformer": "model.heads.maskformer",
    "mask2former": "model.heads.mask2former",
    "linear": "model.heads.linear",
    "pmd": "model.heads.pmd",
}
"""Module of each `model.head`; it has FAMILY"""


def get_family(name: str) -> HeadFamily:
    """The head family of `model.head`."""
    return importlib.import_module(HEADS[name]).FAMILY
