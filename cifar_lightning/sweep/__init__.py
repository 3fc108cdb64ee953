"""Sweeps (`-m`): which jobs are run, and a summary of them."""
