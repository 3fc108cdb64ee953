"""Saves a checkpoint and stops on Ctrl-C, or on SIGTERM as clusters send it."""

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
    """Finishes the current step, saves a checkpoint and stops when SIGINT or SIGTERM arrives.

    A resume continues with the next step, bit for bit. A validation or an accumulation of gradients
    in progress is finished first; at the end of an epoch the regular checkpoint is kept. Weights
    that are not finite are not saved. A second signal ends the process at once.

    Uses private attributes of Lightning 2.6: its flag for SIGTERM, which ends training between two
    steps, and two counters that are wrong after a resume within an epoch.

    Args:
        checkpoint: path to save to.

    Attributes:
        signal: the signal that arrived; None before.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.signal: signal.Signals | None = None
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._saving = False
        self._validated = False  # since the last step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's signal handlers, which would stop within a validation.

        Raises:
            UserError: on a resume of a run that was stopped within an epoch, as by its target.
        """
        if threading.current_thread() is threading.main_thread():  # others cannot
            # Not those that are ignored: a shell has background jobs (`&`) ignore Ctrl-C.
            handled = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
            previous = {number: signal.signal(number, self._on_signal) for number in handled}
            self._previous_handlers = previous
        cut_short = trainer.global_step and not trainer.is_last_batch
        if cut_short and not trainer.fit_loop.restarting and not trainer.should_stop:
            raise UserError(
                "resume: the run stopped within an epoch, as by its target, and did not save which "
                "images remain: it cannot be resumed with another target."
            )
        # Lightning skips this if the schedule has read the number of steps before.
        trainer.fit_loop._load_combined_loader_states()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop after this step if interrupted."""
        self._validated = False
        self._stop_if_interrupted(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Delay Lightning's stop: a run cannot be resumed from within a validation."""
        trainer._signal_connector.received_sigterm = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after this validation if interrupted."""
        if trainer.state.fn == "fit":
            self._validated = True
            self._stop_if_interrupted(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save a checkpoint between two steps."""
        # At the end of an epoch the regular checkpoint has just been written.
        interrupted = isinstance(exception, SIGTERMException) and not trainer.is_last_batch
        if interrupted and not _on_any_process(trainer, not is_finite(pl_module)):
            if self._validated:  # Lightning would count the step twice after a resume
                trainer.fit_loop.epoch_loop._batches_that_stepped -= 1
            self._saving = True
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
            self._saving = False
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the earlier signal handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def state_dict(self) -> dict[str, Any]:
        """Mark checkpoints that are saved here, from which a run can be resumed within an epoch."""
        return {"between_steps": True} if self._saving else {}

    def interrupted(self, trainer: pl.Trainer) -> bool:
        """Whether any process has received a signal; every process has to call this."""
        return _on_any_process(trainer, self.signal is not None)

    def exit_by_signal(self) -> NoReturn:
        """End the process as the signal would have ended it.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: after SIGTERM, with the code 143.
        """
        if self.signal is signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        repeated, self.signal = self.signal is not None, signal.Signals(number)
        if repeated:
            self.exit_by_signal()

    def _stop_if_interrupted(self, trainer: pl.Trainer) -> None:
        steps = trainer.fit_loop.batch_idx + 1
        if steps % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        ends_anyway = trainer.should_stop and trainer.fit_loop._can_stop_early
        if not ends_anyway and self.interrupted(trainer):
            trainer._signal_connector.received_sigterm = True


def _on_any_process(trainer: pl.Trainer, here: bool) -> bool:
    """Whether a condition holds in any process; every process has to call this."""
    if trainer.world_size == 1:
        return here
    # A GPU waits here, but Lightning's own reduction makes it wait at each step anyway.
    local = torch.tensor(float(here), device=trainer.strategy.root_device)
    return bool(trainer.strategy.reduce(local, reduce_op="max").item())
