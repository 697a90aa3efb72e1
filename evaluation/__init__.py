"""Validation: predictions of all ranks, and COCO metrics."""
