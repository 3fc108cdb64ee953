"""The results of a search: a table, plots, and the best configuration as an experiment."""

import csv
import io
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich import get_console

from cifar_lightning.config.compose import CONF
from cifar_lightning.search.study import (
    Search,
    as_text,
    current_trials,
    is_of_machine,
    number_of,
    recipe,
    without_password,
)
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.system.counted import counted
from cifar_lightning.tracking import console, plots, tables

NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
SHOWN = 5  # best trials


def show_start(search: Search) -> None:
    """Print what is searched, where it is stored, and how many trials are done."""
    ended = sum(trial.state.is_finished() for trial in current_trials(search.study))
    so_far = f", {ended} of them done" * bool(ended)
    for label, text in (
        ("study", f"{search.study.study_name}: {counted(search.n_trials, 'trial')}{so_far}"),
        ("space", ", ".join(search.space)),
        ("storage", without_password(search.address)),
        ("folder", str(search.folder)),
    ):
        console.note(label, text)
    get_console().print()


def write(search: Search) -> dict[str, Any]:
    """Write the table, the plots and the best configuration; print the best trials.

    Returns:
        The number of trials in each state, by the state's name. If a trial is complete: the number
        of the best one as `best`, and its value of the monitored metric by the metric's name.
    """
    study = search.study
    trials = current_trials(study)
    counts = Counter(NAMES[trial.state] for trial in trials)
    found: dict[str, Any] = {name: counts[name] for name in NAMES.values() if counts[name]}
    tally = ", ".join(f"{count} {name}" for name, count in found.items())
    notes = [("trials", tally), ("table", str(write_table(search, trials)))]
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    is_loss = study.direction == StudyDirection.MINIMIZE
    ranked = sorted(complete, key=lambda trial: trial.value or 0.0, reverse=not is_loss)
    if ranked:
        notes += [("plot", str(plot)) for plot in write_plots(search)]
        name = f"{study.study_name}_best"
        value = as_text(search.monitor, ranked[0].value or 0.0)
        result = (
            f"{search.monitor} {value}: the best of {counted(len(trials), 'trial')}, with one seed"
        )
        file, command = write_experiment(search.folder, name, search.overrides, ranked[0], result)
        best_trial = f"trial {number_of(ranked[0])}, {search.monitor} {value} with one seed"
        luck = (
            "the best of many trials is partly luck: train it with new seeds to know how good it is"
        )
        notes += [("best", best_trial), ("experiment", str(file)), ("train it", command)]
        notes += [("note", luck)] * (len(ranked) > 1)
        found |= {"best": number_of(ranked[0]), search.monitor: ranked[0].value}
        _show_best(search, ranked[:SHOWN])
    for label, text in notes:
        console.note(label, text)
    return found


def _show_best(search: Search, trials: Sequence[FrozenTrial]) -> None:
    rows = []
    for trial in trials:
        chosen = dict(override.split("=", 1) for override in trial.user_attrs["overrides"])
        number, value = number_of(trial), trial.value or 0.0
        cells = [tables.Cell(str(number), number)]
        cells += [tables.Cell(as_text(search.monitor, value), value)]
        rows.append([*cells, *(tables.Cell(chosen[key]) for key in search.space)])
    headings = ["trial", search.monitor.replace("/", " "), *search.space]
    tables.print_table(tables.Table(headings, rows))


def write_table(search: Search, trials: Sequence[FrozenTrial]) -> Path:
    """Write `trials.csv`: a row for each trial, with the values that it was trained with."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    further = ("epochs", "train_seconds", "params", "device", "same_as", "reason")
    params = list(search.space)
    writer.writerow(["trial", "state", search.monitor, *params, *further])
    for trial in trials:
        chosen = dict(override.split("=", 1) for override in trial.user_attrs.get("overrides", []))
        value = "" if trial.value is None else round(trial.value, 6)
        notes = [trial.user_attrs.get(key, "") for key in further]
        values = [chosen.get(key, "") for key in params]
        writer.writerow([number_of(trial), NAMES[trial.state], value, *values, *notes])
    table = search.folder / "trials.csv"
    with atomic_write(table) as file:
        file.write(stream.getvalue().encode())
    return table


def write_plots(search: Search) -> list[Path]:
    """Plot Optuna's `history.png` and `importance.png`, if there are enough trials for them."""
    from optuna.visualization import matplotlib as draw

    written = []
    target = {"val/acc": "validation accuracy", "val/loss": "validation loss"}
    label = target.get(search.monitor, search.monitor)
    for name, function in (
        ("history", draw.plot_optimization_history),
        ("importance", draw.plot_param_importances),
    ):
        try:
            with warnings.catch_warnings(action="ignore"):  # these functions are experimental
                figure = function(search.study, target_name=label).figure
        except (ValueError, RuntimeError):  # a single trial, or equal trials
            continue
        assert isinstance(figure, Figure)
        figure.set_layout_engine("constrained")
        figure.set_size_inches(8, 4.5)
        file = search.folder / f"{name}.png"
        plots.save_png(figure, file)
        written.append(file)
    return written


def write_experiment(
    folder: Path, name: str, overrides: Sequence[str], best: FrozenTrial, result: str
) -> tuple[Path, str]:
    """Write the best trial's configuration to `conf/experiment/NAME.yaml` in the search's folder.

    Args:
        folder: of the search.
        name: of the experiment.
        overrides: the user's overrides for every trial.
        best: the best trial.
        result: its result, as the beginning of a sentence for a comment in the file.

    Returns:
        The file, and the command that trains with it.
    """
    here = [o for o in overrides if is_of_machine(o)]
    chosen = [*recipe(overrides), *best.user_attrs["overrides"]]
    base = [o.partition("=")[2] for o in chosen if o.startswith("experiment=")]
    left_out = [o for o in recipe(overrides) if o.startswith("~")]
    kept = [o for o in chosen if not o.startswith(("experiment=", "~"))]
    parsed = OverridesParser.create().parse_overrides(["target_accuracy=null", *kept])
    values = {o.key_or_group: o.value() for o in parsed}
    groups = [key for key in values if (CONF / key).is_dir()]
    content = OmegaConf.create()
    if base or groups:
        overriding = [{f"override /{group}": values[group]} for group in groups]
        content.defaults = [*base, *overriding, "_self_"]
    for key, value in values.items():
        if key not in groups:
            OmegaConf.update(content, key, value)
    file = folder / "conf" / "experiment" / f"{name}.yaml"
    words = ["python", "-m", "cifar_lightning.train", "--config-dir", str(folder / "conf")]
    command = shlex.join([*words, f"experiment={name}", *left_out, *here])
    text = (
        "# @package _global_\n"
        f"# {command}\n"
        f"# {result}.\n"
        "# The best of many is partly luck: train it with new seeds to know how good it is.\n"
        f"{OmegaConf.to_yaml(content)}"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as opened:
        opened.write(text.encode())
    return file, command
