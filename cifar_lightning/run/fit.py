"""Runs Trainer.fit and Trainer.test, and handles interruptions and resumes."""

import contextlib
import dataclasses
import signal
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import (
    Callback,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    WeightAveraging,
)
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from cifar_lightning.checkpoints.io import Checkpoint, ModelInfo, read_checkpoint
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError
from cifar_lightning.run.best import restore_best
from cifar_lightning.run.build import model_info
from cifar_lightning.run.compile import WarmUp
from cifar_lightning.run.devices import keep_freed_memory
from cifar_lightning.system.signals import interrupt
from cifar_lightning.tracking.console import note
from cifar_lightning.training.callbacks import BestCheckpoint, Interruption
from cifar_lightning.training.callbacks.checkpoints import BEST

RESTORED = ("frozen", "schedule_steps", "stopped")  # of a checkpoint, by CorrectRestoredState


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings of Lightning that do not apply here."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # batches are indexed in memory
            ".*exists and is not empty.*",  # in a resume, the folder has checkpoints
            ".*smaller than the logging interval.*",  # metrics are logged once per validation
            ".*sync_dist=True.*",  # torchmetrics sums over the devices
            ".*callbacks used to create the checkpoint need to be provided.*",  # one was removed
            ".*isinstance\\(treespec, LeafSpec\\).*",  # torch 2.15 with Lightning 2.6
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


class Begin(pl.Callback):
    """Calls a function once, when a training has passed all checks.

    In a new run, this is just before the first step. In a resumed run, it is after the first step,
    which shows that the restored network, optimizer and schedule work.

    Args:
        begin: the function to call.
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


class RunState(pl.Callback):
    """Saves in each checkpoint what a run needs of it, whatever its LightningModule is.

    These are the model's description, the metrics of the weights, and the random state, which a
    resume restores.

    Args:
        info: the model's description.
    """

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self._validated_step: int | None = None
        self._random_state: dict[str, Tensor] | None = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step; neither in Trainer.validate nor in the validation before the first."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validated_step = trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the run's part to a checkpoint."""
        # Instead of the module's own, which may hold objects; config.yaml has the configuration.
        checkpoint["hyper_parameters"] = dataclasses.asdict(self.info)
        if self._validated_step == trainer.global_step:
            metrics = trainer.callback_metrics.items()
            checkpoint["validation"] = {name: value.item() for name, value in metrics}
        # For layers such as dropout; augmentation has its own generator.
        state = {"cpu": torch.get_rng_state()}
        if (device := pl_module.device).type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(device)
        checkpoint["random_state"] = state

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the random state, which `on_train_start` sets."""
        self._random_state = checkpoint["random_state"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the random state here, because earlier hooks may draw random numbers."""
        if (state := self._random_state) is None:
            return
        self._random_state = None
        torch.set_rng_state(state["cpu"])
        if (device := pl_module.device).type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)


class CorrectRestoredState(pl.Callback):
    """In a resumed run, restores what Lightning does not, and corrects what Lightning restores.

    Args:
        callbacks: the callbacks' configuration. A run that one of them has stopped trains further
            only if this is different now.

    Attributes:
        lost: whether the run's best checkpoint is no longer in its folder.
    """

    def __init__(self, callbacks: object) -> None:
        self.callbacks = callbacks
        self.lost = False
        self._checkpoint: dict[str, Any] = {}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Update the state to the best checkpoints that exist, and to the configured patience."""
        self._checkpoint = {key: checkpoint.get(key) for key in RESTORED}
        for early_stopping in trainer.early_stopping_callbacks:
            if state := checkpoint["callbacks"].get(early_stopping.state_key):
                state["patience"] = early_stopping.patience  # which the resume may change
        averages = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if "current_model_state" in checkpoint and not averages:
            note(
                "weights", "this resume has no weight averaging: it starts from the average so far"
            )
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
                # Lightning skips this if it resumes within an epoch.
                callback.on_train_epoch_start(trainer, pl_module)
        before, now = self._checkpoint["schedule_steps"], getattr(pl_module, "schedule_steps", None)
        if None not in (before, now) and before != now:
            note("schedule", f"learning rate over {now:,} steps; {before:,} before the resume")
        if self._checkpoint["frozen"] is not None:
            _freeze(pl_module, self._checkpoint["frozen"])


def _freeze(module: nn.Module, frozen: Collection[str]) -> None:
    """Freeze only these parameters and batch norms; BaseFinetuning does not restore them."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, part in module.named_modules():
        if hasattr(part, "track_running_stats"):
            part.track_running_stats = name not in frozen


def fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: ImageData,
    config: DictConfig,
    interruption: Interruption | None = None,
    begin: Callable[[], object] = lambda: None,
) -> bool:
    """Train a LightningModule.

    Args:
        trainer: callbacks are added to it.
        module: to train.
        data: to train on.
        config: `resume` and `trainer.compile` are read.
        interruption: saves a checkpoint if training ends within an epoch; None for Lightning's
            default.
        begin: called once the training has passed all checks, see `Begin`.

    Returns:
        True if training finished, False if it was interrupted.

    Raises:
        UserError: if Lightning refuses the configuration, the checkpoint's state does not fit, or
            a resumed run has lost its best checkpoint and saves no other.
        KeyboardInterrupt, SystemExit: if it was interrupted before it began.
    """
    restored = (
        None
        if config.resume is None
        else CorrectRestoredState(interruption and interruption.callbacks)
    )
    if restored is not None:
        trainer.precision_plugin.convert_module(module)  # before float64 weights are restored
        # With max_steps Lightning would resume the end of an epoch as the middle of one.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    beginning = Begin(begin, resumes=restored is not None)
    warm_up, state = WarmUp(data, config.trainer.compile), RunState(model_info(config, data))
    added = [interruption, warm_up, restored, beginning, state]
    trainer.callbacks += filter(None, added)  # type: ignore[attr-defined]
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    try:
        finished = _unless_interrupted(
            trainer,
            lambda: trainer.fit(module, data, ckpt_path=config.resume, weights_only=True),
        )
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error
    except (UserError, OSError):
        raise
    except Exception as error:  # a wrong state raises errors of all kinds
        if restored is None or beginning.begun:
            _explain(error)
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"resume={config.resume} cannot be resumed: {reason}. Perhaps its training state is "
            "damaged or from another version: try another checkpoint of the run. evaluate, predict "
            "and export may still work with this one."
        ) from error
    # A signal may have come after the last step.
    finished = finished and (interruption is None or not interruption.interrupted(trainer))
    best = trainer.checkpoint_callback
    assert best is None or isinstance(best, ModelCheckpoint)
    if finished and restored and restored.lost and best and not best.best_model_path:
        raise UserError(
            "There is no best checkpoint to test: the run's is no longer in its folder, and there "
            "was no validation after the resume."
        )
    if finished:
        beginning.once()  # for a resumed run that had only the test left
    elif interruption is not None and not beginning.begun:
        interruption.exit_by_signal()
    return finished


def checkpoint_to_test(trainer: pl.Trainer, best: Callback, last: Path | None) -> Path | None:
    """The path of the best checkpoint, or of the last one if no validation has chosen a best.

    Args:
        trainer: after fit.
        best: the callback that saves the best checkpoint.
        last: path of the last checkpoint, which need not exist; None if the run is not to be
            tested.

    Returns:
        The path; None if neither checkpoint was saved.
    """
    assert isinstance(best, ModelCheckpoint)
    path = Path(best.best_model_path) if best.best_model_path else None
    if path is not None and isinstance(best, BestCheckpoint):
        best.name_best(trainer)  # a resumed run may have had no validation
        path = path.with_name(BEST)
    if path is not None and best.monitor is not None:
        return path
    # The first process decides, because other machines may not have the file.
    is_current = (
        last is not None
        and trainer.is_global_zero
        and last.is_file()
        and read_checkpoint(last).global_step == trainer.global_step
    )
    if trainer.strategy.broadcast(is_current):
        if best.monitor is not None:  # otherwise this was printed at the start of the run
            note("test", "no best checkpoint was saved, so the last one is tested")
        return last
    return path


def test(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: ImageData,
    checkpoint: Checkpoint | None,
) -> bool:
    """Test a checkpoint.

    Args:
        trainer: of the run.
        module: gets the checkpoint's weights.
        data: has the test images.
        checkpoint: read by the first process only, because other machines may not have the file;
            if it is None there, the module is tested as it is.

    Returns:
        True if the test finished, False if it was interrupted.

    Raises:
        UserError: if Lightning refuses the configuration.
    """
    # Not through ckpt_path: Lightning would also restore the callbacks' states, such as the clock.
    weights = trainer.strategy.broadcast(None if checkpoint is None else checkpoint.state_dict)
    if weights is not None:
        module.load_state_dict(weights)
    try:
        return _unless_interrupted(trainer, lambda: trainer.test(module, data, verbose=False))
    except Exception as error:
        _explain(error)
        raise


def _explain(error: Exception) -> None:
    """Turn an error that Lightning or an optimizer itself raises into a message for the user.

    Raises:
        UserError: if Lightning's or the optimizer's code raised it, and not code that it called.
    """
    *_, last = traceback.walk_tb(error.__traceback__)
    module = last[0].f_globals["__name__"]
    sources = {"trainer": "pytorch_lightning.", "scheduler": "torch.optim.lr_scheduler"}
    for key, prefix in (sources | {"optimizer": "torch.optim."}).items():
        if module.startswith(prefix):
            raise UserError(f"{key}: {str(error).strip() or type(error).__name__}") from error


def _unless_interrupted(trainer: pl.Trainer, work: Callable[[], Any]) -> bool:
    """Do the work; returns False if it is interrupted, when Lightning would exit."""
    try:
        work()
    except SIGTERMException:
        return False
    except SystemExit as ending:
        if not isinstance(ending.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, interrupt)  # Lightning has set it to ignore
        return False
    return True
