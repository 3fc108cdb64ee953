"""Search for a better configuration.

python -m cifar_lightning.search search=lr_augment n_trials=40

The same command continues a search that was stopped. Several processes or machines that share a
storage share the work. It ends after n_trials trials in all.
"""

from typing import Any

from omegaconf import DictConfig

from cifar_lightning.cli import entry
from cifar_lightning.config.overrides import is_sweep
from cifar_lightning.errors import UserError, how_to_install


def search(config: DictConfig) -> dict[str, Any]:
    """Run trials until a study has `n_trials`; write the results to the search's folder.

    Args:
        config: of conf/search.yaml, as `compose` gives it.

    Returns:
        The number of trials in each state, by the state's name. If a trial is complete: the number
        of the best one as `best`, and its value of `callbacks.best.monitor` by that metric's name,
        such as `val/acc`.

    Raises:
        UserError: for a mistake that the user can fix, or if no trial was completed.
        KeyboardInterrupt: after Ctrl-C; the next start resumes the trial that was running.
    """
    # Imported here, so that `--help` and a mistyped option are answered at once.
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise UserError(f"A search needs Optuna: {how_to_install('search')}")
    from cifar_lightning.search import outcome, study, worker
    from cifar_lightning.system.logs import open_log_file
    from cifar_lightning.system.processes import launch

    started = launch()
    if started is not None and started.total > 1:
        raise UserError(
            f"{started.by} starts several processes for one training. The workers of a search are "
            "independent: start each one separately, on SLURM with sbatch --array."
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
        raise UserError("No trial was completed: trials.csv has the reasons.")
    return found


def refuse_multirun(arguments: list[str]) -> list[str]:
    """Return the arguments unchanged.

    Raises:
        UserError: if they hold -m.
    """
    if is_sweep(arguments):
        raise UserError(
            "A search makes its own trials: leave -m out. To add a worker, start the same command "
            "in another terminal or on another machine."
        )
    return arguments


main = entry("search", search, refuse_multirun)
