"""Reads, writes and validates checkpoints and run records; loads pretrained networks."""
