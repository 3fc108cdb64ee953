"""Checkpoints: writing, reading, what may be trusted in one, and trained networks."""
