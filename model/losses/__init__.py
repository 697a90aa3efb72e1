"""Matching and losses, normalised by the counts of the whole step."""
