"""The interface of loggers, such as W&B's, that record more than metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from cifar_lightning.data import ImageData
from cifar_lightning.models.budget import NetworkCounts
from cifar_lightning.training.callbacks import TargetReached


class RunLogger(Logger):
    """A Lightning logger with methods for the start and end of a run; override those you need.

    A run calls these methods in the order below, and `log_metrics` after each validation between
    start and end, in the first process only. None may raise: a failing service must not end a
    training.

    Attributes:
        label: printed before `how_to_open`.
    """

    label = "logged to"

    def skip_before(self, step: int) -> None:
        """Skip metrics of steps before `step`, which were logged before the run was resumed."""

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
