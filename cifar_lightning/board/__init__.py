"""The W&B run of a training: never asks, and never stops the training."""

from cifar_lightning.board.logger import BoardLogger
from cifar_lightning.board.opening import open_board

__all__ = ["BoardLogger", "open_board"]
