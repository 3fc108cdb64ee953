"""logger=trackio, read back with Trackio's own API."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from programs import only, run_command

from cifar_lightning.tracking.run_folder import read_rows

pytestmark = pytest.mark.slow  # starts several programs

OPTIONS = (*TINY, "logger=trackio", "target_accuracy=null")

# Read in a process of its own, because Trackio reads the variable when it is imported.
READ = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage

json.dump([
    {"name": run.name, "config": run.config, "rows": SQLiteStorage.get_logs(run.project, run.name)}
    for run in trackio.Api().runs("cifar-lightning")
], open("read.json", "w"))
"""


def read(folder: Path) -> list[dict[str, Any]]:
    """All Trackio runs of a folder."""
    environment = os.environ | {"TRACKIO_DIR": str(folder)}
    subprocess.run([sys.executable, "-c", READ], check=True, env=environment)
    found: list[dict[str, Any]] = json.loads(Path("read.json").read_text())
    return found


def test_a_resumed_run_is_one_trackio_run_with_its_plots_and_hyperparameters(
    tmp_path: Path,
) -> None:
    run = tmp_path / "runs" / "run"
    ended = run_command(
        "train", *OPTIONS, "plots=true", "trainer.max_epochs=2", f"hydra.run.dir={run}"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "TRACKIO_DIR=runs/trackio " in ended.stdout
    assert "* " not in ended.stdout  # Trackio's own messages
    last = run / "checkpoints" / "last.ckpt"
    ended = run_command("train", f"resume={last}", "trainer.max_epochs=3", "plots=false")
    assert (ended.returncode, ended.stderr) == (0, "")

    folder = tmp_path / "runs" / "trackio"
    (logged,) = read(folder)
    rows = [row for row in read_rows(run) if "val/acc" in row]
    assert len(rows) == 3
    shown = [row for row in logged["rows"] if "val/acc" in row]
    for name in ("step", "train/loss", "train/acc", "val/loss", "val/acc", "lr"):
        assert [row[name] for row in shown] == pytest.approx([row[name] for row in rows])
    first, second = (row for row in logged["rows"] if "test/acc" in row)
    metrics = json.loads((run / "metrics.json").read_text())
    assert second["test/acc"] == metrics["test/acc"]
    assert second["best/val/acc"] == metrics["val/acc"]
    assert logged["config"]["optimizer"] == "muon"
    assert logged["config"]["optimizer/lr"] == 0.1
    assert logged["config"]["network/parameters"] == 257_856

    plots = {path.stem: path for path in (run / "figures").glob("*.png")}
    assert "confusion_matrix" in plots
    for name in plots:
        assert (folder / "media" / first[name]["file_path"]).stat().st_size > 1000
    table = first["mistakes"]["_value"]
    assert table[0]["label"] != table[0]["prediction"]
    assert (folder / "media" / table[0]["image"]["file_path"]).is_file()


def test_a_folder_that_cannot_be_written_to_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = run_command("train", *OPTIONS, f"logger.trackio.save_dir={tmp_path}/file/x")
    assert ended.returncode == 0
    output = ended.stdout + ended.stderr
    assert output.count("Trackio could not start a run, so this run has none: ") == 1
    assert json.loads(only("runs/train/*/metrics.json").read_text())["test/acc"] is not None
