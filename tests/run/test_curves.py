import os
from pathlib import Path

import pytest

from cifar_lightning.tracking.csv_logger import CSVLogger
from cifar_lightning.tracking.run_folder import read_rows


def test_rows_come_back_without_their_blank_cells(tmp_path: Path) -> None:
    curves = CSVLogger(tmp_path / "run")
    curves.log_metrics({"val/acc": 0.5, "epoch": 1.0}, step=9)
    curves.log_metrics({"test/acc": 0.25}, step=9)
    assert read_rows(tmp_path / "run") == [
        {"val/acc": 0.5, "epoch": 1.0, "step": 9.0},
        {"test/acc": 0.25, "step": 9.0},
    ]
    assert read_rows(tmp_path / "nowhere") == []


def test_a_run_that_goes_on_keeps_its_rows_up_to_there_and_a_new_one_none(tmp_path: Path) -> None:
    first = CSVLogger(tmp_path)
    for step in (4, 9, 14):
        first.log_metrics({"val/acc": step / 100}, step)
    first.log_metrics({"test/acc": 0.3}, 9)
    again = CSVLogger(tmp_path, steps_done=10)
    assert len(read_rows(tmp_path)) == 4  # nothing is lost before there is something new
    again.log_metrics({"val/acc": 0.99}, 14)
    assert [row["val/acc"] for row in read_rows(tmp_path)] == [0.04, 0.09, 0.99]
    CSVLogger(tmp_path).log_metrics({"val/acc": 0.1}, 4)
    assert len(read_rows(tmp_path)) == 1


def test_a_full_disk_leaves_the_rows_that_were_there(tmp_path: Path) -> None:
    curves = CSVLogger(tmp_path)
    curves.log_metrics({"val/acc": 0.5}, 4)
    before = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / f"metrics.csv.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        curves.log_metrics({"val/acc": 0.6, "test/acc": 0.6}, 9)
    assert (tmp_path / "metrics.csv").read_bytes() == before
