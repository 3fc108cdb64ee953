"""A metric beside loss and accuracy."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from cifar_lightning.callbacks import FurtherMetric
from cifar_lightning.errors import UserError
from cifar_lightning.runs import read_rows
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]


def typed(metric: str, *options: str) -> list[str]:
    """The command line's, for a callback that conf/ has not."""
    place = "+callbacks.again"
    made = [f"{place}.metric._target_=torchmetrics.{metric}", f"{place}.metric._partial_=true"]
    callback = f"{place}._target_=cifar_lightning.callbacks.FurtherMetric"
    return [callback, f"{place}.name=again", *made, *(f"{place}.metric.{o}" for o in options)]


def test_it_counts_what_the_accuracy_counts(tiny: Compose, tmp_path: Path) -> None:
    accuracy = typed("classification.MulticlassAccuracy", "average=micro")
    metrics = train(tiny(*accuracy, "trainer.max_epochs=2", "target_accuracy=null"))
    assert metrics["test/again"] == metrics["test/acc"]
    first, second, test = read_rows(tmp_path / "run")
    for row in (first, second):
        assert row["val/again"] == row["val/acc"]
    assert test["test/again"] == test["test/acc"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (("classification.MulticlassF1Score", "average=null"), "again gives 10 numbers, not one"),
        (("MeanMetric", "nan_strategy=error"), "again does not work here: .*num_classes"),
    ],
)
def test_what_is_no_metric_of_classes_is_refused(
    metric: tuple[str, ...], message: str, tiny: Compose
) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny(*typed(*metric)))


@pytest.mark.parametrize("name", ["loss", "acc"])
def test_it_does_not_take_the_names_that_are_there(name: str) -> None:
    with pytest.raises(ValueError, match=f"name={name} is taken"):
        FurtherMetric(name, lambda: None)  # type: ignore[arg-type,return-value]
