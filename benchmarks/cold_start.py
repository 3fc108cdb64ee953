"""Seconds from a clone to the end of the first epoch and to passing tests.

    python benchmarks/cold_start.py data=folder data.path=DIR_OR_ARCHIVE

Clones this repository into a temporary folder, sets it up as `make train` and `make test` do, and
times each part. Then times how long an installed command takes to answer or to train its first
step. The last line of the output is JSON.

Options are those of the training. Environment: TESTS=0 leaves the tests out; REPEATS is how often
each short command runs, of which the median is reported.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cifar_lightning.config.overrides import prepare_arguments

ROOT = Path(__file__).resolve().parent.parent
Command = tuple[str | Path, ...]
REPEATS = int(os.environ.get("REPEATS", "3"))
# Ends the process after the first training step.
UNTIL_THE_FIRST_STEP = """
import os, sys
from cifar_lightning import train
from cifar_lightning.training import callbacks
callbacks.Throughput.on_train_batch_end = lambda *_: os._exit(0)
train.main()
"""


def seconds(name: str, *command: str | Path, folder: Path, expected: int = 0) -> float:
    """Time a command.

    Args:
        name: of the part, for the output.
        command: a program and its arguments.
        folder: where to run it.
        expected: its exit code.

    Raises:
        SystemExit: if the command ends with another exit code.
    """
    began = time.perf_counter()
    ended = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True
    )
    elapsed = time.perf_counter() - began
    if ended.returncode != expected:
        sys.exit(f"Error: {name} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    print(f"{elapsed:8.2f} s  {name}", flush=True)
    return elapsed


def absolute(option: str) -> str:
    """Make an option's path absolute, for a command that runs in another folder."""
    key, _, value = option.partition("=")
    return f"{key}={Path(value).absolute()}" if value and Path(value).exists() else option


def main() -> None:
    """Measure, and print a line for each part, then the summary."""
    options = prepare_arguments([absolute(option) for option in sys.argv[1:]])
    with tempfile.TemporaryDirectory() as temporary:
        checkout = Path(temporary) / "checkout"
        python = checkout / ".venv" / "bin" / "python"
        train: Command = (python, "-m", "cifar_lightning.train", *options, "logger=csv")
        first_step: Command = (python, "-c", UNTIL_THE_FIRST_STEP, *options, "logger=csv")
        imports = "import cifar_lightning.run, cifar_lightning.tracking.results"
        cold: dict[str, Command] = {
            "clone": ("git", "clone", "--quiet", ROOT, checkout),
            "dependencies": ("make", "-C", checkout, ".venv/.dependencies-of-lock"),
            "package": ("make", "-C", checkout, "setup"),
            "first import": (python, "-c", imports),
            "data and first step": first_step,
            "one epoch, started anew": (*train, "trainer.max_epochs=1"),
        }
        if os.environ.get("TESTS") != "0":
            cold["make test"] = ("make", "-C", checkout, "test")
        warm: dict[str, Command] = {
            "--help": (*train, "--help"),
            "--cfg job": (*train, "--cfg", "job"),
            "a mistyped option": (*train, "trainer.max_epoch=3"),
            "a value of the wrong kind": (*train, "trainer.max_epochs=abc"),
            "first step": first_step,
        }
        took = {name: seconds(name, *cold[name], folder=Path(temporary)) for name in cold}
        again = {
            name: statistics.median(
                seconds(name, *command, folder=Path(temporary), expected=int(name.startswith("a ")))
                for _ in range(REPEATS)
            )
            for name, command in warm.items()
        }
    print(
        json.dumps(
            {
                "cold": {name: round(value, 1) for name, value in took.items()},
                "warm": {name: round(value, 2) for name, value in again.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
