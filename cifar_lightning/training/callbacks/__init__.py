"""Callbacks, which observe or change a run from outside the training step.

This module exports those that every run has. Each other file is one method, which only conf/ names
(`_target_: cifar_lightning.training.callbacks.FILE.CLASS`); docs/how-to/delete.md says what to
delete with it.

The run reads these attributes, if a callback has them:

- `ONE_DEVICE`: the error message for several devices, if the callback works on one only.
- `RUNS_LAST`: True if the callback has to be called after all others.
- `train_image_sizes`: sizes in pixels that training images have in addition to the data's own.
- `gradient_norm`: a tensor, the norm of the last step; None before it. Shown if a loss is NaN.
- `stopped_by`: the value for metrics.json if the callback has stopped the run; else None.
"""

from cifar_lightning.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from cifar_lightning.training.callbacks.interruption import Interruption
from cifar_lightning.training.callbacks.nan import TerminateOnNaN
from cifar_lightning.training.callbacks.target import TargetReached, validation_threshold
from cifar_lightning.training.callbacks.throughput import Throughput

__all__ = [
    "BestCheckpoint",
    "Interruption",
    "LastCheckpoint",
    "TargetReached",
    "TerminateOnNaN",
    "Throughput",
    "validation_threshold",
]
