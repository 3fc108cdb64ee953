"""Reads the files of a W&B run with W&B's own program."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WANDB = Path(sys.executable).with_name("wandb")


def without_service() -> dict[str, str]:
    """The environment, for a process that is to have a W&B service of its own.

    That of tests in this process would write what the other tells it to their folder.
    """
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


@dataclass
class Recorded:
    """A run's records.

    Attributes:
        folder: of the run.
        records: in their order, as `wandb leet inspect --json` prints them.
    """

    folder: Path
    records: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self.records if record["type"] == kind]

    @property
    def run(self) -> dict[str, Any]:
        """The first record: id, name, group and so on."""
        return self.of("run")[0]

    @property
    def config(self) -> dict[str, Any]:
        return self._merged("config")

    @property
    def history(self) -> list[dict[str, Any]]:
        """All rows."""
        return [record["item"] for record in self.of("history")]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Those of validations."""
        return [row for row in self.history if "val/acc" in row]

    @property
    def summary(self) -> dict[str, Any]:
        return self._merged("summary")

    def _merged(self, kind: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for record in self.of(kind):
            merged |= record["update"]
        return merged

    @property
    def names(self) -> set[str]:
        """Of all that was logged; a picture's or a table's is its own, not that of its parts."""
        logged = {key for row in self.history for key in row} | set(self.summary)
        return {name.removesuffix("._type") for name in logged}


def recorded(folder: Path) -> Recorded:
    """Read a run's folder; of one to which nothing was written yet there are no records.

    Args:
        folder: such as runs/wandb/offline-run-….
    """
    ended = subprocess.run(
        [WANDB, "leet", "inspect", "--json", folder], capture_output=True, text=True, timeout=60
    )
    lines = filter(None, ended.stdout.splitlines())
    return Recorded(folder, [json.loads(line) for line in lines])


def run_folders(place: Path = Path()) -> list[Path]:
    """The W&B folders of all runs, oldest first."""
    found = place.glob("runs/wandb/*run-*")
    return sorted((f for f in found if not f.is_symlink()), key=lambda f: f.stat().st_ctime_ns)
