"""Callbacks, which observe or change a run from outside the training step.

This module exports those that every run has. Each other file is one method, which only conf/ names
(`_target_: cifar_lightning.training.callbacks.FILE.CLASS`); docs/how-to/delete.md says what to
delete with it.

A callback may have these attributes, which the run reads:

- `ONE_DEVICE`: the error message for more than one device, if it works on one only.
- `RUNS_LAST`: True if it has to be called after all others.
- `train_image_sizes`: image sizes in pixels of training steps, beside the data's own.
- `gradient_norm`: of the last step, a tensor; None before it. Shown when a loss is NaN.
- `stopped_by`: the value in metrics.json if the callback has stopped the run; else None.
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
