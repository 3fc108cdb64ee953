"""Runs Trainer.fit and Trainer.test; returns False if interrupted."""

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
    """Ignore Lightning's warnings that point to no mistake here."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # batches come from memory by one indexing
            ".*exists and is not empty.*",  # a resumed run has checkpoints there already
            ".*smaller than the logging interval.*",  # metrics are logged once a validation
            ".*sync_dist=True.*",  # torchmetrics has summed over the devices already
            ".*isinstance\\(treespec, LeafSpec\\).*",  # between torch 2.15 and Lightning 2.6
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


class BestSoFar(pl.Callback):
    """Restores the path and accuracy of the best checkpoint in a resumed run.

    Attributes:
        has_stepped: whether it has done a step, so that what Lightning restored was valid.
    """

    has_stepped = False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look for it where the run is now; Lightning forgets those of a run that was moved."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if not isinstance(callback, ModelCheckpoint) or not state or not callback.dirpath:
                continue
            place = Path(callback.dirpath)
            state["dirpath"] = str(place)
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                state[key] = state[key] and str(place / Path(state[key]).name)
            best = state["best_k_models"].items()
            state["best_k_models"] = {str(place / Path(path).name): acc for path, acc in best}

    def on_train_batch_end(self, *_: Any) -> None:
        """Note that the restored network, optimizer and schedule work."""
        self.has_stepped = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget it if it is not there, or of a step that is yet to be done.

        As of the validation between the last checkpoint and a crash. On a GPU that step will not
        give the same bits again, and the file would not be of the accuracy that is noted.
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
    """Train; returns False if interrupted.

    Args:
        trainer: its callbacks are added to.
        classifier: to train.
        data: to train on.
        config: `resume` and `trainer.compile` are read.
        interruption: saves a checkpoint when interrupted; None for what Lightning does.

    Raises:
        UserError: if Lightning refuses the configuration, or the checkpoint's state does not fit.
    """
    best = None if config.resume is None else BestSoFar()
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
    except Exception as error:  # Lightning and PyTorch raise whatever a state leads them into
        if best is None or best.has_stepped:
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"resume={config.resume} cannot be resumed: {reason}. Perhaps its training's "
            "state is damaged, or of another version; then take another checkpoint of the run. "
            "evaluate, predict and export may take this one."
        ) from error
    # A signal may have come after the last step.
    return finished and (interruption is None or not interruption.interrupted(trainer))


def evaluate_best(
    trainer: pl.Trainer, classifier: Classifier, data: ImageData, checkpoint: Callback
) -> bool:
    """Test the best checkpoint once; returns False if interrupted.

    Raises:
        UserError: if a resumed run has lost that checkpoint.
    """
    assert isinstance(checkpoint, ModelCheckpoint)
    # By hand: with ckpt_path Lightning would put the callbacks' state of that time back too, and
    # the run's clock with it.
    # By the first process for all: on another machine there need be no such file.
    path = checkpoint.best_model_path
    if not path:
        raise UserError(
            "There is no best checkpoint to test: that of the run is not in its folder any more, "
            "and no validation has come after it."
        )
    weights = read_checkpoint(path).state_dict if trainer.is_global_zero else {}
    classifier.load_state_dict(trainer.strategy.broadcast(weights))
    return _unless_interrupted(trainer, lambda: trainer.test(classifier, data, verbose=False))


def _unless_interrupted(trainer: pl.Trainer, work: Callable[[], Any]) -> bool:
    """Returns False if interrupted, where Lightning would end the program."""
    try:
        work()
    except SIGTERMException:
        return False
    except SystemExit as ending:
        if not isinstance(ending.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning left it ignored
        return False
    return True
