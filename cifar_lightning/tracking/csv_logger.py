"""The logger that writes `metrics.csv`."""

import csv
import io
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.tracking.run_folder import read_rows


class CSVLogger(Logger):
    """Writes `metrics.csv`: a row for each validation, and one for the test.

    Lightning's CSVLogger deletes the file of a resumed run, and appends rows, so that a full disk
    leaves half a row. This logger rewrites the whole file, which is small, with every row.

    Args:
        run_dir: the run's folder.
        steps_done: number of steps that a resumed run has done: rows of these steps are kept,
            except the test's. None keeps no rows.
    """

    name = "curves"
    version = ""

    def __init__(self, run_dir: str | Path, steps_done: int | None = None) -> None:
        super().__init__()
        self._file = Path(run_dir) / "metrics.csv"
        self._rows: list[dict[str, float]] = []
        if steps_done is not None:  # steps count from 0
            kept = (row for row in read_rows(run_dir) if row["step"] < steps_done)
            self._rows = [row for row in kept if "test/acc" not in row]

    @property
    def save_dir(self) -> str:
        """The run's folder, to which Lightning's profilers write."""
        return str(self._file.parent)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore the configuration, which has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row; missing values stay blank."""
        self._rows.append({**metrics, "step": float(step or 0)})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=sorted({key for row in self._rows for key in row}))
        writer.writeheader()
        writer.writerows(self._rows)
        if len(self._rows) == 1:  # only once: if the disk has vanished, writing must fail
            self._file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._file) as file:
            file.write(text.getvalue().encode())
