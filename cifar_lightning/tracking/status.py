"""How a run stands: what its metrics, its curves and its log say of its end."""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

# Interrupted by Ctrl-C or SIGTERM; failed with an error in its log; not finished because it still
# runs, was killed, or failed without a word there.
STATUSES = ("finished", "interrupted", "failed", "not finished")
LOG_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ([A-Z]+) ([\w.]+): (.*)$")


def status_of(
    folder: Path, metrics: dict[str, Any], rows: Sequence[dict[str, float]], resumed: str
) -> tuple[str, str]:
    """One of `STATUSES`, and why it is not finished, as far as is known.

    Args:
        folder: of the run.
        metrics: of its `metrics.json`; empty before it is over.
        rows: of its `metrics.csv`.
        resumed: name of the folder in .hydra/ of its last start; empty if it was not resumed.
    """
    epochs = metrics.get("epochs")
    more = isinstance(epochs, int | float) and any(
        # A test's row has the epoch begun; float32 differs from the rounded figure.
        row.get("epoch", 0) > epochs + 1e-4
        for row in rows
        if "test/acc" not in row
    )
    if metrics and not more:
        if metrics.get("stopped_by") == "interrupted":
            return "interrupted", "stopped by Ctrl-C or SIGTERM"
        return "finished", ""
    since = resumed.removeprefix("resumed_")
    for log in folder.glob("*.log"):
        if error := _last_error(log.read_text(errors="replace").splitlines(), since):
            return "failed", error
    # Not any file: a report's own, or one that is being written, would mislead.
    files = [folder / name for name in (".hydra", "metrics.csv", "train.log", "checkpoints")]
    last = max((f.stat().st_mtime for f in files if f.exists()), default=folder.stat().st_mtime)
    when = datetime.fromtimestamp(last)
    return "not finished", f"it still runs, failed or was killed; its last file is of {when:%F %T}"


def _last_error(lines: Sequence[str], since: str) -> str:
    """The last error in a run's log, without its traceback; empty if there is none.

    Args:
        lines: of the log.
        since: the time, as folders are named by it, of the last start; errors of earlier ones do
            not count.
    """
    message: list[str] = []
    within = False
    for line in lines:
        if found := LOG_LINE.match(line):
            # Other libraries' errors, such as W&B's, do not end a training.
            time, level, name, text = found.groups()
            within = level == "ERROR" and name.startswith("cifar_lightning")
            within = within and re.sub(r"\D", "", time) >= re.sub(r"\D", "", since)[:17]  # ms
            message = [text] if within else message
        elif line.startswith("Traceback"):
            within = False
        elif within and not line.startswith("HYDRA_FULL_ERROR=1 "):  # a hint for the terminal
            message.append(line)
    return "\n".join(message).strip()
