"""The interface of loggers, such as W&B's, that record more than metrics."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from cifar_lightning.config.paths import without_paths
from cifar_lightning.data import ImageData
from cifar_lightning.models.budget import NetworkCounts
from cifar_lightning.training.callbacks import TargetReached
from cifar_lightning.training.metrics import confident_mistakes
from cifar_lightning.training.module import test_predictions_of

log = logging.getLogger(__name__)

MISTAKES = 100  # most images in a table of mistakes
ENLARGED = 4  # factor: an image of 32 pixels is too small in a table
Started = TypeVar("Started", bound="RunLogger")


class RunLogger(Logger):
    """A Lightning logger with methods for the start and end of a run; override those you need.

    A run calls these methods in the order below, and `log_metrics` after each validation between
    start and end, in the first process only. None may raise: a failing service must not end a
    training, so what may fail belongs into `with self.failure_as_warning():`.

    Attributes:
        label: the service's name, in warnings.
        shown_as: printed before `how_to_open`.
        first_step: metrics of earlier steps were logged before the run was resumed.
        failed: whether the service has failed in this run.
    """

    label = "Logger"
    shown_as = "logged to"
    first_step = 0
    failed = False

    def skip_before(self, step: int) -> None:
        """Skip metrics of steps before `step`, which were logged before the run was resumed."""
        self.first_step = step

    def is_logged(self, step: int | None) -> bool:
        """Whether metrics of a step were logged before the run was resumed."""
        return step is not None and step < self.first_step

    def log_start(
        self, config: Mapping[str, Any], counts: NetworkCounts, target: TargetReached | None
    ) -> None:
        """Log the configuration, the network's counts and the target.

        Args:
            config: of the run, resolved.
            counts: of the network.
            target: the callback that ends the run at a target; None if there is none.
        """

    def log_end(
        self,
        metrics: Mapping[str, Any],
        figures: Mapping[str, Path],
        module: pl.LightningModule,
        data: ImageData,
        checkpoint: Path | None,
    ) -> None:
        """Log the results.

        Args:
            metrics: content of `metrics.json`.
            figures: the run's PNG files by name.
            module: with its test predictions, if it offers them and was tested.
            data: with the test images.
            checkpoint: the tested one, or the best so far; None if there is none yet.
        """

    def how_to_open(self) -> str:
        """The command or URL that shows the run."""
        return str(self.name)

    def close(self, exit_code: int) -> None:
        """Finish the record of the run; `exit_code` is not 0 if the run failed."""

    @contextlib.contextmanager
    def failure_as_warning(self) -> Iterator[None]:
        """Turn the first exception of the service into a warning, and ignore later ones."""
        try:
            yield
        except Exception as error:  # no failure of a service may end a training
            if self.failed:
                return
            self.failed = True
            reason = (str(error).strip() or type(error).__name__).rstrip(".")
            log.warning(
                "%s: %s. The training continues%s", self.label, reason, self.after_failure()
            )

    def after_failure(self) -> str:
        """The end of the warning: what becomes of the record."""
        return f", but its {self.label} run is incomplete."


def start_or_warn(label: str, start: Callable[[], Started]) -> Started | None:
    """Call the function that starts a run of a service; None if it fails, after a warning."""
    try:
        return start()
    except Exception as error:  # no failure of a service may end a training
        log.warning("%s could not start a run, so this run has none: %s", label, error)
        return None


def log_start(
    loggers: Sequence[Logger],
    config: DictConfig,
    counts: NetworkCounts,
    callbacks: dict[str, Callback],
) -> None:
    """Call `log_start` of each `RunLogger`; other loggers only get the configuration."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    target = callbacks.get("target")
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.log_start(
                settings, counts, target if isinstance(target, TargetReached) else None
            )
        else:
            logger.log_hyperparams(settings)


def log_end(
    loggers: Sequence[Logger],
    metrics: Mapping[str, Any],
    figures: Mapping[str, Path],
    module: pl.LightningModule,
    data: ImageData,
    checkpoint: Path | None,
) -> None:
    """Call `log_end` of each `RunLogger`."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.log_end(metrics, figures, module, data, checkpoint)


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with flat keys, such as `optimizer` (a group's option) and `optimizer/lr`.

    Args:
        config: nested dictionaries of primitives and lists, resolved; paths are left out.
    """
    choices = config.get("choices") or {}
    others = {key: value for key, value in config.items() if key != "choices"}
    return {**choices, **dict(_flat(without_paths(others)))}


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


def with_counts(config: Mapping[str, Any], counts: NetworkCounts) -> dict[str, Any]:
    """A configuration with the network's counts as its part `network`."""
    return {**config, "network": dataclasses.asdict(counts)}


def of_a_test(metrics: Mapping[str, Any]) -> bool:
    """Whether metrics that Lightning logs are the test's."""
    return all(name.startswith("test/") for name in metrics if name != "epoch")


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class Mistake(NamedTuple):
    """A misclassified test image.

    Attributes:
        image: enlarged, uint8 [H, W, 3].
        label: name of its class.
        prediction: name of the predicted class.
        confidence: the predicted probability.
        position: of the image among the test images.
    """

    image: NDArray[np.uint8]
    label: str
    prediction: str
    confidence: float
    position: int


def mistakes(module: pl.LightningModule, data: ImageData) -> list[Mistake]:
    """The most confident mistakes, at most `MISTAKES`; none if the run was not tested."""
    tested = test_predictions_of(module)
    if tested is None:
        return []
    labels = data.test.labels[tested.index]  # [N]
    wrong = confident_mistakes(tested.predictions, tested.confidences, labels, MISTAKES)
    positions = tested.index[wrong.index]  # [M], among the test images
    images = data.test.images[positions].permute(0, 2, 3, 1)  # [M, H, W, 3]
    large = images.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2)
    return [
        Mistake(
            image, data.classes[label], data.classes[prediction], round(confidence, 4), position
        )
        for image, label, prediction, confidence, position in zip(
            large.numpy(),
            labels[wrong.index].tolist(),
            wrong.predictions.tolist(),
            wrong.confidences.tolist(),
            positions.tolist(),
            strict=True,
        )
    ]
