"""Saves the best and the last checkpoint, under names that say what they are."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

BEST = "best.ckpt"


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, whose best checkpoint always is `best.ckpt` in its folder.

    If it keeps several (`save_top_k`), or names them otherwise (`filename`), each has a name of its
    own, and `best.ckpt` is a hard link to the best, or a copy where there are no links. Lightning's
    own class would save all of them to one path if the name is fixed.

    Each validation is compared, and the weights are saved right after it, before a callback such as
    EMAWeightAveraging changes them at the end of the epoch. Without a metric (`monitor=null`) it
    saves at the end of each epoch.

    Uses private attributes of Lightning 2.6: when it saves, and what it has saved last.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Complete a fixed file name if several checkpoints are kept."""
        super().setup(trainer, pl_module, stage)
        if self.save_top_k not in (0, 1) and self.filename and "{" not in self.filename:
            self.filename += "-{step}"

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if `every_n_train_steps` asks for it, by a metric at the next validation."""
        if self.monitor is None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self._name_best(trainer)
        elif self._every_n_train_steps or self._train_time_interval is not None:
            self._defer_save_until_validation = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if this validation is among the best."""
        if self.monitor is not None:
            # Between two optimizer steps there may be several validations.
            self._last_global_step_saved = -1
        super().on_validation_end(trainer, pl_module)
        self._name_best(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of an epoch if there is no metric."""
        super().on_train_epoch_end(trainer, pl_module)
        self._name_best(trainer)

    def _should_save_on_train_epoch_end(self, trainer: pl.Trainer) -> bool:
        return self.monitor is None

    def _name_best(self, trainer: pl.Trainer) -> None:
        path = Path(self.best_model_path)
        if not self.best_model_path or path.name == BEST or not trainer.is_global_zero:
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

    Where a training ends within an epoch, `Interruption` saves it, with what a resume needs.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of a whole epoch."""
        if trainer.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)
