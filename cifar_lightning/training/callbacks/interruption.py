"""Ends training on a signal, and saves what a resume needs if it ends within an epoch."""

import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, Timer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from cifar_lightning.system.signals import is_repeated
from cifar_lightning.training.callbacks.nan import is_finite
from cifar_lightning.training.callbacks.target import TargetReached
from cifar_lightning.training.callbacks.throughput import Throughput

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(pl.Callback):
    """Saves a checkpoint if training ends within an epoch; a resume from it continues bit for bit.

    Training ends within an epoch by Ctrl-C or SIGTERM (which clusters send), by a limit
    (`max_steps`, `max_time`), by the target, or by another callback. The current step is finished
    first, and so are a validation that is due and an accumulation of gradients. A second signal
    after more than a second ends the process at once. At the end of an epoch, the regular
    checkpoint is kept. Weights that are not finite are not saved.

    Every checkpoint holds `stopped`, the configuration of the callbacks if one of them has stopped
    the training, and `frozen`, the names of frozen parameters and batch norms.

    Uses private attributes of Lightning 2.6: its flag for SIGTERM, which ends training between two
    steps; whether a validation is due; and two counters that are wrong after a resume within an
    epoch.

    Args:
        checkpoint: path to save to.
        callbacks: the configuration of the run's callbacks, by name.

    Attributes:
        callbacks: as given.
        signal: the signal that arrived; None before.
    """

    def __init__(self, checkpoint: Path, callbacks: Mapping[str, Any] | None = None) -> None:
        self.checkpoint = checkpoint
        self.callbacks = callbacks
        self.signal: signal.Signals | None = None
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._saving = False
        self._saved_step = -1
        self._validated = False  # since the last step
        self._stop_later = False  # once the accumulated gradients have led to a step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's signal handlers, which would stop within a validation."""
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            # Ignored signals stay ignored: a shell makes background jobs (`&`) ignore Ctrl-C.
            handled = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
            previous = {number: signal.signal(number, self._on_signal) for number in handled}
            self._previous_handlers = previous
        # Lightning skips this if the schedule has already read the number of steps.
        trainer.fit_loop._load_combined_loader_states()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if the training ends after this step; stop if interrupted."""
        self._validated = False
        self._after_step(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Delay Lightning's stop: a run cannot be resumed from within a validation."""
        trainer._signal_connector.received_sigterm = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if the training ends after this validation; stop if interrupted."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated = True
            if self._saved_step == trainer.global_step:  # only a stop led to this validation
                self._add_validation(trainer)
            self._after_step(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save a checkpoint if a signal has ended the training between two steps."""
        if isinstance(exception, SIGTERMException):
            if self._validated:  # Lightning would count the step twice after a resume
                trainer.fit_loop.epoch_loop._batches_that_stepped -= 1
            self._save(trainer, pl_module)
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the earlier signal handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def state_dict(self) -> dict[str, Any]:
        """Mark the checkpoints saved here: a run can be resumed from them within an epoch."""
        return {"between_steps": True} if self._saving else {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the callbacks' configuration if one has stopped the training, and what is frozen.

        A stop by a target or a time limit is not stored: a resume, which may have another target or
        limit, decides again.
        """
        frozen = [name for name, p in pl_module.named_parameters() if not p.requires_grad]
        modules = pl_module.named_modules()
        frozen += [name for name, m in modules if not getattr(m, "track_running_stats", True)]
        checkpoint["frozen"] = frozen
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        early = any(isinstance(c, EarlyStopping) and c.stopping_reason_message for c in callbacks)
        decided_again = any(
            (isinstance(c, TargetReached) and c.reached_after is not None)
            or (isinstance(c, Timer) and (left := c.time_remaining()) is not None and left <= 0)
            for c in callbacks
        )
        stopped = trainer.should_stop and (early or not decided_again)
        checkpoint["stopped"] = self.callbacks if stopped else None

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
        if is_repeated():
            return
        is_second, self.signal = self.signal is not None, signal.Signals(number)
        if is_second:
            self.exit_by_signal()

    def _after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = trainer.fit_loop.batch_idx + 1
        if steps % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            # A checkpoint does not hold gradients: wait for the optimizer step.
            self._stop_later |= trainer.should_stop
            trainer.should_stop = False
            return
        trainer.should_stop |= self._stop_later
        stops = trainer.should_stop and may_stop(trainer)
        if stops or 0 <= trainer.max_steps <= trainer.global_step:
            # If only the stop leads to a validation, it follows the checkpoint: the training would
            # have continued without it.
            if self._validated or not _validation_is_due(trainer):
                self._save(trainer, pl_module)
        elif self.interrupted(trainer):
            trainer._signal_connector.received_sigterm = True

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # At the end of an epoch the regular checkpoint is saved.
        if trainer.is_last_batch or self._saved_step == trainer.global_step:
            return
        if _on_any_process(trainer, not is_finite(pl_module)):
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.stop(pl_module)  # so that its state has the time of this step
        self._saved_step = trainer.global_step
        self._saving = True
        trainer.save_checkpoint(self.checkpoint, weights_only=False)
        self._saving = False

    def _add_validation(self, trainer: pl.Trainer) -> None:
        """Add the accuracy of a validation to the saved checkpoint, and nothing else of it."""
        if not trainer.is_global_zero:
            return
        content = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TargetReached):
                content["callbacks"][callback.state_key] = callback.state_dict()
        trainer.strategy.checkpoint_io.save_checkpoint(content, self.checkpoint)


def may_stop(trainer: pl.Trainer) -> bool:
    """Whether `min_epochs` and `min_steps` allow the training to end now."""
    enough_epochs = trainer.current_epoch >= (trainer.min_epochs or 0)
    return enough_epochs and trainer.global_step >= (trainer.min_steps or 0)


def _validation_is_due(trainer: pl.Trainer) -> bool:
    """Whether a validation follows the current step even if the training continues."""
    stop, trainer.should_stop = trainer.should_stop, False
    # Its argument, the data fetcher, matters only for a user's own (DataLoaderIterDataFetcher).
    due = trainer.fit_loop.epoch_loop._should_check_val_fx(None)  # type: ignore[arg-type]
    trainer.should_stop = stop
    return bool(due)


def _on_any_process(trainer: pl.Trainer, here: bool) -> bool:
    """Whether a condition holds in any process; every process has to call this."""
    if trainer.world_size == 1:
        return here
    # A GPU waits here, but Lightning's own reduction makes it wait at each step anyway.
    local = torch.tensor(float(here), device=trainer.strategy.root_device)
    return bool(trainer.strategy.reduce(local, reduce_op="max").item())
