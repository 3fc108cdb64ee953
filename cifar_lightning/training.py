"""Has the Trainer do its work: quietly, and with Ctrl-C as an answer."""

import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from cifar_lightning.checkpoint import read_checkpoint
from cifar_lightning.classifier import Classifier
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Lightning says at every start and is true of no mistake here."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # batches come from memory by one indexing
            ".*exists and is not empty.*",  # a run that goes on has checkpoints there already
            ".*smaller than the logging interval.*",  # metrics are logged once a validation
            ".*sync_dist=True.*",  # torchmetrics has summed over the devices already
            ".*isinstance\\(treespec, LeafSpec\\).*",  # between torch 2.15 and Lightning 2.6
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def fit(trainer: pl.Trainer, classifier: Classifier, data: ImageData, config: DictConfig) -> bool:
    """Train; returns False after Ctrl-C.

    Raises:
        UserError: if Lightning refuses the configuration.
    """
    if config.trainer.compile:
        classifier.network.compile()  # in place: the state dict keeps its keys

    try:
        return _unless_interrupted(
            trainer,
            lambda: trainer.fit(classifier, data, ckpt_path=config.resume, weights_only=True),
        )
    except MisconfigurationException as error:
        raise UserError(f"trainer: {error}") from error


def evaluate_best(
    trainer: pl.Trainer, classifier: Classifier, data: ImageData, checkpoint: Callback
) -> bool:
    """Read the test images once, with the best checkpoint; returns False after Ctrl-C."""
    assert isinstance(checkpoint, ModelCheckpoint)
    # By hand: with ckpt_path Lightning would put the callbacks' state of that time back too, and
    # the run's clock with it.
    classifier.load_state_dict(read_checkpoint(checkpoint.best_model_path)["state_dict"])
    return _unless_interrupted(trainer, lambda: trainer.test(classifier, data, verbose=False))


def _unless_interrupted(trainer: pl.Trainer, work: Callable[[], Any]) -> bool:
    """Lightning turns Ctrl-C into an exit of the program; here it is an answer."""
    try:
        work()
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning left it ignored
        return False
    return True
