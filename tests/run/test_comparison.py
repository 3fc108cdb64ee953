"""The summary of runs says whether a difference is more than the noise of the seeds."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from cifar_lightning.tracking.comparison import compare_best
from cifar_lightning.tracking.run_folder import Run
from cifar_lightning.tracking.seeds import (
    by_configuration,
    by_run,
    groups_of,
    highlighted,
    seeds_to_add,
    summary,
)


def runs_of(settings: Sequence[Sequence[float]], first_seeds: Sequence[int] = ()) -> list[Run]:
    """Runs of settings lr=0, lr=1, …, with values of val/acc in the order of their seeds."""
    runs = []
    for lr, values in enumerate(settings):
        for seed, value in enumerate(values, start=first_seeds[lr] if first_seeds else 0):
            metrics = {"data": "cifar10", "seed": seed, "val/acc": value}
            name = f"{lr}-{seed}"
            runs.append(Run(Path(name), name, "finished", "", [f"lr={lr}"], metrics=metrics))
    return runs


def said(settings: Sequence[Sequence[float]], first_seeds: Sequence[int] = ()) -> str:
    runs = runs_of(settings, first_seeds)
    return "\n".join(summary(runs, groups_of(runs)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spread", [0.01, 0.05])  # of the first setting
@pytest.mark.parametrize(
    "seeds",
    [
        [range(2)] * 2,
        [range(3)] * 4,
        [range(2), range(5)],
        [range(2), range(5, 7)],
        [range(2), range(5, 10)],
        [range(2), range(5, 13)],
        [range(3), range(5, 15)],
    ],
    ids=lambda seeds: " ".join(f"{of.start}-{of.stop - 1}" for of in seeds),
)
def test_equal_settings_lead_at_most_as_often_as_promised(
    seeds: Sequence[range], spread: float
) -> None:
    generator = np.random.default_rng(0)
    leads = 0
    for _ in range(3000):
        of_seed = generator.normal(0.8, 0.01, 20)  # which settings share
        sweep = [
            {str(seed): of_seed[seed] + noise for seed, noise in zip(of, values, strict=True)}
            for number, of in enumerate(seeds)
            for values in [generator.normal(0, 0.01 if number else spread, len(of))]
        ]
        sweep.sort(key=lambda values: np.mean([*values.values()]), reverse=True)
        leads += any(comparison.is_lead for comparison in compare_best(sweep))
    assert leads <= 0.06 * 3000


def test_a_real_lead_is_found_with_its_interval() -> None:
    sweeps = np.random.default_rng(0).normal(0.8, 0.01, (50, 2, 5))
    sweeps[:, 1] += 0.04
    assert sum("It is better than lr=0" in said(sweep.tolist()) for sweep in sweeps) >= 45
    # By hand: differences 3, 4, 5; standard error 1 / sqrt(3); t = 4.303 for 95 % and 2 degrees.
    assert (
        "It is better than lr=0 by 4.00 points, more than the noise of the seeds "
        "(95% interval 1.52 to 6.48, paired t-test over 3 seeds, "
        in (said([[0.70, 0.75, 0.72], [0.73, 0.79, 0.77]]))
    )


def test_seeds_that_both_settings_have_are_paired() -> None:
    # Seeds differ far more than settings, which shows in pairs alone.
    better, worse = [0.71, 0.82, 0.63, 0.91], [0.70, 0.808, 0.62, 0.89]
    assert "paired t-test over 4 seeds, p = 0.012" in said([better, worse])
    fewer = said([better, worse[:3]])
    assert "It is better than lr=1 by 1.07 points" in fewer
    assert "paired t-test over the shared seeds 0, 1, 2, p = 0.004" in fewer
    assert "paired t-test over the shared seeds 2, 3, p = " in said([better, worse], [0, 2])
    below = said([[*better, 0.99], [value + 0.01 for value in better]])
    assert "It is 1.00 points below lr=1 at each of the shared seeds 0, 1, 2, 3. The dif" in below


def test_other_seeds_are_compared_by_their_means() -> None:
    # By hand: means 0.70 and 0.60; variances of the means 0.0001 and 0.0001; t = 7.07, which with
    # the one degree of freedom of two seeds is p = 0.089, and 12.706 standard errors are 0.18.
    first, second = [0.69, 0.71], [0.58, 0.59, 0.60, 0.61, 0.62]
    second = [0.6 + (value - 0.6) * 2**0.5 for value in second]
    text = said([first, second], [0, 5])
    assert (
        "10.00 points above lr=1, within the noise of the seeds (95% interval -7.97 to 27.97, "
        "Welch's t-test, p = 0.089)." in text
    )
    assert "More seeds may tell them apart" in text
    # A single seed that both have is no pair.
    assert "Welch's t-test" in said([first, second], [0, 1])


def test_several_settings_are_compared_with_the_best_and_corrected_for() -> None:
    best, second, third = [0.82, 0.84, 0.83], [0.80, 0.81, 0.83], [0.60, 0.62, 0.59]
    alone, text = said([best, third]), said([third, best, second])
    assert "It is better than lr=1 by 22.67 points" in alone
    assert "p < 0.001" in alone
    assert "It is better than lr=0 by 22.67 points" in text
    assert "p = 0.003" in text  # three times as large
    assert "It is 1.67 points above lr=2, within the noise of the seeds (95% interval" in text
    assert "corrected for all pairs of configurations (Holm)" in text
    many = said([best, *([0.5 + n / 100, 0.51 + n / 100, 0.54 + n / 100] for n in range(8))])
    assert "It is better than 3 of the 3 other configurations." in many


def test_p_is_corrected_as_holm_does() -> None:
    # Of six pairs in ascending order, the smallest p counts six times, the next five times, …
    generator = np.random.default_rng(3)
    means = (0.84, 0.83, 0.82, 0.80)
    sweep = [dict(enumerate(generator.normal(mean, 0.004, 4).round(6))) for mean in means]
    named = [{str(seed): value for seed, value in values.items()} for values in sweep]
    raw = {
        (i, j): ttest_rel([*sweep[i].values()], [*sweep[j].values()]).pvalue
        for i, j in combinations(range(4), 2)
    }
    corrected: dict[tuple[int, int], float] = {}
    for rank, pair in enumerate(sorted(raw, key=raw.__getitem__)):
        corrected[pair] = max([min(1.0, raw[pair] * (6 - rank)), *corrected.values()])
    found = [comparison.p for comparison in compare_best(named)]
    assert found == pytest.approx([corrected[0, other] for other in (1, 2, 3)], abs=1e-5)
    assert found[0] < raw[0, 1] * 6  # it is not the smallest of the six


def test_a_single_seed_is_called_that() -> None:
    assert "It is 1.00 points above lr=0, but each has a single seed" in said([[0.8], [0.81]])
    assert "It has the same accuracy as lr=1, but each has a single seed" in said([[0.8], [0.8]])
    assert "above lr=0, but lr=0 has a single seed" in said([[0.8], [0.81, 0.82]])
    text = said([[0.8, 0.81], [0.82]])
    assert "is lr=1: 82.00% on validation (a single seed)" in text
    assert "above lr=0, but lr=1 has a single seed" in text
    again = [*runs_of([[0.8, 0.9]]), *runs_of([[0.8]])]
    assert "(2 seeds, 3 runs)" in "\n".join(summary(again, groups_of(again)))


@pytest.mark.filterwarnings("error")
def test_values_without_a_spread_are_no_lead() -> None:
    equal = said([[0.8, 0.81, 0.8], [0.8, 0.81, 0.8]])
    assert "lr=1 has the same values at each of 3 seeds." in equal
    for settings, first_seeds in (
        ([[0.82, 0.82], [0.8, 0.8]], [0, 0]),
        ([[0.82, 0.83], [0.8, 0.81]], [0, 0]),  # floating point: not quite equal differences
        ([[0.82, 0.82], [0.8, 0.8]], [0, 2]),
    ):
        text = said(settings, first_seeds)
        at = "every seed" if first_seeds[1] else "each of 2 seeds"
        assert f"It is 2.00 points above lr=1 at {at}. The differences do not vary" in text
        assert "It is better" not in text
    # SciPy's own test warns of the spread of the first.
    assert "It is 1.50 points above lr=1, within the noise of the seeds (95%" in said(
        [[0.82, 0.82], [0.8, 0.81]], [0, 5]
    )


def test_accuracies_of_runs_that_stopped_at_their_target_are_said_to_be_that() -> None:
    runs = runs_of([[0.82, 0.84], [0.8, 0.8]])
    assert "at the target" not in "\n".join(summary(runs, groups_of(runs)))
    for run in runs[:2]:
        run.metrics.update(stopped_by="target", epochs=4)
    assert "2 runs stopped early at the target" in "\n".join(summary(runs, groups_of(runs)))
    # In its last epoch a run has seen as much as the others.
    runs[0] = replace(runs[0], max_epochs=4)
    assert "1 run stopped early at the target" in "\n".join(summary(runs, groups_of(runs)))


def test_of_several_seeds_the_configuration_is_what_counts() -> None:
    # The best run is one of the worse configuration.
    runs = runs_of([[0.80, 0.81, 0.82], [0.76, 0.77, 0.83]])
    groups = groups_of(runs)
    text = "\n".join(summary(runs, groups))
    assert "The best configuration is lr=0" in text
    assert "The best run" not in text
    assert highlighted(groups) == runs[:3]
    shown = ["val/acc"]
    assert by_run(Path(), runs, groups, shown).best == [0, 1, 2]
    assert by_configuration(groups, shown).best == [0]
    # One configuration, or a seed of each: then the best run says nothing else.
    assert "The best run is run 0-2" in said([[0.80, 0.81, 0.82]])
    assert highlighted(groups_of(runs[:3])) == [runs[2]]
    assert "The best run is run 1-0" in said([[0.80], [0.81]])


def test_runs_on_different_data_are_put_together_and_none_is_highlighted() -> None:
    runs = runs_of([[0.9], [0.7], [0.8], [0.95]])
    for run in runs[1:3]:
        run.metrics["data"] = "folder"
    runs[3] = replace(runs[3], status="interrupted")
    groups = groups_of(runs)
    assert [group.settings["lr"] for group in groups] == ["0", "2", "1", "3"]
    for table in (by_configuration(groups, ["val/acc"]), by_run(Path(), runs, groups, ["val/acc"])):
        assert not table.best
        assert table.sorted_by is None
    assert not highlighted(groups)
    text = "\n".join(summary(runs, groups))
    assert "different data (cifar10, folder), so none is called the best" in text
    assert "report run=FOLDER,FOLDER" in text


def test_the_option_of_a_group_that_was_not_typed_is_named() -> None:
    defaults, typed, same = runs_of([[0.8], [0.7], [0.8]])
    defaults = replace(defaults, overrides=[], choices={"model": "dilated_dw"})
    typed = replace(typed, overrides=["model=tiny"], choices={"model": "tiny"})
    same = replace(same, overrides=["model=dilated_dw"], choices={"model": "dilated_dw"})
    runs = [defaults, typed, same]
    groups = groups_of(runs)
    assert [group.name for group in groups] == ["model=dilated_dw", "model=tiny"]
    table = by_run(Path(), runs, groups, [])
    assert [row[1].text for row in table.rows] == ["dilated_dw", "tiny", "dilated_dw"]
    assert groups_of([defaults, same])[0].settings == {}  # no column for what is the same


def test_the_seeds_to_add_are_those_that_are_new(tmp_path: Path) -> None:
    runs = runs_of([[0.80, 0.81, 0.83], [0.79, 0.81, 0.81]])
    for run in runs:
        run.overrides.append(f"seed={run.seed}")

    def new(runs: Sequence[Run]) -> str:
        return seeds_to_add(tmp_path, runs, groups_of(runs))

    assert not new(runs)  # no sweep
    record = {"hydra": {"overrides": {"task": ["lr=0,1", "seed=0,1,2"], "hydra": []}}}
    (tmp_path / "multirun.yaml").write_text(json.dumps(record))
    assert new(runs) == f"resume_sweep={tmp_path} seed=0,1,2,3,4"
    assert "as in seed=0,1,2,3,4." in "\n".join(summary(runs, groups_of(runs)))
    assert new(runs_of([[0.8], [0.7]])).endswith("seed=1,2,3,4")  # their seed was not typed
    many = runs_of([[0.80, 0.81, 0.83, 0.8, 0.8], [0.79, 0.81, 0.81, 0.81, 0.8]])
    assert "as in seed=0,1,2,3,4,5,6." in "\n".join(summary(many, groups_of(many)))
    assert not new([*runs, replace(runs[0], status="failed")])  # to be resumed first
    assert not new(runs_of([[0.90, 0.91, 0.92], [0.10, 0.11, 0.121]]))  # better beyond doubt
