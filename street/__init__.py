"""The synthetic street scenes, and how the backbone that comes with the repository was made."""
