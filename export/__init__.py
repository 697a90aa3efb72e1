"""The trained model as others use it: a transformers folder, a model card, a Hub repository."""
