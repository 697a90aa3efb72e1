"""From splits to batches: the order of samples, resizing and augmentation, collation, workers."""
