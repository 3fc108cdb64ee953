"""The content of a report on several runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cifar_lightning.report.charts import inline_svg, target_line
from cifar_lightning.report.commands import train_command
from cifar_lightning.report.one_run import ENVIRONMENT
from cifar_lightning.system.counted import counted
from cifar_lightning.tracking import seeds
from cifar_lightning.tracking.plots.curves import overlaid_curves
from cifar_lightning.tracking.run_folder import Run, read_config_dir, read_sweep
from cifar_lightning.tracking.tables import Cell, count, facts


def content_of(folder: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """The variables of the templates `runs.*`.

    Args:
        folder: to which the page is written; of the sweep, if they are those of a sweep.
        runs: at least one.
    """
    groups = seeds.groups_of(runs)
    shown = seeds.shown_metrics(groups)
    charts = [
        inline_svg(
            chart(runs, groups, against, label),
            name,
            f"Accuracy of {counted(len(runs), 'run')} by {label}",
        )
        for name, against, label in (
            ("by-epochs", "epoch", "epochs"),
            ("by-seconds", "throughput/train_seconds", "seconds of training"),
        )
        if any(run.curve(_accuracy(runs), against) for run in runs)
    ]
    measured, new = seeds.measured_groups(groups), seeds.seeds_to_add(folder, runs, groups)
    sweep = [*read_sweep(folder, "hydra"), *read_sweep(folder)]
    return {
        "folder": str(folder),
        "sentences": seeds.summary(runs, groups),
        "add_seeds": f"python -m cifar_lightning.train {new}" if new else "",
        "generated": sum(run.metrics.get("data") == "shapes" for run in runs),
        "measured": sum(bool(run.metrics) for run in runs),
        "facts": _facts(runs),
        "defaults": any("" in group.settings.values() for group in groups),
        "by_configuration": seeds.by_configuration(groups, shown),
        "by_run": seeds.by_run(folder, runs, groups, shown),
        "quantity": "validation" if _accuracy(runs) == "val/acc" else "training",
        "thick": "the best configuration" if len(measured) > 1 else "the best run" * len(measured),
        "charts": charts,
        "legend": [Cell(group.name, group=number) for number, group in enumerate(groups)],
        "unfinished": [run for run in runs if run.status != "finished"],
        "problems": [(run.name, problem) for run in runs for problem in run.problems],
        "common": _common(runs),
        "command": train_command(sweep, read_config_dir(folder), multirun=True) if sweep else "",
    }


def chart(
    runs: Sequence[Run],
    groups: Sequence[seeds.Group],
    against: str = "epoch",
    label: str = "epochs",
    legend: bool = False,
) -> Figure:
    """The accuracy curves of several runs in one plot; those of the best are thicker.

    Args:
        runs: all runs.
        groups: of the runs; each has its own colour.
        against: the column of `metrics.csv` for the x axis.
        label: of the x axis.
        legend: whether to draw a legend.
    """
    quantity, best = _accuracy(runs), seeds.highlighted(groups)
    ordered = [(group.name, run) for group in groups for run in group.members]
    targets = {target_line(run) for run in runs}
    return overlaid_curves(
        [(name, run.curve(quantity, against)) for name, run in ordered],
        (label, "validation accuracy" if quantity == "val/acc" else "training accuracy"),
        targets.pop() if len(targets) == 1 and quantity == "val/acc" else None,
        [number for number, (_, run) in enumerate(ordered) if run in best],
        legend,
    )


def _accuracy(runs: Sequence[Run]) -> str:
    return "val/acc" if any(run.curve("val/acc") for run in runs) else "train/acc"


def _common(runs: Sequence[Run]) -> list[str]:
    """The overrides that all runs have in common."""
    first = runs[0].settings
    same = {k: v for k, v in first.items() if all(run.settings.get(k) == v for run in runs)}
    return [f"{key}={value}" if key[0] != "~" else key for key, value in same.items()]


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Data, network and environment of the runs; values that differ are joined by "or"."""
    names = {"data": ("data", str), "model": ("network", str), "params": ("parameters", count)}
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, text in facts(run.metrics, names | ENVIRONMENT).items():
            found.setdefault(name, {})[text] = None
    return [(name, " or ".join(texts)) for name, texts in found.items()]
