"""A callback that ends a job in its second epoch."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from cifar_lightning.training.callbacks.interruption import Interruption


class Crash(pl.Callback):
    """Ends the job in one of many ways, until there is a file `fixed` in the working directory.

    Args:
        how: `raise`, `kill`, `diverge`, `preempt`; others do nothing.
        number: of the job; unused.
    """

    def __init__(self, how: str, number: int = 0) -> None:
        self.how = how

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch != 1 or batch_idx != 1 or Path("fixed").exists():
            return
        if self.how == "raise":
            raise RuntimeError("a fault of the callback")
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "diverge":
            for parameter in pl_module.parameters():
                parameter.data.fill_(torch.nan)
        if self.how == "preempt" and not Path("preempted").exists():
            Path("preempted").touch()
            caller = multiprocessing.parent_process()
            assert caller is not None
            # SLURM tells all processes of a job; submitit's own is the one that has to know.
            for pid in (os.getpid(), os.getppid(), caller.pid):
                assert pid is not None
                os.kill(pid, signal.SIGUSR2)
            while not any(c.signal for c in trainer.callbacks if isinstance(c, Interruption)):  # type: ignore[attr-defined]
                time.sleep(0.1)  # until that one has had this process save its state
