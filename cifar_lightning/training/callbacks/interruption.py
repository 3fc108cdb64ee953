"""Being told to stop: by Ctrl-C, or by SIGTERM, as clusters do before they take a machine away."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from cifar_lightning.errors import UserError
from cifar_lightning.training.callbacks.nan import is_finite

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(pl.Callback):
    """Has a training that is told to stop end its step, save itself, and stop.

    A resume goes on with the next step, as if nothing had been. A validation is ended too, and
    gradients that are accumulated; at the end of an epoch the checkpoint is that of the epoch.
    Weights that are no finite numbers are not saved. A second signal does not wait for any of this.

    Private parts of Lightning 2.6 are used: its flag for SIGTERM, which ends a training between two
    steps, and two that put right how it counts and goes on within an epoch.

    Args:
        checkpoint: file to save to.

    Attributes:
        signal: that has come; None before.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._saving = False
        self._validated = False  # since the last step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, in the place of Lightning, which would stop within a validation.

        Raises:
            UserError: if this goes on after an epoch that was ended early, and not to end there.
        """
        if threading.current_thread() is threading.main_thread():  # no other may
            # A shell has what it starts by & ignore Ctrl-C, which is for what is in front.
            heard = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        cut_short = trainer.global_step and not trainer.is_last_batch
        if cut_short and not trainer.fit_loop.restarting and not trainer.should_stop:
            raise UserError(
                "resume: the run ended within an epoch, as by its target, and which images that "
                "epoch had left was not saved: it cannot go on to another target."
            )
        # Lightning has not, where the schedule has asked for the number of steps before.
        trainer.fit_loop._load_combined_loader_states()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Have the training stop after this step."""
        self._validated = False
        self._stop_if_told(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have it go through: what Lightning could save within it is no state to go on from."""
        trainer._signal_connector.received_sigterm = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the training stop after the step that this validation came after."""
        if trainer.state.fn == "fit":
            self._validated = True
            self._stop_if_told(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save, between two steps."""
        # At an epoch's end the regular checkpoint has just been written.
        told = isinstance(exception, SIGTERMException) and not trainer.is_last_batch
        if told and not _on_any(trainer, not is_finite(pl_module)):
            if self._validated:  # Lightning counts the step again where it goes on from there
                trainer.fit_loop.epoch_loop._batches_that_stepped -= 1
            self._saving = True
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
            self._saving = False
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def state_dict(self) -> dict[str, Any]:
        """Marks checkpoints that were saved here, from which a run can go on within an epoch."""
        return {"between_steps": True} if self._saving else {}

    def is_told(self, trainer: pl.Trainer) -> bool:
        """Whether any of the processes was told to stop; all ask at once, and stop together."""
        return _on_any(trainer, self.signal is not None)

    def leave(self) -> NoReturn:
        """End as programs do that were told to.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: after SIGTERM, with the code 143.
        """
        if self.signal is signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, signal.Signals(number)
        if again:
            self.leave()

    def _stop_if_told(self, trainer: pl.Trainer) -> None:
        steps = trainer.fit_loop.batch_idx + 1
        if steps % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        ends_anyway = trainer.should_stop and trainer.fit_loop._can_stop_early
        if not ends_anyway and self.is_told(trainer):
            trainer._signal_connector.received_sigterm = True


def _on_any(trainer: pl.Trainer, here: bool) -> bool:
    """Whether something is so in any of the processes, which all ask at once."""
    if trainer.world_size == 1:
        return here
    # The device waits for this, as it does for a question of Lightning's own at each step.
    mine = torch.tensor(float(here), device=trainer.strategy.root_device)
    return bool(trainer.strategy.reduce(mine, reduce_op="max").item())
