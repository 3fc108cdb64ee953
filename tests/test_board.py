"""W&B by real offline runs, read back with W&B's own viewer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from cifar_lightning.board import BoardLogger, open_board
from cifar_lightning.runs import read_rows
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]

BOARD = ("logger=default", "logger.wandb.mode=offline", "target_accuracy=null")


def inspect(run_dir: Path) -> dict[str, Any]:
    wandb = Path(sys.executable).with_name("wandb")
    ended = subprocess.run(
        [wandb, "leet", "inspect", "--summary", "--json", run_dir],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return dict(json.loads(ended.stdout))


def runs() -> list[Path]:
    return sorted(Path("runs/wandb").glob("offline-run-*"))


def test_the_board_shows_what_metrics_csv_holds(
    tiny: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = train(tiny(*BOARD))
    (folder,) = runs()
    shown = inspect(folder)
    text = json.dumps(shown)
    rows = read_rows(tmp_path / "run")
    assert metrics["test/acc"] == pytest.approx(rows[-1]["test/acc"], abs=1e-6)  # rounded
    for name in ("train/loss", "val/acc", "test/acc", "lr", "throughput/images_per_s"):
        assert name in text
    assert "learning_curves" in text
    assert '"stopped_by": "max_epochs"' in text
    assert f"wandb leet {folder}" in capsys.readouterr().out
    recorded = b"".join(file.read_bytes() for file in folder.rglob("*.wandb"))
    assert b"max_epochs" in recorded  # the configuration
    assert not list(folder.rglob("wandb-metadata.json"))  # the machine's name and paths


def test_two_runs_of_one_process_are_two_on_the_board(tiny: Compose) -> None:
    train(tiny(*BOARD, run_dir="one"))
    train(tiny(*BOARD, run_dir="two"))
    names = [path.name for path in runs()]
    assert len(names) == 2
    assert "-one-" in names[0]
    assert "-two-" in names[1]


def test_a_failing_board_never_stops_training(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    def broken(self: object, *arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb.Run, "log", broken)
    with pytest.warns(UserWarning, match=r"W&B failed .* No space left") as caught:
        metrics = train(tiny(*BOARD))
    assert metrics["test/acc"] is not None
    assert len([w for w in caught if "W&B" in str(w.message)]) == 1  # said once


def test_a_board_that_cannot_open_never_stops_training(tiny: Compose, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="W&B could not begin a run"):
        metrics = train(tiny(*BOARD, f"logger.wandb.save_dir={tmp_path}/file/x"))
    assert metrics["test/acc"] is not None


def test_without_credentials_auto_is_offline_and_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    board = open_board(mode="auto", save_dir="runs", run_id="auto")
    assert isinstance(board, BoardLogger)
    assert board.run.offline
    board.close()
    assert "WANDB_MODE" not in os.environ  # nothing leaks into the next job


def test_disabled_opens_nothing() -> None:
    assert open_board(mode="disabled") is None
    assert not Path("runs").exists()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="auto, online, offline or disabled, not 'maybe'"):
        open_board(mode="maybe")  # type: ignore[arg-type]
