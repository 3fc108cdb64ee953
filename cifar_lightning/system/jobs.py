"""Work in a process of its own, so that no way in which it ends can end its caller.

An exception, `sys.exit`, a crash in native code, the system's killer when memory runs out: each is
an answer here. The process is forked from one that has imported PyTorch already, so it starts at
once.
"""

import contextlib
import io
import logging.config
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cifar_lightning.errors import UserError
from cifar_lightning.system.locks import alone_on_a_gpu

# What a training imports; loaded once, in the process that the others are forked from.
HEAVY = ["cifar_lightning.run", "cifar_lightning.tracking.results", "cifar_lightning.run.fit"]

Ask = Callable[[Any], Any]
"""Sends a question to the caller of `run_job`, and waits for the answer."""

_inside = False


class JobFailed(Exception):
    """The work has no result; the message says why."""


class JobDied(JobFailed):
    """Its process ended without a word."""


@dataclass(frozen=True)
class Surroundings:
    """What a job finds around it.

    Attributes:
        threads: for PyTorch; None leaves the number alone.
        own_gpu: whether it waits for a GPU that no other job here has, and sees no other.
        output: a file for all that it would print; None for the caller's terminal.
        log: a configuration for `logging`; None for none.
    """

    threads: int | None = None
    own_gpu: bool = False
    output: Path | None = None
    log: dict[str, Any] | None = None


def inside() -> bool:
    """Whether this process is one that `run_job` has started."""
    return _inside


def threads_for(at_once: int) -> int | None:
    """A job's share of the cores when several run at once; None where OMP_NUM_THREADS decides."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    # Not those of the machine, where this process may use fewer.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // at_once)


def run_job(
    work: Callable[[Ask], Any],
    surroundings: Surroundings,
    answer: Ask = lambda question: None,
    tick: Callable[[], None] = lambda: None,
    tick_s: float = 30.0,
) -> Any:
    """Do some work in a process of its own.

    Ctrl-C reaches the process once, as the signal that it would have got in the caller's place; a
    second one ends it. It does not outlive its caller.

    Args:
        work: can be pickled, as can what it returns; is given a function that asks the caller.
        surroundings: of the process.
        answer: to the questions that it asks.
        tick: called from time to time while it works; an exception of it ends the process.
        tick_s: seconds between two calls.

    Returns:
        What `work` returned.

    Raises:
        JobFailed: if `work` raised it, or a `UserError`, whose message it then has.
        JobDied: if the process ended in any other way.
        KeyboardInterrupt: after Ctrl-C, when the process has ended.
    """
    process, connection = _start(work, surroundings)
    interrupted = False
    next_tick = time.monotonic() + tick_s
    try:
        while True:
            try:
                wait([connection, process.sentinel], timeout=max(0, next_tick - time.monotonic()))
                if time.monotonic() >= next_tick:
                    tick()
                    next_tick = time.monotonic() + tick_s
                if connection.poll():
                    kind, content = connection.recv()
                    if kind != "question":
                        break
                    connection.send(answer(content))
                elif not process.is_alive():
                    raise EOFError
            except (EOFError, ConnectionError):
                process.join()
                if interrupted:  # of which it died
                    raise KeyboardInterrupt from None
                raise JobDied(_how_it_ended(process.exitcode)) from None
            except KeyboardInterrupt:
                if interrupted or process.pid is None:
                    raise
                interrupted = True
                os.kill(process.pid, signal.SIGINT)
        process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()
    if interrupted:
        raise KeyboardInterrupt
    if kind == "interrupted":
        raise JobDied("It was interrupted, by a signal to its process alone.")
    if kind == "failed":
        raise JobFailed(content)
    return content


def _start(
    work: Callable[[Ask], Any], surroundings: Surroundings
) -> tuple[BaseProcess, Connection]:
    """A process that does the work, and the way to talk with it."""
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # Of joblib's own, in whose workers this is; a new process would not know it.
        multiprocessing.set_start_method("forkserver", force=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    connection, theirs = context.Pipe()
    arguments = (theirs, work, surroundings, dict(os.environ))
    process = context.Process(target=_be_a_job, args=arguments)
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


def _be_a_job(
    connection: Connection,
    work: Callable[[Ask], Any],
    surroundings: Surroundings,
    environment: dict[str, str],
) -> None:
    global _inside
    _inside = True
    # A group of its own: Ctrl-C goes to the caller alone, which passes it on once.
    os.setpgrp()
    _end_with_the_caller()
    os.environ.clear()  # the process that this one was forked from may have begun with another
    os.environ.update(environment)
    if surroundings.output is not None:
        _redirect(surroundings.output)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a crash loses what waits in the buffer
        sys.stdout.reconfigure(line_buffering=True)
    if surroundings.log is not None:
        logging.config.dictConfig(surroundings.log)
        # Lightning, loaded before there was a configuration, writes to the terminal by itself.
        for name in ("pytorch_lightning", "lightning_fabric", "lightning"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True

    def ask(question: Any) -> Any:
        connection.send(("question", question))
        return connection.recv()

    try:
        with contextlib.ExitStack() as held:
            if surroundings.own_gpu:
                held.enter_context(alone_on_a_gpu())
            if surroundings.threads is not None:
                import torch

                torch.set_num_threads(surroundings.threads)
            result = work(ask)
    except KeyboardInterrupt:
        connection.send(("interrupted", None))
    except (JobFailed, UserError) as error:
        connection.send(("failed", str(error)))
    else:
        connection.send(("returned", result))


def _end_with_the_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None

    def watch() -> None:
        wait([caller.sentinel])
        os._exit(1)  # at once: the caller's successor may go on with the same files

    threading.Thread(target=watch, daemon=True).start()


def _redirect(output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
