"""The command line: Hydra with messages that help; imports no torch, so it answers at once."""

from cifar_lightning.cli.program import entry, run_task

__all__ = ["entry", "run_task"]
