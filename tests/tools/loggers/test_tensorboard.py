"""logger=tensorboard, read back with TensorBoard's own reader."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from cifar_lightning.config.compose import compose
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def resumed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs that was resumed for a third."""
    folder = tmp_path_factory.mktemp("tensorboard") / "run"
    options = [*TINY, "logger=tensorboard", "target_accuracy=null", "trainer.max_epochs=2"]
    train(compose([*options, "plots=true"], folder))
    last = folder / "checkpoints" / "last.ckpt"
    train(compose([f"resume={last}", "trainer.max_epochs=3", "plots=false"], folder))
    return folder


@pytest.fixture(scope="module")
def events(resumed_run: Path) -> EventAccumulator:
    reader = EventAccumulator(str(resumed_run / "tensorboard"))
    reader.Reload()
    return reader


def test_each_row_of_metrics_csv_is_a_point_once(
    resumed_run: Path, events: EventAccumulator
) -> None:
    rows = [row for row in read_rows(resumed_run) if "val/acc" in row]
    assert len(rows) == 3
    for name in ("train/loss", "train/acc", "val/loss", "val/acc", "lr", "epoch"):
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(row["step"], pytest.approx(row[name])) for row in rows]


def test_the_results_are_beside_the_hyperparameters(
    resumed_run: Path, events: EventAccumulator
) -> None:
    metrics = json.loads((resumed_run / "metrics.json").read_text())
    for name in ("test/acc", "test/loss", "train_seconds"):
        *_, last = events.Scalars(name)
        assert last.value == pytest.approx(metrics[name])
    assert events.Scalars("best/val/acc")[-1].value == pytest.approx(metrics["val/acc"])
    contents = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"])
    values = start.session_start_info.hparams
    assert values["optimizer"].string_value == "muon"
    assert values["data/batch_size"].number_value == 25
    assert values["network/parameters"].number_value == 257_856
    experiment = HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    assert {"test/acc", "best/val/acc"} <= {info.name.tag for info in experiment.metric_infos}


def test_the_plots_are_images_and_the_mistakes_a_table(
    resumed_run: Path, events: EventAccumulator
) -> None:
    plots = {path.stem for path in (resumed_run / "figures").glob("*.png")}
    assert "confusion_matrix" in plots
    assert set(events.Tags()["images"]) == plots
    (text,) = events.Tensors("mistakes/text_summary")[0].tensor_proto.string_val
    heading, _, *lines = text.decode().splitlines()
    assert heading == "| label | prediction | confidence | test image |"
    first, second = (line.strip("| ").split(" | ") for line in lines[:2])
    assert first[0] != first[1]
    assert float(first[2]) >= float(second[2])


def test_a_folder_that_cannot_be_written_to_ends_no_training(
    tiny: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").touch()
    assert train(tiny("logger=tensorboard"))["test/acc"] is not None
    (said,) = warnings_in(caplog)
    assert said.startswith("TensorBoard could not start a run, so this run has none: ")


def test_a_failure_in_a_training_is_one_warning(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", broken)
    metrics = train(tiny("logger=tensorboard", "trainer.max_epochs=2"))
    assert metrics["test/acc"] is not None
    (said,) = warnings_in(caplog)
    assert said.startswith("TensorBoard: ")
    assert said.endswith("The training continues, but its TensorBoard run is incomplete.")


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in said if "TensorBoard" in record.getMessage()]
