"""Measurements, side by side with the alternative in one run: `python -m benchmarks.NAME`."""
