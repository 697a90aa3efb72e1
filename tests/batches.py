"""Batches of special kinds."""

import dataclasses

import torch


def binary(batch):
    """The batch with cells that are covered or not, nothing ignored and nothing padded."""
    masks = (batch.objects.masks > 8).byte() * 16
    return dataclasses.replace(
        batch,
        objects=dataclasses.replace(batch.objects, masks=masks),
        pixel_mask=torch.ones_like(batch.pixel_mask),
        ignored=None,
    )
