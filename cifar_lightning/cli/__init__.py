"""The command line: Hydra with messages that help; imports no torch, so it answers at once."""

from cifar_lightning.cli.composing import CONF, PACKAGE, compose, key_of, title
from cifar_lightning.cli.messages import explain
from cifar_lightning.cli.program import entry
from cifar_lightning.cli.resuming import resume_auto, resume_sweep
from cifar_lightning.cli.tasks import run_task
from cifar_lightning.cli.typed import prepare_arguments

__all__ = [
    "CONF",
    "PACKAGE",
    "compose",
    "entry",
    "explain",
    "key_of",
    "prepare_arguments",
    "resume_auto",
    "resume_sweep",
    "run_task",
    "title",
]
