"""Callbacks that make a trial fail, or wait until it is killed."""

import os
import signal
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint


class Failure(pl.Callback):
    """Fails at the end of the first epoch, or not.

    Args:
        how: `raise`, `kill`, `diverge` or `no`.
    """

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.how == "raise":
            raise RuntimeError("a fault of mine")
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "diverge":
            next(pl_module.parameters()).data.fill_(torch.nan)


class Pause(pl.Callback):
    """Waits after the first epoch of the trial that the environment variable PAUSE_IN numbers."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        best = trainer.checkpoint_callback
        assert isinstance(best, ModelCheckpoint)
        run_dir = Path(str(best.dirpath)).parent
        if trainer.current_epoch == 1 and run_dir.name == os.environ.get("PAUSE_IN"):
            (run_dir / "paused").touch()
            # A signal is noted, and ends the training after the next step.
            while not any(getattr(c, "signal", None) for c in trainer.callbacks):  # type: ignore[attr-defined]
                time.sleep(0.05)
