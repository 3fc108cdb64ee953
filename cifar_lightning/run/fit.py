"""Runs Trainer.fit and Trainer.test, and handles interruptions and resumes."""

import contextlib
import signal
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    WeightAveraging,
)
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import nn

from cifar_lightning.checkpoints.io import Checkpoint, read_checkpoint
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError
from cifar_lightning.run.best import restore_best
from cifar_lightning.run.compile import WarmUp
from cifar_lightning.run.devices import keep_freed_memory
from cifar_lightning.tracking.console import note
from cifar_lightning.training.callbacks import BestCheckpoint, Interruption
from cifar_lightning.training.callbacks.checkpoints import BEST
from cifar_lightning.training.module import Classifier

RESTORED = ("frozen", "schedule_steps", "stopped")  # of a checkpoint, by CorrectRestoredState


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings of Lightning that do not apply here."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # batches come from memory by one indexing
            ".*exists and is not empty.*",  # on a resume it has checkpoints
            ".*smaller than the logging interval.*",  # metrics are logged once a validation
            ".*sync_dist=True.*",  # torchmetrics sums over the devices
            ".*callbacks used to create the checkpoint need to be provided.*",  # one was removed
            ".*isinstance\\(treespec, LeafSpec\\).*",  # between torch 2.15 and Lightning 2.6
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


class Begin(pl.Callback):
    """Calls a function once, when a training has passed all checks.

    That is just before the first step of a new run. A resumed run has completed a step first: only
    then is it known that the restored network, optimizer and schedule work.

    Args:
        begin: the function.
        resumes: whether the run is resumed.

    Attributes:
        begun: whether the function was called.
    """

    def __init__(self, begin: Callable[[], object], resumes: bool) -> None:
        self.begin = begin
        self.resumes = resumes
        self.begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a new run."""
        if not self.resumes:
            self.once()

    def on_train_batch_end(self, *_: Any) -> None:
        """Begin a resumed run."""
        self.once()

    def once(self) -> None:
        """Call the function, unless it was called before."""
        if not self.begun:
            self.begun = True
            self.begin()


class CorrectRestoredState(pl.Callback):
    """Restores what Lightning does not, and corrects what it restores, in a resumed run.

    Args:
        callbacks: their configuration: a run that a callback has stopped trains on with another.

    Attributes:
        lost: whether the run's best checkpoint is not in its folder any more.
    """

    def __init__(self, callbacks: object) -> None:
        self.callbacks = callbacks
        self.lost = False
        self._checkpoint: dict[str, Any] = {}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have the state name the best checkpoints that are there, and the present patience."""
        self._checkpoint = {key: checkpoint.get(key) for key in RESTORED}
        for early_stopping in trainer.early_stopping_callbacks:
            if state := checkpoint["callbacks"].get(early_stopping.state_key):
                state["patience"] = early_stopping.patience  # which the resume may change
        averages = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if "current_model_state" in checkpoint and not averages:
            note("weights", "averaged so far: this resume starts from the average, and trains it")
        self.lost = restore_best(trainer, checkpoint)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if the run had been stopped; set what Lightning does not restore."""
        if self.callbacks is not None and self._checkpoint["stopped"] == self.callbacks:
            trainer.should_stop = True
        else:
            for early_stopping in trainer.early_stopping_callbacks:
                early_stopping.stopping_reason_message = None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                # Lightning skips this where it resumes within an epoch.
                callback.on_train_epoch_start(trainer, pl_module)
        before, now = self._checkpoint["schedule_steps"], getattr(pl_module, "schedule_steps", None)
        if None not in (before, now) and before != now:
            note("schedule", f"of the learning rate: {now:,} steps, not {before:,} as before")
        if self._checkpoint["frozen"] is not None:
            _freeze(pl_module, self._checkpoint["frozen"])


def _freeze(module: nn.Module, frozen: Collection[str]) -> None:
    """Freeze these parameters and batch norms alone; BaseFinetuning does not restore which are."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, part in module.named_modules():
        if hasattr(part, "track_running_stats"):
            part.track_running_stats = name not in frozen


