"""The check of a whole dataset, its figures, and a repaired copy."""
