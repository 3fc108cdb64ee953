"""Runs of a multirun by their configuration, and which of them is the best."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cifar_lightning.report.tables import mean_and_sd, numbers, percent
from cifar_lightning.tracking.run_folder import STATUSES, Run

NOT_FOR_CHOOSING = "Chosen by validation accuracy alone: the test images are not for choosing."


@dataclass(frozen=True)
class Group:
    """Runs of equal overrides but for the seed.

    Attributes:
        settings: those that not all runs of the report have; empty text for one left out.
        members: all of its runs.
    """

    settings: dict[str, str]
    members: list[Run]

    @property
    def name(self) -> str:
        """The settings in a line."""
        return describe(self.settings)

    @property
    def finished(self) -> list[Run]:
        """The runs that count."""
        return [run for run in self.members if run.status == "finished"]

    def values(self, key: str) -> list[float]:
        """A figure of each finished run that has it."""
        return numbers([run.metrics.get(key) for run in self.finished])

    def says(self, key: str) -> str:
        """Mean ± standard deviation of an accuracy."""
        mean, sd = mean_and_sd(self.values(key))
        return percent(mean) if sd is None else f"{100 * mean:.2f} ± {100 * sd:.2f} %"


def describe(settings: dict[str, str]) -> str:
    """`optimizer=muon, seed=1`; what is empty was left to the defaults."""
    typed = [key if key[0] == "~" else f"{key}={value}" for key, value in settings.items() if value]
    return ", ".join(typed) or ("the defaults" if settings else "one configuration")


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys of the overrides in which runs differ, but for the seed, as they were typed."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "seed")
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Runs by configuration: best mean validation accuracy first, none at the end."""
    keys = differing(runs)
    by_settings: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        by_settings.setdefault(tuple(_setting(run, key) for key in keys), []).append(run)
    groups = [
        Group(dict(zip(keys, settings, strict=True)), members)
        for settings, members in by_settings.items()
    ]

    def mean(group: Group) -> float:
        values = group.values("val/acc")
        return mean_and_sd(values)[0] if values else -math.inf

    return sorted(groups, key=mean, reverse=True)


def _setting(run: Run, key: str) -> str:
    value = run.settings.get(key)
    return "" if value is None else value or ("taken out" if key[0] == "~" else "''")


def best_run(runs: Sequence[Run]) -> Run | None:
    """The finished run of the best validation accuracy; None without, and over several data."""
    found = [r for r in runs if r.status == "finished" and numbers([r.metrics.get("val/acc")])]
    if not found or len({run.metrics.get("data") for run in found}) > 1:
        return None
    return max(found, key=lambda run: float(run.metrics["val/acc"]))


def verdict(runs: Sequence[Run], groups: Sequence[Group]) -> list[str]:
    """What a multirun found, in sentences.

    Args:
        runs: all of them.
        groups: as `groups_of` gives them.
    """
    best = best_run(runs)
    counts = Counter(run.status for run in runs)
    of_these = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    tally = f"{len(runs)} run{'s' * (len(runs) > 1)}: {of_these}."
    if best is None:
        return [_why_none(runs), tally]
    home = next(group for group in groups if best in group.members)
    named = {**home.settings, "seed": str(best.seed)}
    sentences = [
        f"The best run is {best.name} ({describe(named)}): "
        f"{percent(best.metrics['val/acc'])} validation accuracy{_test(best)}."
    ]
    accuracy = best.metrics["val/acc"]
    same = [r.name for r in runs if r is not best and r.metrics.get("val/acc") == accuracy]
    if same:
        has = "has" if len(same) == 1 else "have"
        sentences.append(f"Of the others, {' and '.join(same)} {has} the same.")
    measured = [group for group in groups if group.values("val/acc")]
    first = measured[0]
    n = len(first.values("val/acc"))
    if len(measured) > 1 or n > 1:
        seeds = {str(run.seed) for run in first.finished}
        over = f" over {n} {'seeds' if len(seeds) == n else 'runs'}" if n > 1 else " (one run)"
        on_test = f", {first.says('test/acc')} on test" if first.values("test/acc") else ""
        subject = f"The best configuration is {first.name}" if len(measured) > 1 else "The mean is"
        colon = ":" if len(measured) > 1 else ""
        sentences.append(f"{subject}{colon} {first.says('val/acc')} on validation{over}{on_test}.")
    if len(measured) > 1:
        sentences.append(_lead(first, measured[1]))
    return [*sentences, NOT_FOR_CHOOSING, tally]


def _why_none(runs: Sequence[Run]) -> str:
    finished = [run for run in runs if run.status == "finished"]
    if not finished:
        return "No run is finished, so there is no best one yet."
    data = sorted({str(run.metrics.get("data")) for run in finished})
    if len(data) > 1:
        return f"The runs are on different data ({', '.join(data)}), so none is the best."
    return (
        "The runs have no validation accuracy (data.val_size=0), so there is nothing to choose "
        "the best by: the test images are not for choosing."
    )


def _test(run: Run) -> str:
    found = numbers([run.metrics.get("test/acc")])
    return f", {percent(found[0])} on test" if found else ""


def _lead(first: Group, second: Group) -> str:
    """How far the best configuration is ahead, and whether its seeds can tell."""
    (mean, sd), (other, other_sd) = (mean_and_sd(g.values("val/acc")) for g in (first, second))
    gap = 100 * (mean - other)
    sentence = f"It leads {second.name} by {gap:.2f} points"
    if sd is None or other_sd is None:
        return f"{sentence}, which a second seed of each would say more about."
    counts = len(first.values("val/acc")), len(second.values("val/acc"))
    error = 100 * math.sqrt(sd**2 / counts[0] + other_sd**2 / counts[1])
    sentence += f" (standard error {error:.2f})"
    return f"{sentence}." if gap > 2 * error else f"{sentence}: these seeds do not tell them apart."
