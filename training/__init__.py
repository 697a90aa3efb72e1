"""What the loop delegates: optimizer, counts, averages, state, checkpoints, stopping."""
