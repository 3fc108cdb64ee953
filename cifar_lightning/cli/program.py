"""The command-line programs: Hydra's main, with messages that help."""

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.cli.resuming import in_run_folder, resume_auto, resume_sweep
from cifar_lightning.cli.tasks import MISTAKES, run_apart
from cifar_lightning.config.compose import CONF, complete
from cifar_lightning.config.messages import explain
from cifar_lightning.config.overrides import is_sweep, prepare_arguments, write_nothing
from cifar_lightning.errors import UserError
from cifar_lightning.system import processes
from cifar_lightning.system.locks import run_lock

SECONDS_FOR_THE_FIRST = 5  # to come to the same mistake; torchrun then ends the others

SET_BY_US = "CIFAR_LIGHTNING_SETS_FULL_ERROR"

# conf/hydra/launcher/submitit_slurm.yaml goes before the plugin's values, which is what it is for.
warnings.filterwarnings(
    "ignore", message=r"\s*'hydra/launcher/submitit_slurm' is validated against"
)


def entry(config_name: str, task: Callable[[DictConfig], Any]) -> Callable[[], None]:
    """The command-line program of a task.

    Args:
        config_name: the file in conf/ whose configuration the task takes.
        task: gets the configuration as `compose` gives it.
    """
    # The processes of other devices inherit the variable, which `main` sets for reasons of its own.
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1" and SET_BY_US not in os.environ

    def job(config: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        is_of_sweep = hydra_config.mode == RunMode.MULTIRUN
        sweep = Path(hydra_config.sweep.dir).absolute().name if is_of_sweep else None
        complete(config, hydra_config, hydra_config.runtime.output_dir, sweep)
        if is_of_sweep:
            return run_apart(task, config_name, config, hydra_config)
        with _explained(config_name, full_error):
            if config_name != "train" or not processes.is_first():
                return task(config)
            with run_lock(Path(config.run_dir)):  # which another process may be working on
                return task(config)

    def main() -> None:
        _register_sweeper()
        with _own_endings(full_error), _explained(config_name, full_error):
            sys.argv[1:] = _prepared(sys.argv[1:], config_name)
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()

    def program() -> None:
        if _is_question_of_a_shell(sys.argv[1:]):
            with _without_a_message():
                main()
        else:
            main()

    return program


@contextlib.contextmanager
def _own_endings(full_error: bool) -> Iterator[None]:
    """Have a program end as shells and schedulers expect, and not in Hydra's own way.

    Args:
        full_error: whether the user has asked for tracebacks.
    """
    # An exception, so that nothing is left half written.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Hydra then hands exceptions on to us instead of printing them its own way.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not full_error:
        os.environ[SET_BY_US] = "1"
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)  # as shells report it
    except SystemExit as ending:
        if ending.code == 2:  # argparse has said which option it does not know
            sys.exit(1)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"], os.environ[SET_BY_US]


@contextlib.contextmanager
def _explained(config_name: str, full_error: bool) -> Iterator[None]:
    """Have a mistake end in one message and exit code 1, or in the traceback that was asked for."""
    try:
        yield
    except MISTAKES as error:
        if full_error:
            raise
        _exit_with(error, config_name)


@contextlib.contextmanager
def _without_a_message() -> Iterator[None]:
    """Say a mistake by the exit code alone.

    What is being typed is often not right yet, and a message would stand in the middle of it.
    """
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        try:
            yield
        except SystemExit as ending:
            sys.exit(1 if ending.code else 0)


def _is_question_of_a_shell(arguments: Sequence[str]) -> bool:
    """Whether it is about how a line could go on, as docs/completion.md has them installed."""
    options = ("-sc", "--shell-completion")
    asked = [after for option, after in pairwise(arguments) if option in options]
    return any(after.startswith("query=") for after in asked)


def _prepared(arguments: list[str], config_name: str) -> list[str]:
    """What was typed, as Hydra takes it, for this one of a training's processes.

    Raises:
        UserError: for what cannot be meant.
    """
    if config_name == "train":
        arguments = in_run_folder(resume_auto(resume_sweep(arguments)))
    arguments = prepare_arguments(arguments)
    started = processes.launch()
    if started is not None and started.total > 1 and is_sweep(arguments):
        raise UserError(
            f"{started.by} starts the processes of one training: leave -m out. A sweep "
            "whose jobs have several devices is hydra/launcher=submitit_slurm's."
        )
    return arguments if processes.is_first() else [*arguments, *write_nothing(arguments)]


def _exit_with(error: Exception, config_name: str) -> NoReturn:
    """End with one message and exit code 1."""
    # What the disk refuses one process it may not refuse another.
    typed = isinstance(error, UserError | CompactHydraException | OmegaConfBaseException)
    if typed and not processes.is_first():
        _let_the_first_speak()
    sys.exit(f"\nError: {explain(error, config_name, sys.argv[1:])}")


def _register_sweeper() -> None:
    """Hydra looks for plugins in folders, which an editable install has not."""
    plugins = Plugins.instance()
    # Not before Hydra has looked: it executes the modules that it finds, its own too, once more.
    from hydra_plugins.cifar_lightning_sweeper import GridSweeper

    plugins.register(GridSweeper)


def _let_the_first_speak() -> None:
    """Wait for the end that the first process's mistake brings; return if it has made none.

    A mistake in what was typed is every process's. What is wrong on one machine alone, as the
    number of its GPUs, is said late, but it is said.
    """
    if processes.launch() is None:
        sys.exit(1)  # Lightning's, on the machine of the first
    time.sleep(SECONDS_FOR_THE_FIRST)
