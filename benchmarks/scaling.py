"""Two processes, two jobs or two search workers on one machine, compared with one.

    python benchmarks/scaling.py data=folder data.path=DIR_OR_ARCHIVE

Three comparisons of commands that a user types, one and two taking turns:

- images/s of a training by one process and by two (`trainer=ddp_sim`);
- jobs/hour of a sweep over seeds, one job at a time and two (`hydra/launcher=joblib`);
- trials/hour of a search by one worker and by two.

The time of jobs and trials is that of the whole command, with the start of its programs. The last
line of the output is JSON.

Options are those of training. Environment: ROUNDS, JOBS, TRIALS, and COMPARISONS (default
processes,jobs,workers).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cifar_lightning.run import devices

ROUNDS = int(os.environ.get("ROUNDS", "3"))
JOBS = int(os.environ.get("JOBS", "4"))
TRIALS = int(os.environ.get("TRIALS", "6"))
COMPARISONS = os.environ.get("COMPARISONS", "processes,jobs,workers").split(",")

# A fixed amount of work: no target, no W&B.
OF_ALL = ("logger=csv", "target_accuracy=null")


def start(command: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a command of the package; its output is discarded."""
    words = [sys.executable, "-m", f"cifar_lightning.{command}", *arguments]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL)


def seconds(*programs: "subprocess.Popen[bytes]") -> float:
    """Return the seconds until all programs have ended."""
    begun = time.perf_counter()
    codes = [program.wait() for program in programs]
    if any(codes):
        sys.exit(f"A command ended with exit codes {codes}.")
    return time.perf_counter() - begun


def images_per_s(processes: int, options: Sequence[str], folder: Path) -> float:
    """Train once, by one process or two; return images/s."""
    simulated = ["trainer=ddp_sim"] if processes == 2 else ["trainer.gpus=0"]
    seconds(start("train", *options, *OF_ALL, *simulated, f"hydra.run.dir={folder}"))
    return float(json.loads((folder / "metrics.json").read_text())["images_per_s"])


def jobs_per_hour(at_once: int, options: Sequence[str], folder: Path) -> float:
    """Run a sweep over seeds with so many jobs at once; return jobs/hour."""
    joblib = ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={at_once}"] if at_once > 1 else []
    sweep = [f"seed=range({JOBS})", "trainer.gpus=0", f"hydra.sweep.dir={folder}"]
    return 3600 * JOBS / seconds(start("train", "-m", *options, *OF_ALL, *sweep, *joblib))


def trials_per_hour(workers: int, options: Sequence[str], folder: Path) -> float:
    """Run a search by so many workers; return trials/hour. No pruning: trials are equal work."""
    fixed = [f"n_trials={TRIALS}", "pruner=null", "trainer.gpus=0", f"hydra.run.dir={folder}"]
    programs = [start("search", *options, "logger=csv", *fixed) for _ in range(workers)]
    return 3600 * TRIALS / seconds(*programs)


MEASURES: dict[str, tuple[str, Callable[[int, Sequence[str], Path], float]]] = {
    "processes": ("images_per_s", images_per_s),
    "jobs": ("jobs_per_hour", jobs_per_hour),
    "workers": ("trials_per_hour", trials_per_hour),
}


def compare(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Measure one and two of a kind in turn; return medians, and the ratio of each round."""
    unit, measure = MEASURES[name]
    found: dict[int, list[float]] = {1: [], 2: []}
    for number in range(ROUNDS):
        for count in found:
            with tempfile.TemporaryDirectory() as folder:
                found[count].append(measure(count, options, Path(folder) / "run"))
            print(f"{name} {count}, round {number + 1}: {found[count][-1]:,.1f} {unit}", flush=True)
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    return {
        "unit": unit,
        **{str(count): round(statistics.median(values), 1) for count, values in found.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    """Compare, and print the summary."""
    options = sys.argv[1:]
    summary: dict[str, Any] = {
        "options": options,
        "device": devices.device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "rounds": ROUNDS,
        "jobs_per_sweep": JOBS,
        "trials_per_search": TRIALS,
    }
    print(json.dumps(summary | {name: compare(name, options) for name in COMPARISONS}))


if __name__ == "__main__":
    main()
