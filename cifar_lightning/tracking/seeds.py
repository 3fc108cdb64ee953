"""Compares runs: groups them by configuration, averages over seeds, and finds the best run."""

import itertools
import math
import os
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from cifar_lightning.system.counted import counted
from cifar_lightning.tracking.comparison import LEVEL, Comparison, compare_best
from cifar_lightning.tracking.run_folder import STATUSES, Run, read_sweep
from cifar_lightning.tracking.tables import Cell, Table, numbers, percent

# The metrics in tables: heading, factor to the unit shown, decimal places, unit.
METRICS: dict[str, tuple[str, float, int, str]] = {
    "val/acc": ("val accuracy", 100, 2, "%"),
    "test/acc": ("test accuracy", 100, 2, "%"),
    "test/loss": ("test loss", 1, 3, ""),
    "epochs": ("epochs", 1, 2, ""),
    "seconds_to_target": ("seconds to target", 1, 1, ""),
    "train_seconds": ("training seconds", 1, 1, ""),
    "images_per_s": ("images/s", 1, 0, ""),
    "train_tflop": ("TFLOP", 1, 2, ""),
}
COMPARED = 5  # configurations with their own sentence on how the best one compares


@dataclass(frozen=True)
class Group:
    """Runs whose overrides differ only in the seed.

    Attributes:
        settings: the overrides that differ between groups; "" for a key that is not overridden.
        members: all runs of the group.
    """

    settings: dict[str, str]
    members: list[Run]

    @property
    def name(self) -> str:
        """The settings on one line."""
        return describe(self.settings)

    @property
    def finished(self) -> list[Run]:
        """The finished runs."""
        return [run for run in self.members if run.status == "finished"]

    def values(self, key: str) -> list[float]:
        """The values of a metric in the finished runs that have it."""
        return numbers([run.metrics.get(key) for run in self.finished])

    def by_seed(self, key: str) -> dict[str, float]:
        """The values of a metric by seed; the mean if several runs have the same seed."""
        values: dict[str, list[float]] = {}
        for run in self.finished:
            values.setdefault(str(run.seed), []).extend(numbers([run.metrics.get(key)]))
        return {seed: statistics.fmean(found) for seed, found in values.items() if found}

    def format_mean(self, key: str) -> str:
        """Mean ± standard deviation of one of `METRICS` over the finished runs, as text."""
        return _mean_cell(key, self.values(key)).text


