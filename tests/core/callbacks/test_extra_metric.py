"""Adding a metric beside loss and accuracy."""

from pathlib import Path

import pytest
from conftest import TINY, Compose
from programs import finish_all, read_json, start_two

from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train
from cifar_lightning.training.callbacks.extra_metric import ExtraMetric

OF_CLASSES = "torchmetrics.classification.Multiclass"


def typed(metric: str, *options: str, key: str = "again") -> list[str]:
    """The command line's, for a callback that conf/ has not."""
    place = f"+callbacks.{key}"
    made = [f"{place}.metric._target_={metric}", f"{place}.metric._partial_=true"]
    callback = f"{place}._target_=cifar_lightning.training.callbacks.extra_metric.ExtraMetric"
    return [callback, f"{place}.name=again", *made, *(f"{place}.metric.{o}" for o in options)]


def test_it_counts_what_the_accuracy_counts(tiny: Compose, tmp_path: Path) -> None:
    accuracy = typed(f"{OF_CLASSES}Accuracy", "average=micro")
    metrics = train(tiny(*accuracy, "trainer.max_epochs=2", "target_accuracy=null"))
    assert metrics["test/again"] == metrics["test/acc"]
    first, second, test = read_rows(tmp_path / "run")
    for row in (first, second):
        assert row["val/again"] == row["val/acc"]
    assert test["test/again"] == test["test/acc"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ((f"{OF_CLASSES}F1Score", "average=null"), "again gives 10 numbers, not one. Perhaps"),
        ((f"{OF_CLASSES}ROC",), "again gives a value of type tuple, not a tensor of one number"),
        (("torchmetrics.MeanMetric", "nan_strategy=error"), "does not work here: .*num_classes"),
        (("torch.nn.Identity",), r"again is of type Identity, not a torchmetrics\.Metric"),
    ],
)
def test_what_is_no_metric_of_classes_is_refused(
    metric: tuple[str, ...], message: str, tiny: Compose
) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny(*typed(*metric)))


def test_it_does_not_take_the_names_that_are_there() -> None:
    with pytest.raises(ValueError, match="name=acc is taken"):
        ExtraMetric("acc", lambda: None)  # type: ignore[arg-type,return-value]


def test_two_of_one_name_are_refused(tiny: Compose) -> None:
    metrics = [*typed(f"{OF_CLASSES}F1Score"), *typed(f"{OF_CLASSES}Accuracy", key="other")]
    with pytest.raises(UserError, match="Two metrics have the name again"):
        train(tiny(*metrics))


# One validation batch and one test batch: the second process has none.
ONE_BATCH = [
    *(option for option in TINY if not option.startswith(("data.", "trainer"))),
    *("data.train_size=120", "data.test_size=20", "data.val_size=20", "data.batch_size=20"),
    *("trainer=ddp_sim", "trainer.max_epochs=1", "target_accuracy=null", "hydra.run.dir=run"),
]


@pytest.mark.slow
def test_what_keeps_every_image_is_refused_in_several_processes() -> None:
    two = start_two(*ONE_BATCH, *typed(f"{OF_CLASSES}AUROC"))
    output = "".join(finish_all(two, kill_on_bad_exit=True))
    assert 1 in [program.returncode for program in two]
    assert output.count("Error: The metric again keeps values of every image") == 1
    assert "metric.thresholds=100" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_what_counts_works_where_a_process_has_no_images() -> None:
    two = start_two(*ONE_BATCH, *typed(f"{OF_CLASSES}AUROC", "thresholds=100"))
    output = "".join(finish_all(two))
    assert [program.returncode for program in two] == [0, 0], output
    assert 0 < read_json(Path("run/metrics.json"))["test/again"] <= 1
