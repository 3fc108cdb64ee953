"""The logger of Trackio, Hugging Face's local experiment tracker; Lightning has none."""

import contextlib
import io
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
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

if TYPE_CHECKING:
    from trackio.run import Run  # optional: needed with logger=trackio only

if find_spec("trackio") is None:
    raise UserError(f"logger=trackio needs Trackio: {how_to_install('trackio')}")


class TrackioRunLogger(RunLogger):
    """Logs to a Trackio run. If Trackio fails, there is one warning.

    Metrics: those of each validation, and the results. Configuration: the run's. Media: the plots,
    and a table of the most confident mistakes with their images.

    Args:
        run: what `trackio.init` returned.
        folder: in which Trackio keeps its files.
    """

    label = shown_as = "Trackio"

    def __init__(self, run: "Run", folder: Path) -> None:
        super().__init__()
        self.run = run
        self._folder = folder
        self._last_step = 0

    @property
    def name(self) -> str:
        """The project."""
        return str(self.run.project)

    @property
    def version(self) -> str:
        """The run's name."""
        return str(self.run.name)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Add to the run's configuration, with flat keys; it is stored with the first metrics."""
        self.run.config.update(flat_config(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics, except the test's, which are among the results."""
        self._last_step = max(self._last_step, step or 0)
        if not of_a_test(metrics) and not self.is_logged(step):
            self._log(metrics, step)

    def log_start(
        self, config: Mapping[str, Any], counts: NetworkCounts, target: TargetReached | None
    ) -> None:
        """Log the configuration and the network's counts."""
        with self.failure_as_warning():
            self.log_hyperparams(with_counts(config, counts))

    def log_end(
        self,
        metrics: Mapping[str, Any],
        figures: Mapping[str, Path],
        module: pl.LightningModule,
        data: ImageData,
        checkpoint: Path | None,
    ) -> None:
        """Log the results, the plots and the mistakes."""
        import trackio

        # val/acc is a curve; the result is the tested checkpoint's.
        results = {f"best/{k}" if k == "val/acc" else k: v for k, v in numbers(metrics).items()}
        with self.failure_as_warning():
            pictures = {name: trackio.Image(str(path)) for name, path in figures.items()}
            rows = [[trackio.Image(m.image), *m[1:]] for m in mistakes(module, data)]
            columns = ["image", "label", "prediction", "confidence", "test image"]
            table = {"mistakes": trackio.Table(columns=columns, data=rows)} if rows else {}
            self._log({**results, **pictures, **table}, self._last_step)

    def _log(self, values: Mapping[str, Any], step: int | None) -> None:
        with self.failure_as_warning(), _failures_raised():
            self.run.log(dict(values), step)

    def how_to_open(self) -> str:
        """The command of Trackio's pages."""
        command = shlex.join([*program("trackio"), "show", "--project", self.name])
        return f"TRACKIO_DIR={shlex.quote(os.path.relpath(self._folder))} {command}"

    def close(self, exit_code: int = 0) -> None:
        """Write what is left."""
        import trackio

        with self.failure_as_warning(), _failures_raised():
            trackio.finish()


@rank_zero_only
def start_run(
    project: str = "cifar-lightning",
    run_id: str | None = None,
    group: str | None = None,
    save_dir: str = "runs/trackio",
) -> TrackioRunLogger | None:
    """Start a Trackio run, or continue that of a resumed run.

    Args:
        project: of the run.
        run_id: the run's name on Trackio, by which a resumed run is found.
        group: name of a group of runs, such as those of a sweep.
        save_dir: the folder in which Trackio keeps its files; the first run's in this process.

    Returns:
        The logger; None if Trackio cannot start a run, after a warning.
    """
    return start_or_warn("Trackio", lambda: _start(project, run_id, group, Path(save_dir)))


def _start(project: str, run_id: str | None, group: str | None, folder: Path) -> TrackioRunLogger:
    # Trackio reads it once, when it is imported.
    if "trackio" not in sys.modules:
        os.environ["TRACKIO_DIR"] = str(folder.absolute())
    import trackio
    from trackio.utils import TRACKIO_DIR

    if folder.absolute() != TRACKIO_DIR:
        raise OSError(f"this process writes to {TRACKIO_DIR} already, not to {folder.absolute()}")
    folder.mkdir(parents=True, exist_ok=True)
    with _failures_raised():
        run = trackio.init(
            project=project,
            name=run_id,
            group=group,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    return TrackioRunLogger(run, folder)


@contextlib.contextmanager
def _failures_raised() -> Iterator[None]:
    """Raise the failures of which Trackio only warns, and print none of its messages."""
    with warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        yield
    if said:
        raise RuntimeError(str(said[0].message))
