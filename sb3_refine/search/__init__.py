"""The state of a search, its checkpoints and callbacks."""