def describe(settings: dict[str, str]) -> str:
    """Settings as text, such as `optimizer=muon, seed=1`, without those that are not overridden."""
    typed = [key if key[0] == "~" else f"{key}={value}" for key, value in settings.items() if value]
    return ", ".join(typed) or ("the defaults" if settings else "one configuration")


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys whose overrides differ between runs, except the seed."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "seed")
    return [key for key in keys if len({_setting(run, key) for run in runs}) > 1]


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Runs grouped by configuration, the best mean validation accuracy first.

    Groups on different data cannot be compared: those on the same data are put together.
    """
    keys = differing(runs)
    by_settings: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        by_settings.setdefault(tuple(_setting(run, key) for key in keys), []).append(run)
    groups = [
        Group(dict(zip(keys, settings, strict=True)), members)
        for settings, members in by_settings.items()
    ]
    groups.sort(key=lambda group: _mean(group.values("val/acc")), reverse=True)
    if len(_data_of(runs)) > 1:
        groups.sort(key=lambda group: (not group.finished, _data_of(group.members)))
    return groups


def _data_of(runs: Sequence[Run]) -> list[str]:
    """The data of the finished runs."""
    return sorted({str(run.metrics.get("data")) for run in runs if run.status == "finished"})


def _setting(run: Run, key: str) -> str:
    """The override of a key; of a group that is not overridden, the default option."""
    value = run.settings.get(key, run.choices.get(key))
    return "" if value is None else value or ("deleted" if key[0] == "~" else "''")


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else -math.inf


def best_run(runs: Sequence[Run]) -> Run | None:
    """The finished run with the best validation accuracy.

    Returns:
        None if no run has one, or if the runs are on different data.
    """
    finished = [run for run in runs if run.status == "finished"]
    found = [run for run in finished if run.metrics.get("val/acc") is not None]
    if not found or len(_data_of(runs)) > 1:
        return None
    return max(found, key=lambda run: float(run.metrics["val/acc"]))


def measured_groups(groups: Sequence[Group]) -> list[Group]:
    """The groups that have a validation accuracy; none if the runs are on different data."""
    if best_run([run for group in groups for run in group.members]) is None:
        return []
    return [group for group in groups if group.values("val/acc")]


def highlighted(groups: Sequence[Group]) -> list[Run]:
    """The runs of the best configuration; of a single configuration, the best run."""
    measured = measured_groups(groups)
    if len(measured) > 1:
        return measured[0].finished
    return [run for group in measured if (run := best_run(group.members))]


def more_seeds(groups: Sequence[Group]) -> list[int]:
    """The seeds of the runs, and at least two further ones, so that there are at least five."""
    seeds = {str(run.seed) for group in groups for run in group.members}
    known = {int(seed) for seed in seeds if seed.isdecimal()}
    further = (seed for seed in itertools.count() if seed not in known)
    return sorted([*known, *itertools.islice(further, max(5 - len(known), 2))])


def seeds_to_add(folder: Path, runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """Arguments that add seeds to a finished sweep, in which its runs are not trained again.

    Args:
        folder: of the sweep.
        runs: all of the sweep's.
        groups: of the runs.

    Returns:
        Empty if it is no sweep, not finished, or if more seeds would tell nothing.
    """
    compared = compare_best([group.by_seed("val/acc") for group in measured_groups(groups)])
    if (
        not read_sweep(folder)
        or any(run.status != "finished" for run in runs)
        or all(comparison.p < LEVEL for comparison in compared)
    ):
        return ""
    # A run whose seed was not typed is another job than one of seed=0.
    untyped = {str(run.seed) for run in runs if "seed" not in run.settings}
    new = [str(seed) for seed in more_seeds(groups) if str(seed) not in untyped]
    return shlex.join([f"resume_sweep={folder}", f"seed={','.join(new)}"])


def summary(runs: Sequence[Run], groups: Sequence[Group]) -> list[str]:
    """Sentences on which configuration is best, how sure that is, and how the runs ended.

    Args:
        runs: all runs.
        groups: from `groups_of(runs)`.
    """
    best = best_run(runs)
    counts = Counter(run.status for run in runs)
    of_each = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    tally = f"{counted(len(runs), 'run')}: {of_each}."
    if best is None:
        return [_why_none(runs), tally]
    group = next(group for group in groups if best in group.members)
    accuracy, test = best.metrics["val/acc"], best.metrics.get("test/acc")
    on_test = "" if test is None else f", {percent(test)} on test"
    sentences = []
    measured = measured_groups(groups)
    if len(measured) > 1 or len(measured[0].values("val/acc")) > 1:
        sentences.append(_best_mean(measured))
    if len(measured) > 1:
        sentences += _leads(measured)
        if stopped := sum(map(_stopped_early, runs)):
            sentences.append(
                f"{counted(stopped, 'run')} stopped early at the target; longer training might "
                "have changed the order. To compare fully trained runs, set target_accuracy=null."
            )
    # Of several seeds the best is luck, and it may be one of another configuration.
    is_luck = len(measured) > 1 and any(len(group.values("val/acc")) > 1 for group in measured)
    if not is_luck:
        sentences.append(
            f"The best run is run {best.name} "
            f"({describe({**group.settings, 'seed': str(best.seed)})}): "
            f"{percent(accuracy)} validation accuracy{on_test}."
        )
    same = [r.name for r in runs if r is not best and r.metrics.get("val/acc") == accuracy]
    if same and not is_luck:
        subject = f"Run {same[0]} has" if len(same) == 1 else f"Runs {' and '.join(same)} have"
        sentences.append(f"{subject} the same validation accuracy.")
    selection = "The best is chosen by validation accuracy, never by test accuracy."
    return [*sentences, selection, tally]


def _stopped_early(run: Run) -> bool:
    """Whether a run stopped at its target before its last epoch."""
    was_last = run.max_epochs is not None and run.metrics.get("epochs") == run.max_epochs
    return run.metrics.get("stopped_by") == "target" and not was_last


def _why_none(runs: Sequence[Run]) -> str:
    finished = [run for run in runs if run.status == "finished"]
    if not finished:
        return "No run is finished, so there is no result yet."
    data = _data_of(runs)
    if len(data) > 1:
        return (
            f"The runs are on different data ({', '.join(data)}), so none is called the best. "
            "To compare some of them, name their folders: report run=FOLDER,FOLDER."
        )
    return (
        "The runs have no validation accuracy (data.val_size=0), so none is chosen as the best: "
        "test accuracy is never used to choose."
    )


def _best_mean(measured: Sequence[Group]) -> str:
    """A sentence on the mean accuracy of the best group, which is the first."""
    first = measured[0]
    runs, seeds = len(first.values("val/acc")), len(first.by_seed("val/acc"))
    over = f"{seeds} seeds" if seeds > 1 else "a single seed"
    if runs > seeds:
        over += f", {runs} runs"
    on_test = f", {first.format_mean('test/acc')} on test" if first.values("test/acc") else ""
    subject = f"Mean of {first.name}" if first.settings else "Mean"
    subject = f"The best configuration is {first.name}" if len(measured) > 1 else subject
    return f"{subject}: {first.format_mean('val/acc')} on validation{on_test} ({over})."


def _leads(measured: Sequence[Group]) -> list[str]:
    """Sentences that compare the best configuration with the others: better, or within noise."""
    best, *others = measured
    compared = compare_best([group.by_seed("val/acc") for group in measured])
    if not any(comparison.tested for comparison in compared):
        return [_lead(best, others[0], compared[0])]
    sentences = [_lead(best, *pair) for pair in zip(others, compared, strict=True)][:COMPARED]
    if further := compared[COMPARED:]:
        leads = sum(comparison.is_lead for comparison in further)
        sentences.append(f"It is better than {leads} of the {len(further)} other configurations.")
    if any(c.tested and c.p >= LEVEL for c in compared):
        sentences.append(f"More seeds may tell them apart, as in {_as_typed(measured)}.")
    if len(others) > 1:
        sentences.append(
            f"Better means p < {LEVEL}. The p-values are corrected for all pairs of configurations "
            "(Holm); the intervals are not."
        )
    return sentences


def _lead(best: Group, other: Group, found: Comparison) -> str:
    """A sentence on the difference between the best configuration and another."""
    points = 100 * found.difference
    seeds = f"{len(found.paired)} seeds"
    if len(found.paired) < max(len(group.by_seed("val/acc")) for group in (best, other)):
        seeds = f"the shared seeds {', '.join(found.paired)}"
    # At the shared seeds, the configuration with the best mean of all its seeds may be worse.
    gap = f"It is {abs(points):.2f} points {'below' if points < 0 else 'above'} {other.name}"
    if abs(points) < 0.005:
        gap = f"It has the same accuracy as {other.name}"
    if found.tested:
        test = f"paired t-test over {seeds}" if found.paired else "Welch's t-test"
        p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
        low, high = 100 * found.low, 100 * found.high
        details = f"(95% interval {low:.2f} to {high:.2f}, {test}, {p})"
        if found.is_lead:
            return (
                f"It is better than {other.name} by {points:.2f} points, more than the noise of "
                f"the seeds {details}."
            )
        if found.p < LEVEL:
            return f"{gap} {details}."
        return f"{gap}, within the noise of the seeds {details}."
    single = [group for group in (best, other) if len(group.by_seed("val/acc")) == 1]
    if single:
        has = "each has" if len(single) == 2 else f"{single[0].name} has"
        as_in = _as_typed([best, other])
        return f"{gap}, but {has} a single seed, so this may be noise. Add seeds, as in {as_in}."
    at = f"at each of {seeds}" if found.paired else "at every seed"
    if not found.difference:
        return f"{other.name} has the same values {at}."
    return f"{gap} {at}. The differences do not vary, so their noise is unknown."


def _as_typed(groups: Sequence[Group]) -> str:
    return f"seed={','.join(map(str, more_seeds(groups)))}"


def shown_metrics(groups: Sequence[Group]) -> list[str]:
    """The `METRICS` that at least one finished run has."""
    return [key for key in METRICS if any(group.values(key) for group in groups)]


def by_configuration(groups: Sequence[Group], shown: Sequence[str]) -> Table:
    """A table with a row for each group: its settings, number of runs, and mean metrics."""
    keys = list(groups[0].settings)
    rows = []
    for number, group in enumerate(groups):
        cells = [_setting_cell(group.settings[key]) for key in keys] or [Cell("all runs")]
        cells[0] = replace(cells[0], group=number)
        n = len(group.finished)
        rows.append([*cells, Cell(str(n), n), *(_group_cell(group, key) for key in shown)])
    headings = [*(keys or ["configuration"]), "runs", *(METRICS[key][0] for key in shown)]
    is_ranked = "val/acc" in shown and bool(measured_groups(groups))
    return Table(
        headings,
        rows,
        best=[0] if len(groups) > 1 and is_ranked else [],
        sorted_by=headings.index(METRICS["val/acc"][0]) if is_ranked else None,
    )


def by_run(
    folder: Path, runs: Sequence[Run], groups: Sequence[Group], shown: Sequence[str]
) -> Table:
    """A table with a row for each run: its settings, seed, metrics, and how it ended.

    Args:
        folder: that links are relative to.
        runs: in the order of the rows.
        groups: of the runs.
        shown: keys of `METRICS`.
    """
    keys, best = differing(runs), [run.folder for run in highlighted(groups)]
    # The curves on a page are numbered group by group.
    ordered = [run.folder for group in groups for run in group.members]
    group_of = {run.folder: n for n, group in enumerate(groups) for run in group.members}
    rows = []
    for run in runs:
        seed = "" if run.seed is None else str(run.seed)
        name = Cell(run.name, link=_link(folder, run), group=group_of[run.folder])
        settings = [_setting_cell(_setting(run, key)) for key in keys]
        metrics = [_mean_cell(key, numbers([run.metrics.get(key)])) for key in shown]
        rows.append([name, *settings, _setting_cell(seed), *metrics, Cell(_ending(run))])
    headings = ["run", *keys, "seed", *(METRICS[key][0] for key in shown), "ended by"]
    return Table(
        headings,
        rows,
        best=[row for row, run in enumerate(runs) if run.folder in best],
        keys=[f"run-{ordered.index(run.folder)}" for run in runs],
    )


def _mean_cell(key: str, values: Sequence[float]) -> Cell:
    """A cell with mean ± sample standard deviation; empty if there are no values."""
    if not values:
        return Cell("")
    mean = statistics.fmean(values)
    sd = statistics.stdev(values) if len(values) > 1 else None
    _, factor, digits, unit = METRICS[key]
    if key == "epochs" and sd in (None, 0) and mean == int(mean):
        digits = 0  # 4 epochs, but 4.25 if a run ended within an epoch
    spread = "" if sd is None else f" ± {factor * sd:,.{digits}f}"
    return Cell(f"{factor * mean:,.{digits}f}{spread}{unit}", mean)


def _group_cell(group: Group, key: str) -> Cell:
    """The mean of a group, and how many of its runs have the metric if not all have it."""
    found, n = group.values(key), len(group.finished)
    cell = _mean_cell(key, found)
    return Cell(f"{cell.text} ({len(found)} of {n})", cell.value) if 0 < len(found) < n else cell


def _ending(run: Run) -> str:
    if run.status != "finished":
        return run.status
    ending = str(run.metrics.get("stopped_by", ""))
    return {"max_epochs": "last epoch"}.get(ending, ending.replace("_", " "))


def _link(folder: Path, run: Run) -> str:
    """A link to the run's report if there is one, else to its folder."""
    path = os.path.relpath(run.folder, folder)
    has_report = (run.folder / "report.html").is_file()
    return quote(f"{path}/report.html") if has_report else f"{quote(path)}/"


def _setting_cell(text: str) -> Cell:
    try:
        return Cell(text, float(text))
    except ValueError:
        return Cell(text)
