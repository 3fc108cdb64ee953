"""A training that somebody watches, and may end."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl


class Pruning(pl.Callback):
    """Tells each validation accuracy, and ends the training if the answer is that it is hopeless.

    A training that ends there anyway is not pruned.

    Args:
        is_hopeless: from the number of validations so far, counted over resumes too, and the
            accuracy of the last one.

    Attributes:
        pruned: whether that was the answer.
    """

    def __init__(self, is_hopeless: Callable[[int, float], bool]) -> None:
        self.pruned = False
        self._is_hopeless = is_hopeless
        self._validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell of the validation that has just ended."""
        if trainer.state.fn != "fit":
            return
        self._validations += 1
        accuracy = trainer.callback_metrics["val/acc"].item()
        is_hopeless = self._is_hopeless(self._validations, accuracy)
        assert trainer.max_epochs is not None
        is_over = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        if is_hopeless and not is_over and not trainer.should_stop:
            self.pruned = True
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were, for a resume."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._validations = int(state_dict["validations"])
