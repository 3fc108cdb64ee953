"""The W&B logger. It never asks for a login, and never stops or slows a training.

docs/how-to/dashboard.md says what it records. To remove W&B, delete this folder and the files in
conf/logger/ that name it.
"""

from cifar_lightning.tracking.wandb.logger import WandbRunLogger
from cifar_lightning.tracking.wandb.start import start_run

__all__ = ["WandbRunLogger", "start_run"]
