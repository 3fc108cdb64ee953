"""What watches or steers a run from outside the step."""

from cifar_lightning.callbacks.gradients import GradientNorm
from cifar_lightning.callbacks.interruption import Interruption
from cifar_lightning.callbacks.metric import FurtherMetric
from cifar_lightning.callbacks.mirror import MirrorSymmetry
from cifar_lightning.callbacks.nan import TerminateOnNaN
from cifar_lightning.callbacks.overfit import SameBatches
from cifar_lightning.callbacks.pruning import Pruning
from cifar_lightning.callbacks.resolution import LowResolutionFirst
from cifar_lightning.callbacks.revisit import RevisitHardest
from cifar_lightning.callbacks.target import TargetReached, validation_threshold
from cifar_lightning.callbacks.throughput import Throughput

__all__ = [
    "FurtherMetric",
    "GradientNorm",
    "Interruption",
    "LowResolutionFirst",
    "MirrorSymmetry",
    "Pruning",
    "RevisitHardest",
    "SameBatches",
    "TargetReached",
    "TerminateOnNaN",
    "Throughput",
    "validation_threshold",
]
