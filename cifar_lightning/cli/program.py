"""The program behind every command: Hydra's main, with one message for a mistake."""

import contextlib
import io
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.cli.folders import remove_empty
from cifar_lightning.cli.help import help_text
from cifar_lightning.config.compose import CONF, complete
from cifar_lightning.config.messages import MISTAKES, explain
from cifar_lightning.config.options import plain_arguments
from cifar_lightning.config.overrides import (
    check_folders,
    is_sweep,
    options_and_overrides,
    prepare_arguments,
    write_nothing,
)
from cifar_lightning.errors import UserError
from cifar_lightning.system import processes
from cifar_lightning.system.jobs import JobFailed
from cifar_lightning.system.locks import is_locked
from cifar_lightning.system.logs import log_failure, open_log_file
from cifar_lightning.system.output import lasting
from cifar_lightning.system.signals import interrupt, terminate

log = logging.getLogger(__name__)

Task = Callable[[DictConfig], Any]

# How Hydra's errors begin that are of its own options together, and have no class of their own.
HYDRA_REFUSES = ("The --resolve flag", "Only one of --run", "Expecting one subcommand")

# In which the first process prints the same error; then torchrun ends the others.
SECONDS_FOR_THE_FIRST = 5

# Tells processes of other devices, which inherit it, that HYDRA_FULL_ERROR is not the user's.
SET_BY_US = "CIFAR_LIGHTNING_SETS_FULL_ERROR"

# conf/hydra/launcher/submitit_slurm.yaml takes precedence over the plugin's values, as intended.
warnings.filterwarnings(
    "ignore", message=r"\s*'hydra/launcher/submitit_slurm' is validated against"
)


def entry(
    config_name: str, task: Task, prepare: Callable[[list[str]], list[str]] | None = None
) -> Callable[[], None]:
    """Make the command-line program of a task.

    Args:
        config_name: the file in conf/ whose configuration the task takes.
        task: a function that can be imported, which gets the configuration as `compose` gives it.
        prepare: replaces arguments of the command by what Hydra takes.
    """
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1" and SET_BY_US not in os.environ

    def run() -> None:
        with _signals_and_environment(full_error):
            try:
                arguments = plain_arguments(sys.argv[1:], config_name)
                if "--help" in arguments:
                    return print(help_text(config_name, arguments), flush=True)
                _find_modules_here()
                sys.argv[1:] = _prepared(arguments, prepare, config_name)
                job = partial(_job, config_name, task)
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(
                    job
                )()
            except (_PastHydra, *MISTAKES) as raised:
                error = raised.__cause__ if isinstance(raised, _PastHydra) else raised
                assert isinstance(error, Exception)
                if full_error:
                    raise error from error.__cause__
                _exit_with(error, config_name)
            except ValueError as error:
                if not str(error).startswith(HYDRA_REFUSES):
                    raise
                sys.exit(f"\nError: {error}.")
            except KeyboardInterrupt:
                sys.exit(130)  # as shells report it
            finally:
                remove_empty()

    def program() -> None:
        if not _is_completion_query(sys.argv[1:]):
            return run()
        # An incomplete line is often wrong: a message would disturb the typing.
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                run()
            except SystemExit as ending:
                sys.exit(1 if ending.code else 0)

    return program


def _find_modules_here() -> None:
    """Have a console script find modules in the working folder, as `python -m` does.

    Python puts the folder of a script first in `sys.path`, but not with `-P` or PYTHONSAFEPATH.
    """
    if Path(sys.path[0]).resolve() == Path(sys.argv[0]).resolve().parent:
        sys.path[0] = str(Path.cwd())


class _PastHydra(BaseException):
    """Carries an error, its cause, past Hydra, which would print the overrides before it."""


