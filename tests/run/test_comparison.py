"""What a summary of runs says of a lead: it is more than the noise of the seeds, or it is not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cifar_lightning.tracking.run_folder import Run
from cifar_lightning.tracking.seeds import groups_of, summary


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


@pytest.mark.parametrize("settings", [2, 4])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_settings_lead_at_most_as_often_as_promised(settings: int, seeds: int) -> None:
    generator = np.random.default_rng(0)
    sweeps = generator.normal(0.8, 0.01, (300, settings, seeds))
    assert sum("It leads" in said(sweep.tolist()) for sweep in sweeps) <= 0.06 * len(sweeps)


def test_a_real_lead_is_found_with_its_interval() -> None:
    sweeps = np.random.default_rng(0).normal(0.8, 0.01, (50, 2, 5))
    sweeps[:, 1] += 0.04
    assert sum("It leads lr=0" in said(sweep.tolist()) for sweep in sweeps) >= 45
    # By hand: differences 3, 4, 5; standard error 1 / sqrt(3); t = 4.303 for 95 % and 2 degrees.
    assert (
        "It leads lr=0 by 4.00 points (95 % interval 1.52 to 6.48, paired t-test of 3 seeds, "
        in (said([[0.70, 0.75, 0.72], [0.73, 0.79, 0.77]]))
    )


def test_seeds_are_paired_where_most_are_of_both() -> None:
    # Seeds differ far more than settings, which shows in pairs alone.
    better, worse = [0.71, 0.82, 0.63, 0.91], [0.70, 0.808, 0.62, 0.89]
    assert "paired t-test of 4 seeds, p = 0.012" in said([better, worse])
    assert "It leads lr=1 by 1.07 points" in said([better, worse[:3]])
    below = said([[*better, 0.99], [value + 0.01 for value in better]])
    assert "It is 1.00 points below lr=1 at every seed" in below
    text = said([better, worse], first_seeds=[0, 2])
    assert "Welch's t-test" in text
    assert "within the noise of these seeds" in text


def test_several_settings_are_compared_with_the_best_and_corrected_for() -> None:
    best, second, third = [0.82, 0.84, 0.83], [0.80, 0.81, 0.83], [0.60, 0.62, 0.59]
    alone, text = said([best, third]), said([third, best, second])
    assert "It leads lr=1 by 22.67 points" in alone
    assert "p < 0.001" in alone
    assert "It leads lr=0 by 22.67 points" in text
    assert "p = 0.003" in text  # three times as large
    assert "It is 1.67 points above lr=2 (95 % interval" in text
    assert "corrected for all pairs of configurations (Holm)" in text
    many = said([best, *([0.5 + n / 100, 0.51 + n / 100, 0.54 + n / 100] for n in range(8))])
    assert "It leads 0 of the 3 other configurations." in many


def test_a_single_seed_is_called_that() -> None:
    assert "It is 1.00 points above lr=0, but each has a single seed" in said([[0.8], [0.81]])
    assert "above lr=0, but lr=0 has a single seed" in said([[0.8], [0.81, 0.82]])
    text = said([[0.8, 0.81], [0.82]])
    assert "is lr=1: 82.00 % on validation with a single seed" in text
    assert "above lr=0, but lr=1 has a single seed" in text
    again = [*runs_of([[0.8, 0.9]]), *runs_of([[0.8]])]
    assert "over 2 seeds in 3 runs" in "\n".join(summary(again, groups_of(again)))


@pytest.mark.filterwarnings("error")
def test_values_without_a_spread_are_no_lead() -> None:
    equal = said([[0.8, 0.81, 0.8], [0.8, 0.81, 0.8]])
    assert "lr=1 has the same values." in equal
    for settings, first_seeds in (
        ([[0.82, 0.82], [0.8, 0.8]], [0, 0]),
        ([[0.82, 0.83], [0.8, 0.81]], [0, 0]),  # floating point: not quite equal differences
        ([[0.82, 0.82], [0.8, 0.8]], [0, 2]),
    ):
        text = said(settings, first_seeds)
        assert "It is 2.00 points above lr=1 at every seed: without any spread" in text
        assert "It leads" not in text


def test_accuracies_of_runs_that_stopped_at_their_target_are_said_to_be_that() -> None:
    runs = runs_of([[0.82, 0.84], [0.8, 0.8]])
    assert "stopped at the target" not in "\n".join(summary(runs, groups_of(runs)))
    for run in runs[:2]:
        run.metrics["stopped_by"] = "target"
    assert "2 runs stopped at the target" in "\n".join(summary(runs, groups_of(runs)))
