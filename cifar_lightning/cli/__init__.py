"""The command line: Hydra with messages that help; imports no torch, so it answers at once."""

from cifar_lightning.cli.program import entry
from cifar_lightning.cli.resuming import resume_auto, resume_sweep
from cifar_lightning.cli.tasks import run_task

__all__ = [
    "entry",
    "resume_auto",
    "resume_sweep",
    "run_task",
]