def _job(config_name: str, task: Task, config: DictConfig) -> Any:
    """Run a task with the configuration that Hydra composed.

    A sweep may pickle it, so it is a function of the module.
    """
    _catch_interrupts()
    hydra_config = HydraConfig.get()
    is_multirun = hydra_config.mode == RunMode.MULTIRUN
    sweep = Path(hydra_config.sweep.dir).absolute().name if is_multirun else None
    complete(config, hydra_config, hydra_config.runtime.output_dir, sweep)
    if is_multirun:
        return run_task(task, config_name, config)
    try:
        return task(config)
    except Exception as error:
        if isinstance(error, MISTAKES):
            log_failure(log, explain(error, config_name))
            raise _PastHydra from error
        log_failure(log, f"{type(error).__name__}: {error}", error)
        raise


def run_task(task: Task, config_name: str, config: DictConfig) -> Any:
    """Run a command's function as a job of a sweep, and log its errors.

    Args:
        task: the function.
        config_name: of the command, for error messages.
        config: for the function.

    Raises:
        JobFailed: with the message that the command line would show.
    """
    try:
        return task(config)
    except Exception as error:
        message = explain(error, config_name)
        # The log is of the run in the job's folder, which another process may work on.
        if not (processes.is_first() and is_locked(Path(config.run_dir))):
            open_log_file()
            log.error(message, exc_info=not isinstance(error, MISTAKES))
        raise JobFailed(message) from None


def _catch_interrupts() -> None:
    """Have Ctrl-C raise KeyboardInterrupt, once if it comes twice in a moment.

    Until here it ends the process at once, as `cifar_lightning/__init__.py` has set: within Hydra,
    which may turn KeyboardInterrupt into another error, it would end in a traceback.
    """
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):
        signal.signal(signal.SIGINT, interrupt)


@contextlib.contextmanager
def _signals_and_environment(full_error: bool) -> Iterator[None]:
    """Turn SIGTERM into an exception, and have Hydra raise errors instead of printing them.

    What is printed raises no error.
    """
    before = signal.signal(signal.SIGTERM, terminate)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if not full_error:
        os.environ[SET_BY_US] = "1"
    # Libraries need a home folder, if only to look for settings; "~" is that of an unknown user.
    home = os.path.expanduser("~")  # noqa: PTH111
    os.environ.setdefault("HOME", "/nonexistent" if home == "~" else home)
    output = lasting(sys.stdout)
    try:
        with contextlib.redirect_stdout(output):
            yield
    finally:
        output.flush()
        signal.signal(signal.SIGTERM, before)
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"], os.environ[SET_BY_US]


def _is_completion_query(arguments: Sequence[str]) -> bool:
    """Whether a shell asks for completions; see docs/how-to/shell-completion.md."""
    options = ("-sc", "--shell-completion")
    asked = [after for option, after in pairwise(arguments) if option in options]
    return any(after.startswith("query=") for after in asked)


def _prepared(
    arguments: list[str], prepare: Callable[[list[str]], list[str]] | None, config_name: str
) -> list[str]:
    """The arguments for Hydra in this process of a run."""
    if prepare is not None:
        arguments = prepare(arguments)
    arguments = prepare_arguments(arguments)
    check_folders(arguments, config_name)
    if is_sweep(arguments):
        _catch_interrupts()  # this process runs the jobs, and not `_job`
    started = processes.launch()
    if started is not None and started.total > 1 and is_sweep(arguments):
        raise UserError(
            f"{started.by} starts the processes of one run: leave -m out. A sweep whose jobs have "
            "several devices is hydra/launcher=submitit_slurm's."
        )
    # Hydra's parser refuses overrides on both sides of an option.
    options, overrides = options_and_overrides(arguments)
    return [*overrides, *([] if processes.is_first() else write_nothing(arguments)), *options]


def _exit_with(error: Exception, config_name: str) -> NoReturn:
    """End with one message and exit code 1; of several processes the first prints it."""
    # An error of the disk may be of one process alone, which then prints it.
    same_for_all = isinstance(error, UserError | CompactHydraException | OmegaConfBaseException)
    if same_for_all and not processes.is_first():
        if processes.launch() is None:
            sys.exit(1)  # Lightning started it, on the machine of the first
        # An error of this machine alone, as too few GPUs, is printed after all.
        time.sleep(SECONDS_FOR_THE_FIRST)
    sys.exit(f"\nError: {explain(error, config_name, sys.argv[1:])}")