def fit(
    trainer: pl.Trainer,
    classifier: Classifier,
    data: ImageData,
    config: DictConfig,
    interruption: Interruption | None = None,
    begin: Callable[[], object] = lambda: None,
) -> bool:
    """Train a classifier.

    Args:
        trainer: callbacks are added to it.
        classifier: to train.
        data: to train on.
        config: `resume` and `trainer.compile` are read.
        interruption: saves a checkpoint where training ends within an epoch; None for Lightning's
            default.
        begin: called once the training has passed all checks, see `Begin`.

    Returns:
        Whether training was finished, and not interrupted.

    Raises:
        UserError: if Lightning refuses the configuration, the checkpoint's state does not fit, or
            a resumed run has lost its best checkpoint and gets no other.
        KeyboardInterrupt, SystemExit: if it was interrupted before it began.
    """
    restored = (
        None
        if config.resume is None
        else CorrectRestoredState(interruption and interruption.callbacks)
    )
    if restored is not None:
        trainer.precision_plugin.convert_module(classifier)  # before float64 weights are restored
        # With max_steps Lightning would resume the end of an epoch as the middle of one.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    beginning = Begin(begin, resumes=restored is not None)
    added = [interruption, WarmUp(data, config.trainer.compile), restored, beginning]
    trainer.callbacks += filter(None, added)  # type: ignore[attr-defined]
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    try:
        finished = _unless_interrupted(
            trainer,
            lambda: trainer.fit(classifier, data, ckpt_path=config.resume, weights_only=True),
        )
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except (UserError, OSError):
        raise
    except Exception as error:  # of all kinds, if the restored state is wrong
        if restored is None or beginning.begun:
            _explain(error)
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"resume={config.resume} cannot be resumed: {reason}. Perhaps its training state is "
            "damaged, or of another version: try another checkpoint of the run. evaluate, predict "
            "and export may work with this one."
        ) from error
    # A signal may have come after the last step.
    finished = finished and (interruption is None or not interruption.interrupted(trainer))
    best = trainer.checkpoint_callback
    assert best is None or isinstance(best, ModelCheckpoint)
    if finished and restored and restored.lost and best and not best.best_model_path:
        raise UserError(
            "There is no best checkpoint to test: the run's is not in its folder any more, and no "
            "validation followed."
        )
    if finished:
        beginning.once()  # a resumed run of which only the test was missing
    elif interruption is not None and not beginning.begun:
        interruption.exit_by_signal()
    return finished


def checkpoint_to_test(trainer: pl.Trainer, best: Callback, last: Path | None) -> Path | None:
    """The best checkpoint; the last one if no validation has chosen a best one.

    Args:
        trainer: after fit.
        best: the callback that saves the best checkpoint.
        last: the last checkpoint, which need not exist; None if the run is not to be tested.

    Returns:
        None if neither has been saved, as by a Trainer that saves none.
    """
    assert isinstance(best, ModelCheckpoint)
    path = Path(best.best_model_path) if best.best_model_path else None
    if path is not None and isinstance(best, BestCheckpoint):
        best.name_best(trainer)  # a resumed run may have had no validation
        path = path.with_name(BEST)
    if path is not None and best.monitor is not None:
        return path
    # By the first process, because other machines may not have the file.
    is_current = (
        last is not None
        and trainer.is_global_zero
        and last.is_file()
        and read_checkpoint(last).global_step == trainer.global_step
    )
    if trainer.strategy.broadcast(is_current):
        if best.monitor is not None:  # else the run's start has said so
            note("test", "no best checkpoint was saved, so the last one is tested")
        return last
    return path


def test(
    trainer: pl.Trainer, classifier: Classifier, data: ImageData, checkpoint: Checkpoint | None
) -> bool:
    """Test a checkpoint.

    Args:
        trainer: of the run.
        classifier: gets the checkpoint's weights.
        data: with the test images.
        checkpoint: in the first process, because other machines may not have the file; None there
            tests the classifier as it is.

    Returns:
        Whether the test was finished, and not interrupted.

    Raises:
        UserError: if Lightning refuses what it was told to do.
    """
    # Not by ckpt_path, with which Lightning would restore the callbacks' state too, such as the
    # run's clock.
    weights = trainer.strategy.broadcast(None if checkpoint is None else checkpoint.state_dict)
    if weights is not None:
        classifier.load_state_dict(weights)
    try:
        return _unless_interrupted(trainer, lambda: trainer.test(classifier, data, verbose=False))
    except Exception as error:
        _explain(error)
        raise


def _explain(error: Exception) -> None:
    """Turn an error that Lightning or an optimizer raises, of what it was told, into a message.

    Raises:
        UserError: if Lightning's or the optimizer's code raised it, and not code that it called.
    """
    *_, last = traceback.walk_tb(error.__traceback__)
    module = last[0].f_globals["__name__"]
    places = {"trainer": "pytorch_lightning.", "scheduler": "torch.optim.lr_scheduler"}
    for key, place in (places | {"optimizer": "torch.optim."}).items():
        if module.startswith(place):
            raise UserError(f"{key}: {str(error).strip() or type(error).__name__}") from error


def _unless_interrupted(trainer: pl.Trainer, work: Callable[[], Any]) -> bool:
    """Do the work; returns False if interrupted, where Lightning would exit."""
    try:
        work()
    except SIGTERMException:
        return False
    except SystemExit as ending:
        if not isinstance(ending.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning ignores it now
        return False
    return True
