"""The TensorBoard logger, which writes to `tensorboard/` in the run folder."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
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

if find_spec("tensorboard") is None:
    raise UserError(f"logger=tensorboard needs TensorBoard: {how_to_install('tensorboard')}")

FOLDER = "tensorboard"


class TensorBoardRunLogger(RunLogger, TensorBoardLogger):
    """Lightning's TensorBoard logger. If it fails, there is one warning.

    Scalars: a point for each validation. Text: the configuration and the most confident mistakes.
    Images: the plots. HParams: the configuration with the results.

    Args:
        run_dir: the run folder.
    """

    label = shown_as = "TensorBoard"

    def __init__(self, run_dir: str) -> None:
        super().__init__(run_dir, name=FOLDER, version="", default_hp_metric=False)
        self._run_dir = Path(run_dir)
        self._config: dict[str, Any] = {}
        self._last_step = 0
        self.experiment.flush()  # creates the file, so that it fails now if it cannot be written

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics, except the test's, which are among the results."""
        self._last_step = max(self._last_step, step or 0)
        if of_a_test(metrics) or self.is_logged(step):
            return
        with self.failure_as_warning():
            super().log_metrics(metrics, step)
            self.experiment.flush()  # else a killed run would lose up to two minutes

    def log_start(
        self, config: Mapping[str, Any], counts: NetworkCounts, target: TargetReached | None
    ) -> None:
        """Log the configuration and the network's counts as text."""
        self._config = flat_config(with_counts(config, counts))
        with self.failure_as_warning():
            text = _table(("key", "value"), self._config.items())
            self.experiment.add_text("configuration", text)
            self.experiment.flush()

    def log_end(
        self,
        metrics: Mapping[str, Any],
        figures: Mapping[str, Path],
        module: pl.LightningModule,
        data: ImageData,
        checkpoint: Path | None,
    ) -> None:
        """Log the plots, the mistakes, and the results beside the configuration."""
        results = {
            # Not val/acc, which is a curve; this is the tested checkpoint's.
            "best/val/acc" if name == "val/acc" else name: value
            for name, value in numbers(metrics).items()
            if name in ("val/acc", "train_seconds") or name.startswith("test/")
        }
        with self.failure_as_warning():
            for name, path in figures.items():
                image = np.asarray(Image.open(path).convert("RGB"))  # [H, W, 3]
                self.experiment.add_image(name, image, self._last_step, dataformats="HWC")
            if found := mistakes(module, data):
                columns = ("label", "prediction", "confidence", "test image")
                table = _table(columns, (mistake[1:] for mistake in found))
                self.experiment.add_text("mistakes", table, self._last_step)
            self.first_step = 0  # the results are new, even if no row is
            self.log_hyperparams(self._config, results, self._last_step)  # calls log_metrics
            self.experiment.flush()

    def how_to_open(self) -> str:
        """The command that shows this run and those beside it."""
        folder = os.path.relpath(self._run_dir.parent)
        return shlex.join([*program("tensorboard"), "--logdir", folder])

    def finalize(self, status: str) -> None:
        """Leave the file open until `close`, because Lightning calls this after each stage."""

    def close(self, exit_code: int = 0) -> None:
        """Close the file."""
        with self.failure_as_warning():
            self.experiment.close()


@rank_zero_only
def start_run(run_dir: str) -> TensorBoardRunLogger | None:
    """Start the TensorBoard record of a run, or continue that of a resumed run.

    Args:
        run_dir: the run folder.

    Returns:
        The logger; None if its file cannot be written, after a warning.
    """
    return start_or_warn("TensorBoard", lambda: TensorBoardRunLogger(run_dir))


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, which TensorBoard shows."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = (" | ".join(str(cell).replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join(f"| {line} |" for line in cells)
