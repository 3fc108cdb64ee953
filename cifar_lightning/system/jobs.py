"""Runs jobs in subprocesses, so that a crash cannot take the caller down.

An exception, `sys.exit`, a crash in native code or the out-of-memory killer ends only the job, and
the caller gets an exception with the reason. The subprocess is forked from a process that has
already imported PyTorch, so it starts at once.
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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cifar_lightning.errors import UserError
from cifar_lightning.system.locks import reserve_gpu
from cifar_lightning.system.output import lasting

# Modules that take seconds to import, loaded once in the process that jobs are forked from. They
# must not initialise CUDA at import, or jobs could not use it.
PRELOAD = ["pytorch_lightning", "torchvision", "matplotlib.figure"]

_in_job_process = False


class JobFailed(Exception):
    """A job failed; the message says why."""


class JobDied(JobFailed):
    """The process of a job ended without a result, and without an exception from the job."""


def in_job_process() -> bool:
    """Whether this process was started by `run_job`."""
    return _in_job_process


def threads_for(n_jobs: int) -> int | None:
    """The number of threads for each of several parallel jobs; None if OMP_NUM_THREADS is set.

    Args:
        n_jobs: number of jobs that run at once.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return None
    # This process may be allowed fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // n_jobs)


def run_job(
    work: Callable[[], Any],
    *,
    threads: int | None = None,
    own_gpu: bool = False,
    output: Path | None = None,
    log: dict[str, Any] | None = None,
) -> Any:
    """Run a function in a subprocess and return its result.

    The first Ctrl-C or SIGTERM is passed on to the subprocess, so that it can save its state; a
    second one kills it. The subprocess never outlives its caller.

    Args:
        work: the function; it and its result must be picklable.
        threads: number of PyTorch threads; None for PyTorch's default.
        own_gpu: whether to wait for a GPU that no other job uses, and to reserve it.
        output: file for everything that the job prints; None for the caller's terminal.
        log: configuration for `logging.config.dictConfig`; None for none.

    Returns:
        The result of `work`.

    Raises:
        JobFailed: if `work` raised it, or a `UserError`, with the same message.
        JobDied: if the process ended in any other way.
        KeyboardInterrupt: after Ctrl-C, once the process has ended.
        SystemExit: after SIGTERM, in the same way, if a handler of the caller raises it.
    """
    process, connection = _start(work, dict(os.environ), threads, own_gpu, output, log)
    answer: tuple[Any, JobFailed | None] | None = None
    interruption: KeyboardInterrupt | SystemExit | None = None
    try:
        while True:
            try:
                # Wait for the process too, because a child of the job may keep the connection open.
                wait([connection, process.sentinel])
                if connection.poll():
                    answer = connection.recv()
                break
            except (EOFError, ConnectionError):
                break
            except (KeyboardInterrupt, SystemExit) as raised:
                if interruption is not None or process.pid is None:
                    raise
                interruption = raised
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
        process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if interruption is not None:
        raise interruption
    if answer is None:
        raise JobDied(_describe_exit(process.exitcode))
    result, error = answer
    if error is not None:
        raise error
    return result


def _start(*arguments: Any) -> tuple[BaseProcess, Connection]:
    """Start `_job_main` in a process; return the process and the connection for its result."""
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # In a worker of joblib, whose start method new processes do not support.
        multiprocessing.set_start_method("forkserver", force=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    connection, job_connection = context.Pipe(duplex=False)
    process = context.Process(target=_job_main, args=(job_connection, *arguments))
    with _slurm_signals_blocked():
        process.start()
    job_connection.close()
    return process, connection


@contextlib.contextmanager
def _slurm_signals_blocked() -> Iterator[None]:
    """Block the signals that SLURM sends before a preemption or time limit, in a new process.

    SLURM sends them to all processes of a job. The caller requests a requeue, but the new process
    would die at once, and the caller might take that for a failure.
    """
    resource_tracker.ensure_running()  # before blocking, because its start unblocks SIGTERM
    under_slurm = "SLURM_JOB_ID" in os.environ
    signals = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2] if under_slurm else []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _describe_exit(exit_code: int | None) -> str:
    """A sentence on how the process of a job ended."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", perhaps by the system because memory ran out" * (name == "SIGKILL")
        return f"Its process was ended by {name}{hint}."
    return f"Its process ended with exit code {exit_code} before the work was done."


def _job_main(
    connection: Connection,
    work: Callable[[], Any],
    variables: dict[str, str],
    threads: int | None,
    own_gpu: bool,
    output: Path | None,
    log: dict[str, Any] | None,
) -> None:
    """The main function of a job's process."""
    global _in_job_process
    _in_job_process = True
    # Its own process group, so that Ctrl-C reaches only the caller, which passes it on.
    os.setpgrp()
    _exit_with_caller()
    os.environ.clear()  # the variables of the fork server may be outdated
    os.environ.update(variables)
    if output is not None:
        _redirect(output)
    if isinstance(sys.stdout, io.TextIOWrapper):  # because a crash would lose buffered output
        sys.stdout.reconfigure(line_buffering=True)
    sys.stdout = lasting(sys.stdout)
    if log is not None:
        logging.config.dictConfig(log)
        # Lightning was imported before, and has its own handlers for the terminal.
        for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
    try:
        with reserve_gpu() if own_gpu else contextlib.nullcontext():
            if threads is not None:
                import torch

                torch.set_num_threads(threads)
            result = work()
    except KeyboardInterrupt:
        connection.send((None, JobDied("It was interrupted by a signal to its process.")))
    except (JobFailed, UserError) as error:
        connection.send((None, JobFailed(str(error))))
    else:
        connection.send((result, None))


def _exit_with_caller() -> None:
    """End this process when its caller ends."""
    caller = multiprocessing.parent_process()
    assert caller is not None

    def watch() -> None:
        wait([caller.sentinel])
        os._exit(1)  # at once, because a resume of this run may write the same files

    threading.Thread(target=watch, daemon=True).start()


def _redirect(output: Path) -> None:
    """Append this process's standard output and error to a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
