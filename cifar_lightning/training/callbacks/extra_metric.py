"""Logs one more metric in addition to loss and accuracy."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from cifar_lightning.errors import UserError


class ExtraMetric(pl.Callback):
    """Logs one more metric of validation and test, as `val/NAME` and `test/NAME`.

    metrics.csv and W&B get both; metrics.json gets that of the test.

    Args:
        name: of the metric; `loss` and `acc` are taken.
        metric: a torchmetrics class, or your own subclass of its `Metric`. It takes `num_classes`,
            is updated with logits [N, classes] and labels [N], and computes one number.

    Raises:
        ValueError: if `name` is `loss` or `acc`.
        UserError: before the first step, if the metric does not work with the data's classes or
            the number of processes, or if two metrics have the same name.
    """

    def __init__(self, name: str, metric: Callable[..., Metric]) -> None:
        if name in ("loss", "acc"):
            raise ValueError(f"name={name} is taken: {name} is logged already")
        self.name = name
        self._make = metric

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the metric on one perfect prediction per class."""
        names = [other.name for other in trainer.callbacks if isinstance(other, ExtraMetric)]  # type: ignore[attr-defined]
        if names.count(self.name) > 1:
            raise UserError(
                f"Two metrics have the name {self.name}: give one of them another name, as in "
                "callbacks.KEY.name=NAME."
            )
        try:
            self._start(trainer, pl_module)
            labels = torch.arange(len(trainer.datamodule.classes), device=pl_module.device)  # type: ignore[attr-defined]
            self._metric.update((labels[:, None] == labels).float(), labels)
            value = self._metric.compute()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"The metric {self.name} does not work here: {error}") from error
        if not isinstance(value, Tensor):
            raise UserError(
                f"The metric {self.name} gives a value of type {type(value).__name__}, not a "
                "tensor of one number."
            )
        if value.numel() != 1:
            raise UserError(
                f"The metric {self.name} gives {value.numel()} numbers, not one. Perhaps it has an "
                "option that reduces them to one, such as average=macro."
            )

    def _start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        classes = len(trainer.datamodule.classes)  # type: ignore[attr-defined]
        metric = self._make(num_classes=classes)
        if not isinstance(metric, Metric):
            raise UserError(
                f"The metric {self.name} is of type {type(metric).__name__}, not a "
                "torchmetrics.Metric."
            )
        if trainer.world_size > 1 and _keeps_lists(metric):
            raise UserError(
                f"The metric {self.name} keeps values of every image, which several processes "
                "cannot combine if one of them has no images. Perhaps it has an option to count "
                "instead, such as metric.thresholds=100; or train in one process."
            )
        self._metric = metric.to(pl_module.device)

    def _add(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        labels = batch[1]
        if not isinstance(outputs, Tensor):
            raise UserError(
                f"The metric {self.name} needs the logits [N, classes], but validation_step and "
                f"test_step of {type(pl_module).__name__} do not return them."
            )
        if len(labels):  # the batch is empty if other devices have the last ones
            self._metric.update(outputs.float(), labels)

    on_validation_epoch_start = on_test_epoch_start = _start
    on_validation_batch_end = on_test_batch_end = _add

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the metric with loss and accuracy."""
        pl_module.log(f"val/{self.name}", self._metric.compute())

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the metric with loss and accuracy."""
        pl_module.log(f"test/{self.name}", self._metric.compute())


def _keeps_lists(metric: Metric) -> bool:
    """Whether the metric, or one that it wraps, has a state that grows with every image."""
    parts = [part for part in metric.modules() if isinstance(part, Metric)]
    return any(isinstance(state, list) for p in parts for state in p.metric_state.values())
