import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich import get_console
from torch import nn

from cifar_lightning.config.compose import CONF
from cifar_lightning.models.budget import NetworkCounts
from cifar_lightning.system.typed import program
from cifar_lightning.tracking.console import banner, show_network, show_result
from cifar_lightning.tracking.tables import Cell, Table, print_table


def has_tool(name: str) -> bool:
    """Whether the next step is named that a tool does, which may have been deleted."""
    return (CONF / f"{name}.yaml").exists()


def test_square_brackets_of_paths_and_messages_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To Rich `[bold]` is a style and `[/x]` an end without a beginning."""
    config = OmegaConf.create({"run_dir": "/data/[bold]/[/x]", "target_accuracy": None})
    banner("no /data/[bold]/[/x]", "a title")
    metrics = {"stopped_by": "max_epochs", "data": "[/x]", "test/acc": 0.5, "checkpoint": "a.ckpt"}
    show_result(config, metrics, [])
    printed = capsys.readouterr().out
    assert printed.count("/data/[bold]/[/x]") == 2 + has_tool("report")
    (row,) = (line for line in printed.splitlines() if line.startswith(" data "))
    assert row.split() == ["data", "[/x]"]
    assert "50.00%" in printed


def test_a_network_is_within_the_limits_that_are_set(capsys: pytest.CaptureFixture[str]) -> None:
    network, counts = nn.Conv2d(3, 8, 1), NetworkCounts(1234, 0, 2, 5_000_000)
    lifted = {"max_params": 1e6, "min_dilated": 0, "min_separable": None}
    show_network(network, "mine", 32, counts, lifted, layers=False)
    show_network(network, "mine", 32, counts, dict.fromkeys(lifted), layers=False)
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert first.startswith("mine: 1,234 parameters, 0 dilated and 2 depthwise separable")
    assert first.endswith(
        "5.00 M multiply-adds per image; within the budget (max_params=1,000,000)"
    )
    assert second.endswith("multiply-adds per image; no budget is set")


def test_a_table_in_a_narrow_terminal_has_its_numbers_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_console(), "width", 20)
    numbers = [Cell(f"{value:.6f}", value) for value in (0.123456, 0.234567, 0.345678)]
    print_table(Table(["a longer name", "one", "two", "three"], [[Cell("a b"), *numbers]]))
    shown = capsys.readouterr().out
    assert all(cell.text in shown for cell in numbers)
    assert "…" not in shown


def test_a_program_is_named_as_the_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch(0o755)
    monkeypatch.setattr("sys.executable", str(own))
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    assert program("python") == [".venv/bin/python"]
    monkeypatch.setenv("PATH", f"{own.parent}:{os.environ['PATH']}")
    assert program("python") == ["python"]
    (own.parent / "python3").touch(0o755)
    own.unlink()
    monkeypatch.setattr("sys.executable", f"{own}3")
    assert program("python") == ["python3"]
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert program("python") == ["uv", "run", "python"]


def test_the_end_of_a_run_says_what_was_reached_and_what_to_type_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = tmp_path / "my run" / "checkpoints" / "best.ckpt"
    best.parent.mkdir(parents=True)
    best.touch()
    config = OmegaConf.create({"run_dir": f"{tmp_path}/my run", "target_accuracy": 0.8})
    metrics: dict[str, Any] = {"data": "cifar10", "stopped_by": "target", "checkpoint": "best.ckpt"}
    metrics |= {"test/acc": 0.81, "val/acc": 0.83, "epochs_to_target": 4, "seconds_to_target": 60.0}
    show_result(config, metrics, [])
    printed = capsys.readouterr().out
    assert "Test accuracy 81.00%, validation accuracy 83.00%. It reached its target of 80% aft" in (
        printed
    )
    evaluate = "cifar_lightning.evaluate 'checkpoint=my run/checkpoints/best.ckpt'\n"
    assert (evaluate in printed) == has_tool("evaluate")
    assert ("cifar_lightning.report 'run=my run'\n" in printed) == has_tool("report")
    monkeypatch.chdir(best.parent)  # where the run's folder is not in the working directory
    show_result(config, metrics, [])
    report = f"cifar_lightning.report 'run={tmp_path}/my run'\n"
    assert (report in capsys.readouterr().out) == has_tool("report")
    show_result(config, metrics | {"test/acc": 0.79}, [], details=False)
    printed = capsys.readouterr().out
    assert "but its test accuracy is below the target" in printed
    assert "cifar_lightning." not in printed  # a job of a sweep, which has a summary of its own
    interrupted = {"stopped_by": "interrupted", "epochs": 1.5, "epochs_to_target": None}
    show_result(config, metrics | interrupted | {"test/acc": None}, [])
    expected = (
        "Interrupted after 1.5 epochs. Not tested, validation accuracy 83.00%. It had not rea"
    )
    assert expected in capsys.readouterr().out
