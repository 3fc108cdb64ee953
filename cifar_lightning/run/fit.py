"""Runs Trainer.fit and Trainer.test, and handles interruptions and resumes."""

import contextlib
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from cifar_lightning.checkpoints.io import read_checkpoint
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError
from cifar_lightning.run.compile import WarmUp
from cifar_lightning.run.devices import keep_freed_memory
from cifar_lightning.training.callbacks import Interruption
from cifar_lightning.training.module import Classifier


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings of Lightning that do not apply here."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # batches come from memory by one indexing
            ".*exists and is not empty.*",  # on a resume it has checkpoints
            ".*smaller than the logging interval.*",  # metrics are logged once a validation
            ".*sync_dist=True.*",  # torchmetrics sums over the devices
            ".*isinstance\\(treespec, LeafSpec\\).*",  # between torch 2.15 and Lightning 2.6
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


class RestoreBestCheckpoint(pl.Callback):
    """Restores the path and accuracy of the best checkpoint in a resumed run.

    Attributes:
        has_stepped: whether the run has completed a step, so that the restored state was valid.
    """

    has_stepped = False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Change the paths to the run's folder; Lightning drops them if the run was moved."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if not isinstance(callback, ModelCheckpoint) or not state or not callback.dirpath:
                continue
            folder = Path(callback.dirpath)
            state["dirpath"] = str(folder)
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = state[key] and str(folder / Path(state[key]).name)
            best = state["best_k_models"].items()
            state["best_k_models"] = {str(folder / Path(path).name): acc for path, acc in best}

    def on_train_batch_end(self, *_: Any) -> None:
        """Record that the restored network, optimizer and schedule work."""
        self.has_stepped = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the best checkpoint if it is missing, or later than the step resumed from.

        It is later if it was saved between the last checkpoint and a crash. On a GPU the repeated
        steps differ in their last bits, so the file would not have the recorded accuracy.
        """
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or not callback.best_model_path:
                continue
            file = Path(callback.best_model_path)
            try:
                step: float = read_checkpoint(file).global_step
            except UserError:  # there is none, or it is damaged
                step = math.inf
            if trainer.strategy.broadcast(step) > trainer.global_step:
                callback.best_k_models = {}
                callback.best_model_path, callback.best_model_score = "", None


def fit(
    trainer: pl.Trainer,
    classifier: Classifier,
    data: ImageData,
    config: DictConfig,
    interruption: Interruption | None = None,
) -> bool:
    """Train a classifier.

    Args:
        trainer: callbacks are added to it.
        classifier: to train.
        data: to train on.
        config: `resume` and `trainer.compile` are read.
        interruption: saves a checkpoint when interrupted; None for Lightning's default.

    Returns:
        Whether training was finished, and not interrupted.

    Raises:
        UserError: if Lightning refuses the configuration, or the checkpoint's state does not fit.
    """
    best = None if config.resume is None else RestoreBestCheckpoint()
    added = [interruption, WarmUp(data, config.trainer.compile), best]
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
        if best is None or best.has_stepped:
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"resume={config.resume} cannot be resumed: {reason}. Perhaps its training state is "
            "damaged, or of another version: try another checkpoint of the run. evaluate, predict "
            "and export may work with this one."
        ) from error
    # A signal may have come after the last step.
    return finished and (interruption is None or not interruption.interrupted(trainer))


def evaluate_best(
    trainer: pl.Trainer, classifier: Classifier, data: ImageData, checkpoint: Callback
) -> bool:
    """Test the best checkpoint.

    Args:
        trainer: of the run.
        classifier: gets the checkpoint's weights.
        data: with the test images.
        checkpoint: the callback that saved the best checkpoint.

    Returns:
        Whether the test was finished, and not interrupted.

    Raises:
        UserError: if a resumed run has lost that checkpoint.
    """
    assert isinstance(checkpoint, ModelCheckpoint)
    # Not by ckpt_path, with which Lightning would restore the callbacks' state too, such as the
    # run's clock. Read by the first process, because other machines may not have the file.
    path = checkpoint.best_model_path
    if not path:
        raise UserError(
            "There is no best checkpoint to test: the run's is not in its folder any more, and no "
            "validation followed."
        )
    weights = read_checkpoint(path).state_dict if trainer.is_global_zero else {}
    classifier.load_state_dict(trainer.strategy.broadcast(weights))
    return _unless_interrupted(trainer, lambda: trainer.test(classifier, data, verbose=False))


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
