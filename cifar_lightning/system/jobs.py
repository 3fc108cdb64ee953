"""Runs work in a process of its own, so that a crash cannot take the caller down.

An exception, `sys.exit`, a crash in native code, the system's out-of-memory killer: each ends the
job alone, and the caller gets an exception that says how. The process is forked from one that has
imported PyTorch already, so it starts at once.
"""

import contextlib
import io
import logging.config
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cifar_lightning.errors import UserError
from cifar_lightning.system.locks import reserve_gpu

# What takes seconds to import, loaded once, in the process that the jobs are forked from. Nothing
# that asks for CUDA when it is imported, or jobs could not use it.
PRELOAD = ["pytorch_lightning", "torchvision", "matplotlib.figure"]

_in_job_process = False


class JobFailed(Exception):
    """The work has no result; the message says why."""


class JobDied(JobFailed):
    """The process of the job ended without handing over a result or a reason."""


@dataclass(frozen=True)
class JobEnvironment:
    """What a job runs with.

    Attributes:
        threads: number of PyTorch's threads; None for PyTorch's own choice.
        own_gpu: whether to wait for a GPU that no other job uses, and to show the job that one.
        output: a file that takes everything the job prints; None for the caller's terminal.
        log: a configuration for `logging.config.dictConfig`; None for none.
    """

    threads: int | None = None
    own_gpu: bool = False
    output: Path | None = None
    log: dict[str, Any] | None = None


def in_job_process() -> bool:
    """Whether this process was started by `run_job`."""
    return _in_job_process


def threads_for(n_jobs: int) -> int | None:
    """A job's share of the cores when several run at once; None where OMP_NUM_THREADS decides."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    # This process may be allowed fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // n_jobs)


def run_job(work: Callable[[], Any], environment: JobEnvironment) -> Any:
    """Run some work in a process of its own and return its result.

    Ctrl-C is passed on to the process once, so that the work can save itself; a second one kills
    it. It never outlives its caller.

    Args:
        work: a callable that can be pickled and returns what can be pickled.
        environment: of the process.

    Raises:
        JobFailed: if `work` raised it, or a `UserError`, whose message it then has.
        JobDied: if the process ended in any other way.
        KeyboardInterrupt: after Ctrl-C, when the process has ended.
    """
    process, connection = _start(work, environment)
    answer: tuple[Any, JobFailed | None] | None = None
    interrupted = False
    try:
        while True:
            try:
                # Not for the connection alone, which a child of the job may hold open.
                wait([connection, process.sentinel])
                if connection.poll():
                    answer = connection.recv()
                break
            except (EOFError, ConnectionError):
                break
            except KeyboardInterrupt:
                if interrupted or process.pid is None:
                    raise
                interrupted = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
        process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if interrupted:
        raise KeyboardInterrupt
    if answer is None:
        raise JobDied(_how_it_ended(process.exitcode))
    result, error = answer
    if error is not None:
        raise error
    return result


def _start(work: Callable[[], Any], environment: JobEnvironment) -> tuple[BaseProcess, Connection]:
    """A process that does the work, and the connection that its answer comes by."""
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # This is a worker of joblib, whose own start method a new process would not know.
        multiprocessing.set_start_method("forkserver", force=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    connection, theirs = context.Pipe(duplex=False)
    arguments = (theirs, work, environment, dict(os.environ))
    process = context.Process(target=_run, args=arguments)
    with _slurm_signals_blocked():
        process.start()
    theirs.close()
    return process, connection


@contextlib.contextmanager
def _slurm_signals_blocked() -> Iterator[None]:
    """Have a process that is started now ignore what SLURM sends before a preemption or time-out.

    SLURM sends it to all processes of a job. The one that asks for a requeue is the caller; this
    one would die of it at once, and the caller might take that for a failure.
    """
    resource_tracker.ensure_running()  # now: its start would unblock SIGTERM
    under_slurm = "SLURM_JOB_ID" in os.environ
    signals = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2] if under_slurm else []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", as the system does when memory runs out" * (name == "SIGKILL")
        return f"Its process was ended by {name}{hint}."
    return f"Its process ended with exit code {exit_code} before the work was done."


def _run(
    connection: Connection,
    work: Callable[[], Any],
    environment: JobEnvironment,
    variables: dict[str, str],
) -> None:
    """What the process of a job does."""
    global _in_job_process
    _in_job_process = True
    # A group of its own: Ctrl-C goes to the caller alone, which passes it on once.
    os.setpgrp()
    _end_with_the_caller()
    os.environ.clear()  # the process that this one was forked from may have started with others
    os.environ.update(variables)
    if environment.output is not None:
        _redirect(environment.output)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a crash loses what waits in the buffer
        sys.stdout.reconfigure(line_buffering=True)
    if environment.log is not None:
        logging.config.dictConfig(environment.log)
        # Lightning, imported before there was a configuration, writes to the terminal by itself.
        for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
    try:
        with reserve_gpu() if environment.own_gpu else contextlib.nullcontext():
            if environment.threads is not None:
                import torch

                torch.set_num_threads(environment.threads)
            result = work()
    except KeyboardInterrupt:
        connection.send((None, JobDied("It was interrupted, by a signal to its process alone.")))
    except (JobFailed, UserError) as error:
        connection.send((None, JobFailed(str(error))))
    else:
        connection.send((result, None))


def _end_with_the_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None

    def watch() -> None:
        wait([caller.sentinel])
        os._exit(1)  # at once: the next one to resume this run may write the same files

    threading.Thread(target=watch, daemon=True).start()


def _redirect(output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
