"""What watches or steers a run from outside the step."""

from cifar_lightning.training.callbacks.extra_metric import FurtherMetric
from cifar_lightning.training.callbacks.grad_norm import GradientNorm
from cifar_lightning.training.callbacks.hard_examples import RevisitHardest
from cifar_lightning.training.callbacks.interruption import Interruption
from cifar_lightning.training.callbacks.mirror import MirrorSymmetry
from cifar_lightning.training.callbacks.nan import TerminateOnNaN
from cifar_lightning.training.callbacks.overfit import SameBatches
from cifar_lightning.training.callbacks.progressive_resizing import LowResolutionFirst
from cifar_lightning.training.callbacks.target import TargetReached, validation_threshold
from cifar_lightning.training.callbacks.throughput import Throughput

__all__ = [
    "FurtherMetric",
    "GradientNorm",
    "Interruption",
    "LowResolutionFirst",
    "MirrorSymmetry",
    "RevisitHardest",
    "SameBatches",
    "TargetReached",
    "TerminateOnNaN",
    "Throughput",
    "validation_threshold",
]
