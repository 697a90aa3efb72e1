"""Places and ways of writing on disk."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent
"""The repository"""
