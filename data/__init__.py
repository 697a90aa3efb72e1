"""Labelled images in, batches out: readers, splits, decoding, augmentation, data order, collate."""
