"""The configuration of a run: every key, how it is read, what contradicts what."""
