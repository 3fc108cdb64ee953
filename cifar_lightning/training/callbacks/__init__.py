"""Callbacks: what watches or steers a run from outside the training step.

Imported here are those that every run has. Each other file is one method, which only conf/ names
(`_target_: cifar_lightning.training.callbacks.FILE.CLASS`): docs/delete.md says what goes with it.

A callback may have these attributes, which the run looks for in every one:

- `ONE_DEVICE`: a message that says why it works on one device only.
- `RUNS_LAST`: True if it is to be called after all others.
- `train_sizes`: image sizes in pixels that training steps see beside the data's own.
- `gradient_norm`: of the last step, a tensor; None before it. A NaN is reported with it.
- `stopped_by`: what metrics.json says of the run's end if the callback has stopped it; else None.
"""

from cifar_lightning.training.callbacks.interruption import Interruption
from cifar_lightning.training.callbacks.nan import TerminateOnNaN
from cifar_lightning.training.callbacks.target import TargetReached, validation_threshold
from cifar_lightning.training.callbacks.throughput import Throughput

__all__ = [
    "Interruption",
    "TargetReached",
    "TerminateOnNaN",
    "Throughput",
    "validation_threshold",
]
