"""What the loop in train_accelerate.py delegates: optimizer, counts, checkpoints, logs."""
