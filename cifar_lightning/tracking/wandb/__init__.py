"""The W&B run of a training: never asks, and never stops the training."""

from cifar_lightning.tracking.wandb.logger import BoardLogger
from cifar_lightning.tracking.wandb.opening import open_board

__all__ = ["BoardLogger", "open_board"]
