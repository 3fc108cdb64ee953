"""logger=mlflow, read back with MLflow's own client."""

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

pytestmark = pytest.mark.slow  # MLflow takes some ten seconds to import

OPTIONS = (*TINY, "logger=mlflow", "target_accuracy=null")

# Read in a process of its own: MLflow leaves warnings behind, which fail a test.
READ = """
import json, sys
from mlflow import MlflowClient

client, found = MlflowClient(sys.argv[1]), []
experiments = client.search_experiments(filter_string="name = 'cifar-lightning'")
for run in client.search_runs([experiment.experiment_id for experiment in experiments]):
    data = run.data
    found.append({
        "id": run.info.run_id, "name": run.info.run_name, "status": run.info.status,
        "tags": data.tags, "params": data.params, "metrics": data.metrics,
        "history": {
            name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in data.metrics
        },
        "figures": [file.path for file in client.list_artifacts(run.info.run_id, "figures")],
    })
    if len(sys.argv) > 2:
        client.download_artifacts(run.info.run_id, "mistakes.json", sys.argv[2])
json.dump(found, sys.stdout)
"""


def read(folder: Path) -> list[dict[str, Any]]:
    """All MLflow runs of a database."""
    (folder / "downloaded").mkdir()
    arguments = [f"sqlite:///{folder}/runs/mlflow/mlflow.db", str(folder / "downloaded")]
    command = [sys.executable, "-W", "ignore", "-c", READ, *arguments]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert ended.returncode == 0, ended.stderr
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    return found


def test_a_resumed_run_is_one_mlflow_run_with_its_plots_and_hyperparameters(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    ended = run_command(
        "train", *OPTIONS, "plots=true", "trainer.max_epochs=2", f"hydra.run.dir={run}"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "ui --backend-store-uri sqlite:///runs/mlflow/mlflow.db" in ended.stdout
    last = run / "checkpoints" / "last.ckpt"
    ended = run_command("train", f"resume={last}", "trainer.max_epochs=3", "plots=false")
    assert (ended.returncode, ended.stderr) == (0, "")

    (logged,) = read(tmp_path)
    rows = [row for row in read_rows(run) if "val/acc" in row]
    assert len(rows) == 3
    for name in ("train/loss", "train/acc", "val/loss", "val/acc", "lr"):
        assert logged["history"][name] == [
            [row["step"], pytest.approx(row[name], abs=1e-6)] for row in rows
        ]
    metrics = json.loads((run / "metrics.json").read_text())
    assert logged["metrics"]["test/acc"] == metrics["test/acc"]
    assert logged["metrics"]["best/val/acc"] == metrics["val/acc"]
    assert logged["params"]["optimizer"] == "muon"
    assert logged["params"]["network/parameters"] == "257856"
    assert logged["params"]["trainer/max_epochs"] == "2"
    assert logged["tags"]["resumed/trainer/max_epochs"] == "3"
    assert logged["tags"]["model"] == "dilated_dw"
    assert "sweep" not in logged["tags"]
    assert logged["status"] == "FINISHED"
    plots = {f"figures/{path.name}" for path in (run / "figures").glob("*.png")}
    assert "figures/confusion_matrix.png" in plots
    assert set(logged["figures"]) == plots
    table = json.loads((tmp_path / "downloaded" / "mistakes.json").read_text())
    assert table["columns"] == ["label", "prediction", "confidence", "test image"]
    assert all(row[0] != row[1] for row in table["data"])
    assert len(table["data"]) == round((1 - metrics["test/acc"]) * 60)


def test_a_server_that_is_not_there_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    ended = run_command("train", *OPTIONS)
    assert ended.returncode == 0
    output = ended.stdout + ended.stderr
    assert output.count("MLflow could not start a run, so this run has none: ") == 1
    assert json.loads(only("runs/train/*/metrics.json").read_text())["test/acc"] is not None
    assert not (tmp_path / "runs" / "mlflow").exists()
