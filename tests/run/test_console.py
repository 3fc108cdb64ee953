import pytest
from omegaconf import OmegaConf

from cifar_lightning.tracking.console import banner, show_result


def test_square_brackets_of_paths_and_messages_are_printed_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To Rich `[bold]` is a style and `[/x]` an end without a beginning."""
    config = OmegaConf.create({"run_dir": "/data/[bold]/[/x]"})
    banner("no /data/[bold]/[/x]", "a title")
    show_result(config, {"stopped_by": "target", "data": "[/x]", "test/acc": 0.5}, [])
    printed = capsys.readouterr().out
    assert printed.count("/data/[bold]/[/x]") == 2
    (row,) = (line for line in printed.splitlines() if line.startswith(" data "))
    assert row.split() == ["data", "[/x]"]
    assert "50.00%" in printed
