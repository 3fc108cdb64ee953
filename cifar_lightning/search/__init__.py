"""Search for a better configuration.

python -m cifar_lightning.search search=lr_augment n_trials=40

Started again, or by several processes or machines with one storage, it continues until n_trials
trials in all have ended.
"""

from typing import Any

from omegaconf import DictConfig

from cifar_lightning.cli import entry
from cifar_lightning.config.overrides import is_sweep
from cifar_lightning.errors import UserError


def search(config: DictConfig) -> dict[str, Any]:
    """Run trials until a study has enough of them; write the outcome to the search's folder.

    Args:
        config: of conf/search.yaml, as `compose` gives it.

    Returns:
        The number of trials in each state, by its name; and of the best trial its number, as
        `best`, and its value of `callbacks.best.monitor`, by that name, as `val/acc`.

    Raises:
        UserError: for a mistake that the user can fix, or if no trial came to its end.
        KeyboardInterrupt: after Ctrl-C; the trial that was running waits for the next start.
    """
    # Here, not at the top: `--help` and a mistyped option need none of it and answer at once.
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UserError("A search needs Optuna: pip install 'cifar-lightning[search]'.")
    from cifar_lightning.search import outcome, study, worker
    from cifar_lightning.system.logs import open_log_file
    from cifar_lightning.system.processes import launch

    started = launch()
    if started is not None and started.total > 1:
        raise UserError(
            f"{started.by} starts the processes of one training. Workers of a search know nothing "
            "of each other: start each by itself, on SLURM by sbatch --array."
        )
    opened = study.open_search(config)
    open_log_file()
    with study.storage_errors(opened.address):
        outcome.show_start(opened)
        try:
            worker.work(opened)
        finally:
            found = outcome.write(opened)
    if "best" not in found and not {"running", "waiting"} & set(found):
        raise UserError("No trial came to its end: trials.csv has the reasons.")
    return found


def refuse_multirun(arguments: list[str]) -> list[str]:
    """The arguments as they are.

    Raises:
        UserError: for -m.
    """
    if is_sweep(arguments):
        raise UserError(
            "A search makes its own trials: leave -m out. For more workers start it again, in "
            "another terminal or on another machine."
        )
    return arguments


main = entry("search", search, refuse_multirun)
