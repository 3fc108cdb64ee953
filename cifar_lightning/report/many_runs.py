"""What the page of a multirun shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure

from cifar_lightning.report.charts import inline_svg, target_line
from cifar_lightning.report.commands import train_command
from cifar_lightning.report.groups import Group, best_run, differing, groups_of, verdict
from cifar_lightning.report.tables import FIGURES, Cell, Table, figure
from cifar_lightning.tracking.plots.curves import group_style, overlaid_curves
from cifar_lightning.tracking.run_folder import Run, read_sweep


def content_of(folder: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """What the templates `runs.*` take.

    Args:
        folder: of the multirun; the page will be in it.
        runs: in it, at least one.
    """
    groups = groups_of(runs)
    best = best_run(runs)
    shown = [key for key in FIGURES if any(group.values(key) for group in groups)]
    # In the order of the groups, whose styles are numbered like that.
    ordered = [run for group in groups for run in group.members]
    charts = [
        inline_svg(
            chart(groups, ordered, best, against, label),
            name,
            f"Accuracy of {len(runs)} runs against {label}",
        )
        for name, against, label in (
            ("by-epochs", "epoch", "epochs"),
            ("by-seconds", "throughput/train_seconds", "seconds of training"),
        )
        if any(run.curve(_quantity(runs), against) for run in runs)
    ]
    sweep = read_sweep(folder)
    return {
        "title": folder.absolute().name,
        "folder": str(folder),
        "sentences": verdict(runs, groups),
        "generated": {"shapes"} & {str(run.metrics.get("data")) for run in runs},
        "facts": _facts(runs),
        "by_configuration": by_configuration(groups, shown),
        "by_run": by_run(folder, runs, ordered, groups, shown, best),
        "quantity": "validation" if _quantity(runs) == "val/acc" else "training",
        "charts": charts,
        "legend": [Cell(g.name, style=group_style(i)) for i, g in enumerate(groups)],
        "unfinished": [run for run in runs if run.status != "finished"],
        "problems": [(run.name, problem) for run in runs for problem in run.problems],
        "common": _common(runs),
        "command": train_command(sweep, multirun=True) if sweep else "",
    }


def chart(
    groups: Sequence[Group],
    ordered: Sequence[Run],
    best: Run | None,
    against: str = "epoch",
    label: str = "epochs",
    legend: bool = False,
) -> Figure:
    """The runs' curves of accuracy over each other.

    Args:
        groups: of the runs.
        ordered: the runs, group by group.
        best: drawn thicker.
        against: the column of `metrics.csv` for the x axis.
        label: of the x axis.
        legend: whether to draw one.
    """
    names = {id(run): group.name for group in groups for run in group.members}
    quantity = _quantity(ordered)
    targets = {target_line(run) for run in ordered}
    return overlaid_curves(
        [(names[id(run)], run.curve(quantity, against)) for run in ordered],
        (label, "validation accuracy" if quantity == "val/acc" else "training accuracy"),
        targets.pop() if len(targets) == 1 and quantity == "val/acc" else None,
        None if best is None else next(i for i, run in enumerate(ordered) if run is best),
        legend,
    )


def _quantity(runs: Sequence[Run]) -> str:
    return "val/acc" if any(run.curve("val/acc") for run in runs) else "train/acc"


def by_configuration(groups: Sequence[Group], shown: Sequence[str]) -> Table:
    """A row a group: its settings, how many runs count, and the mean of the figures `shown`."""
    keys = list(groups[0].settings)
    rows = []
    for number, group in enumerate(groups):
        cells = [_setting(group.settings[key]) for key in keys] or [Cell("all runs")]
        cells[0] = Cell(cells[0].text, cells[0].value, style=group_style(number))
        n = len(group.finished)
        rows.append([*cells, Cell(str(n), n), *(_of_group(group, key) for key in shown)])
    headings = [*(keys or ["configuration"]), "runs", *(FIGURES[key][0] for key in shown)]
    first = len(headings) - len(shown) - 1
    return Table(
        headings,
        rows,
        numeric=set(range(first, len(headings))) | (_numeric_settings(rows, len(keys)) - {0}),
        best=0 if len(groups) > 1 and groups[0].values("val/acc") else None,
        sorted_by=first + 1 if "val/acc" in shown else None,
    )


def _of_group(group: Group, key: str) -> Cell:
    """Mean ± standard deviation; how many runs have the figure, where not all do."""
    found, all_of_them = group.values(key), len(group.finished)
    cell = figure(key, found)
    if 0 < len(found) < all_of_them:
        return Cell(f"{cell.text} ({len(found)} of {all_of_them})", cell.value)
    return cell


def by_run(
    folder: Path,
    runs: Sequence[Run],
    ordered: Sequence[Run],
    groups: Sequence[Group],
    shown: Sequence[str],
    best: Run | None,
) -> Table:
    """A row a run: its settings, its seed, the figures `shown`, and how it ended.

    Args:
        folder: that the links are relative to.
        runs: in the order of the rows.
        ordered: the runs, group by group.
        groups: of the runs.
        shown: keys of `FIGURES`.
        best: the run to stress.
    """
    keys = differing(runs)
    of_group = {id(run): number for number, group in enumerate(groups) for run in group.members}
    rows = []
    for position, run in enumerate(runs):
        seed = "" if run.seed is None else str(run.seed)
        rows.append(
            [
                Cell(
                    run.name,
                    _as_number(run.name, position),
                    _link(folder, run),
                    group_style(of_group[id(run)]),
                ),
                *(_setting(run.settings.get(key, "")) for key in keys),
                Cell(seed, _as_number(seed, seed)),
                *(figure(key, [run.metrics.get(key)]) for key in shown),
                Cell(_ending(run)),
            ]
        )
    headings = ["run", *keys, "seed", *(FIGURES[key][0] for key in shown), "ended by"]
    first = len(keys) + 1
    return Table(
        headings,
        rows,
        numeric=set(range(first, first + 1 + len(shown)))
        | {1 + column for column in _numeric_settings([row[1:] for row in rows], len(keys))},
        best=None if best is None else next(i for i, run in enumerate(runs) if run is best),
        keys=[f"run-{next(i for i, r in enumerate(ordered) if r is run)}" for run in runs],
    )


def _ending(run: Run) -> str:
    if run.status != "finished":
        return run.status
    ending = str(run.metrics.get("stopped_by", ""))
    return {"max_epochs": "last epoch"}.get(ending, ending)


def _link(folder: Path, run: Run) -> str:
    """To the run's own report, or else to its folder, relative to the multirun's."""
    place = run.folder.relative_to(folder)
    report = run.folder / "report.html"
    return quote(str(place / "report.html")) if report.is_file() else f"{quote(str(place))}/"


def _setting(text: str) -> Cell:
    return Cell(text, _as_number(text, text)) if text else Cell("")


def _as_number(text: str, otherwise: float | str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return otherwise


def _numeric_settings(rows: Sequence[Sequence[Cell]], columns: int) -> set[int]:
    """Of the first columns, those with numbers alone."""
    return {
        c for c in range(columns) if all(isinstance(row[c].value, float | None) for row in rows)
    }


def _common(runs: Sequence[Run]) -> list[str]:
    """The settings that all runs have."""
    first = runs[0].settings
    same = {k: v for k, v in first.items() if all(run.settings.get(k) == v for run in runs)}
    return [f"{key}={value}" if key[0] != "~" else key for key, value in same.items()]


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What the runs were on: each value that one of them has."""
    names = {
        "data": "data",
        "model": "network",
        "params": "parameters",
        "device": "device",
        "precision": "precision",
        "torch": "PyTorch",
        "world_size": "processes",
    }
    facts = []
    for key, name in names.items():
        values = [run.metrics[key] for run in runs if key in run.metrics]
        texts = dict.fromkeys(f"{v:,}" if isinstance(v, int) else str(v) for v in values)
        if texts:
            facts.append((name, " or ".join(texts)))
    return facts
