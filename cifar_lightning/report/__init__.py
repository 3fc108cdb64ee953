"""Writes an HTML page about a run or a sweep, or one that compares several runs.

python -m cifar_lightning.report run=runs/train/…
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_lightning.cli import entry


def report(config: DictConfig) -> Path:
    """Write report.html, a single file that works offline, and report.md and report.csv beside it.

    Args:
        config: of conf/report.yaml, as `config.compose.compose` gives it.

    Returns:
        The path of report.html.

    Raises:
        UserError: for a mistake that the user can fix.
    """
    # Imported here, so that `--help` and a mistyped option are answered at once.
    import webbrowser

    from rich import get_console

    from cifar_lightning.config import validate
    from cifar_lightning.errors import UserError
    from cifar_lightning.report.write import find_folders, write_comparison, write_report

    validate.check_keys(config, "report")
    if not isinstance(config.open, bool):
        raise UserError(f"open={config.open} is invalid: it must be true or false.")
    folders = find_folders(config.run)
    written = write_report(folders[0]) if len(folders) == 1 else write_comparison(folders)
    page = written.absolute()
    lines = [f"report     {page}"]
    if config.run is None:
        lines.append("run        the one that was started last; run=FOLDER names another")
    if config.open and not webbrowser.open(page.as_uri()):
        lines.append("browser    none could be opened, so open the page yourself")
    for line in lines:  # without markup, because a folder may be called [red]
        get_console().print(line, markup=False, highlight=False, soft_wrap=True)
    return page


main = entry("report", report)
