"""Validation: collect predictions over ranks, COCO metrics, drawings."""
