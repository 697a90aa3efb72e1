"""Detectors: a pretrained backbone that is really loaded, a head, and the loss on top."""
