"""Stops trials early that a study's pruner gives up."""

import logging
from typing import Any

import optuna
import pytorch_lightning as pl
from optuna.exceptions import StorageInternalError

log = logging.getLogger(__name__)


class Pruning(pl.Callback):
    """Reports each validation to Optuna, and stops the training if Optuna prunes the trial.

    A training that would end there anyway is not pruned.

    Args:
        trial: of a study with a pruner.
        monitor: the metric that the study optimises.

    Attributes:
        stopped_by: "pruned" if the trial was; None otherwise.
    """

    def __init__(self, trial: optuna.Trial, monitor: str) -> None:
        self.stopped_by: str | None = None
        self._trial = trial
        self._monitor = monitor
        self._validations = 0  # so far, those before a resume included

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the validation that has just ended."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        step = self._validations  # pruners count from 0
        self._validations += 1
        assert trainer.max_epochs is not None
        is_over = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        try:
            self._trial.report(trainer.callback_metrics[self._monitor].item(), step)
            should_prune = self._trial.should_prune()
        except StorageInternalError as error:
            log.warning("This validation could not be reported to the study: %s", error)
            return
        if should_prune and not is_over and not trainer.should_stop:
            self.stopped_by = "pruned"
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The number of validations, for a resume."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of validations."""
        self._validations = int(state_dict["validations"])
