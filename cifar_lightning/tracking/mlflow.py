"""The MLflow logger: Lightning's, with a local SQLite database if no server is named."""

import logging
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from filelock import FileLock
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities import rank_zero_only

from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError, how_to_install
from cifar_lightning.models.budget import NetworkCounts
from cifar_lightning.system.typed import program
from cifar_lightning.tracking.run_logger import (
    RunLogger,
    flat_config,
    mistakes,
    numbers,
    of_a_test,
    start_or_warn,
    with_counts,
)
from cifar_lightning.training.callbacks import TargetReached

if find_spec("mlflow") is None:
    raise UserError(f"logger=mlflow needs MLflow: {how_to_install('mlflow')}")

# Read by MLflow. A server that does not answer must not hold up a training for minutes.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",  # not each table of a new database
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
}
RUN_ID = "run_id"  # the tag by which a resumed run is found
LONGEST_PARAMETER = 250  # characters; Lightning cuts there


class MLFlowRunLogger(RunLogger, MLFlowLogger):
    """Lightning's MLflow logger. If MLflow fails, there is one warning, and it is left alone.

    Metrics: those of each validation, and the results. Parameters: the configuration. Artifacts:
    the plots, and a table of the most confident mistakes.

    Args:
        tracking_uri: of a server or a database.
        experiment: its name on MLflow.
        name: of the run.
        tags: by name; None is left out.
        run_id: of the run to continue on MLflow; None starts one.
        artifacts: the folder of a new experiment's files; None leaves it to the server.
    """

    label = "MLflow"
    shown_as = "MLflow"

    def __init__(
        self,
        tracking_uri: str,
        experiment: str,
        name: str | None,
        tags: Mapping[str, Any],
        run_id: str | None,
        artifacts: str | None,
    ) -> None:
        super().__init__(
            experiment_name=experiment,
            run_name=name,
            tracking_uri=tracking_uri,
            tags={key: str(value) for key, value in tags.items() if value is not None},
            artifact_location=artifacts,
            run_id=run_id,
        )
        self._last_step = 0
        self._continues = run_id is not None
        self._client, self._id = self.experiment, str(self.run_id)  # creates the run

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics, except the test's, which are among the results."""
        self._last_step = max(self._last_step, step or 0)
        if self.failed or of_a_test(metrics) or self.is_logged(step):
            return
        with self.failure_as_warning(), _quiet():
            super().log_metrics(metrics, step)

    def log_start(
        self, config: Mapping[str, Any], counts: NetworkCounts, target: TargetReached | None
    ) -> None:
        """Log the configuration and the network's counts.

        MLflow's parameters cannot change: what a resume has changed becomes a tag `resumed/KEY`.
        """
        with self.failure_as_warning(), _quiet():
            flat = {k: str(v) for k, v in flat_config(with_counts(config, counts)).items()}
            logged = self._client.get_run(self._id).data.params if self._continues else {}
            super().log_hyperparams({k: v for k, v in flat.items() if k not in logged})
            for key, value in flat.items():
                if key in logged and logged[key] != value[:LONGEST_PARAMETER]:
                    self._client.set_tag(self._id, f"resumed/{key}", value)

    def log_end(
        self,
        metrics: Mapping[str, Any],
        figures: Mapping[str, Path],
        module: pl.LightningModule,
        data: ImageData,
        checkpoint: Path | None,
    ) -> None:
        """Log the results, the plots and the mistakes."""
        if self.failed:
            return
        # val/acc is a curve; the result is the tested checkpoint's.
        results = {f"best/{k}" if k == "val/acc" else k: v for k, v in numbers(metrics).items()}
        columns = ("label", "prediction", "confidence", "test image")
        with self.failure_as_warning(), _quiet():
            super().log_metrics(results, self._last_step)
            for path in figures.values():
                self._client.log_artifact(self._id, str(path), "figures")
            if rows := [mistake[1:] for mistake in mistakes(module, data)]:
                table = {"columns": columns, "data": rows}  # the form of MLflow's log_table
                self._client.log_dict(self._id, table, "mistakes.json")

    def how_to_open(self) -> str:
        """The command of MLflow's pages, or the server."""
        if not self._tracking_uri.startswith("sqlite:"):
            return f"{self._tracking_uri}, run {self._id}"
        # The small package, mlflow-skinny, has no pages; another version may not read the file.
        whole = find_spec("flask") is not None
        command = program("mlflow") if whole else ["uvx", f"mlflow@{version('mlflow-skinny')}"]
        return shlex.join([*command, "ui", "--backend-store-uri", self._tracking_uri])

    def finalize(self, status: str = "success") -> None:
        """Leave the run open until `close`, because Lightning calls this after each stage."""

    def close(self, exit_code: int = 0) -> None:
        """Mark the run as finished or failed."""
        if self.failed:
            return
        with self.failure_as_warning(), _quiet():
            self._client.set_terminated(self._id, "FAILED" if exit_code else "FINISHED")


@rank_zero_only
def start_run(
    experiment: str = "cifar-lightning",
    name: str | None = None,
    tags: Mapping[str, str | None] | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
    save_dir: str = "runs/mlflow",
) -> MLFlowRunLogger | None:
    """Start an MLflow run, or continue that of a resumed run.

    Args:
        experiment: name of the experiment, which is created if there is none.
        name: of the run.
        tags: by name; None is left out.
        run_id: the tag of this name says which run is resumed.
        tracking_uri: of a server or a database; None is that of the environment variable
            MLFLOW_TRACKING_URI, and else a SQLite database in `save_dir`.
        save_dir: the folder for the database and the files.

    Returns:
        The logger; None if MLflow cannot start a run, after a warning.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)

    def start() -> MLFlowRunLogger:
        uri, artifacts = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri is not None:
            return open_run(uri, artifacts)
        folder = Path(save_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # Absolute, because files are read wherever the pages are opened from.
        artifacts = (folder.absolute() / "artifacts").as_uri()
        # MLflow creates a database's tables without a lock of its own.
        with FileLock(folder / ".lock"):
            return open_run(f"sqlite:///{folder / 'mlflow.db'}", artifacts)

    def open_run(uri: str, artifacts: str | None) -> MLFlowRunLogger:
        with _quiet():
            from mlflow import MlflowClient

            client = MlflowClient(uri)
            known = client.get_experiment_by_name(experiment)
            earlier = (
                client.search_runs([known.experiment_id], f"tags.{RUN_ID} = '{run_id}'")
                if known is not None and run_id is not None
                else []
            )
            resumed = earlier[0].info.run_id if earlier else None
            labels = {**(tags or {}), RUN_ID: run_id}
            logger = MLFlowRunLogger(uri, experiment, name, labels, resumed, artifacts)
            if resumed is not None:
                client.update_run(resumed, status="RUNNING")
            return logger

    return start_or_warn("MLflow", start)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's and its libraries' messages about themselves."""
    for name in ("alembic", "pytorch_lightning.loggers.mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
