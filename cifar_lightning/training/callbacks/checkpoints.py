"""Saves the best and the last checkpoint, under names that say what they are."""

import os
import shutil
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from cifar_lightning.errors import UserError

BEST = "best.ckpt"


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose best checkpoint is always `best.ckpt` in its folder.

    If it keeps several checkpoints (`save_top_k`) or has another `filename`, each has its own name,
    and `best.ckpt` is a hard link to the best, or a copy if the disk has no links. Lightning's
    class would save all of them to one path if the name is fixed.

    It saves right after a validation, before a callback such as EMAWeightAveraging changes the
    weights at the end of the epoch. Without a metric (`monitor=null`) it saves at the end of each
    epoch. For this it uses private methods and attributes of Lightning 2.6.

    Args:
        dirpath: folder to save to: `checkpoints` in the run's.
        monitor: the metric; None for the last checkpoint.
        mode: `max` if the largest value is best, `min` if the smallest is.
        filename: without `.ckpt`; epoch, step and metrics stand in braces: `{val/acc:.4f}`.
        save_top_k: number of checkpoints to keep; -1 for all.
        every_n_epochs: only validations of every n-th epoch are compared.

    Raises:
        ValueError: if no checkpoint would be kept.
    """

    def __init__(
        self,
        dirpath: str,
        monitor: str | None,
        mode: Literal["max", "min"],
        filename: str = "best",
        save_top_k: int = 1,
        every_n_epochs: int = 1,
    ) -> None:
        if save_top_k == 0 or every_n_epochs < 1:
            raise ValueError("save_top_k=0 or every_n_epochs<1 would leave no checkpoint to test")
        if save_top_k != 1 and "{" not in filename:
            filename += "-{step}"
        super().__init__(
            dirpath,
            filename,
            monitor,
            mode=mode,
            save_top_k=save_top_k,
            every_n_epochs=every_n_epochs,
            auto_insert_metric_name=False,  # val/acc in a file name would make a folder
            enable_version_counter=False,  # replace best.ckpt, and do not add best-v1.ckpt
        )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if this validation is among the best."""
        logged, monitor = trainer.callback_metrics, self.monitor or ""
        if monitor.startswith("val/") and monitor not in logged and trainer.state.fn == "fit":
            raise UserError(
                f"callbacks.best.monitor={monitor} chooses the best checkpoint, but "
                f"{type(pl_module).__name__} does not log it in a validation. Log it, or name what "
                "is logged; callbacks.best.monitor=null tests the last checkpoint."
            )
        if self.monitor is not None:
            # There may be several validations between two optimizer steps.
            self._last_global_step_saved = -1
        super().on_validation_end(trainer, pl_module)
        self.name_best(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of an epoch if there is no metric."""
        super().on_train_epoch_end(trainer, pl_module)
        self.name_best(trainer)

    def _should_save_on_train_epoch_end(self, trainer: pl.Trainer) -> bool:
        return self.monitor is None

    def name_best(self, trainer: pl.Trainer) -> None:
        """Make `best.ckpt` the best checkpoint so far."""
        path = Path(self.best_model_path)
        if path.name == BEST or not trainer.is_global_zero or not path.is_file():
            return
        best, temporary = path.with_name(BEST), path.with_name(f"{BEST}.{os.getpid()}.tmp")
        if best.exists() and best.samefile(path):
            return
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        temporary.replace(best)


class LastCheckpoint(ModelCheckpoint):
    """Saves `last.ckpt` after each whole epoch.

    If training ends within an epoch, `Interruption` saves it, with what a resume needs.

    Args:
        dirpath: folder to save to: `checkpoints` in the run's.
    """

    def __init__(self, dirpath: str) -> None:
        super().__init__(
            dirpath, "last", save_on_train_epoch_end=True, enable_version_counter=False
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of a whole epoch."""
        if trainer.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)
