"""Helpers that run commands as programs, or start them so that they can be stopped."""

import atexit
import contextlib
import json
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from lightning_utilities.core.rank_zero import rank_zero_only

# Importing these takes a command most of a short run's time: 12 seconds on a slow core. So commands
# are forked from a process that has imported them, one for all tests, and nothing of ours; nor W&B,
# whose folder of pictures would be that of all forks, and deleted with the first one. The jobs that
# tests run are forked from it too; the first of either starts it, so conftest.py tells both.
IMPORTED = ["hydra", "matplotlib.pyplot", "optuna", "pydantic", "sqlalchemy", "torchinfo"]
FORKS = multiprocessing.get_context("forkserver")


class Program:
    """`python -m cifar_lightning.NAME` in a process of its own, with the methods of `Popen`.

    The process has its own working directory, variables, modules, and signals, and ends as a
    program does. What an interpreter or a library reads only when it starts, as `LANG` or
    `OMP_NUM_THREADS`, is of the tests: a test of such a variable starts `sys.executable`.
    """

    def __init__(
        self,
        name: str,
        typed: Sequence[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stderr_apart: bool = False,
    ) -> None:
        self._stdout = _new_file()
        self._stderr = _new_file() if stderr_apart else self._stdout
        self._process = FORKS.Process(
            target=_be_program,
            args=(
                name,
                typed,
                cwd or Path.cwd(),
                dict(os.environ if env is None else env),
                self._stdout,
                self._stderr,
            ),
        )
        self._process.start()
        atexit.register(self._process.kill)  # nobody waits for what a failed test has left

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end and returns what was printed to standard output and error."""
        self._process.join(timeout)
        if self._process.is_alive():
            raise TimeoutError(f"It still runs after {timeout} seconds: {self._printed()}")
        return self._printed()

    def _printed(self) -> tuple[str, str]:
        stdout = self._stdout.read_text(errors="surrogateescape")
        if self._stderr == self._stdout:
            return stdout, ""
        return stdout, self._stderr.read_text(errors="surrogateescape")


def _new_file() -> Path:
    """Makes an empty file, which is deleted when the tests end."""
    number, name = tempfile.mkstemp()
    os.close(number)
    atexit.register(os.unlink, name)
    return Path(name)


def _be_program(
    name: str, typed: Sequence[str], cwd: Path, env: dict[str, str], stdout: Path, stderr: Path
) -> None:
    """Makes of a forked process what `python -m` would have started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((1, stdout), (2, stderr)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tests = str(Path(__file__).parent)
    others = [folder for folder in sys.path if not folder.startswith(tests)]
    sys.path[:] = [str(cwd), *filter(None, env.get("PYTHONPATH", "").split(":")), *others]
    # Lightning, imported before Hydra sets logging up, writes to the terminal by itself.
    for library in ("pytorch_lightning", "lightning_fabric", "lightning"):
        logging.getLogger(library).handlers.clear()
        logging.getLogger(library).propagate = True
    # And takes its rank among a run's processes, as srun numbers them, from the variables.
    rank_zero_only.rank = int(env.get("SLURM_PROCID", 0))  # type: ignore[attr-defined]
    sys.argv[1:] = typed
    try:
        runpy.run_module(f"cifar_lightning.{name}", run_name="__main__", alter_sys=True)
    finally:  # as an interpreter ends, and a forked process does not
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


def run_command(
    name: str,
    *typed: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m cifar_lightning.NAME` to its end.

    Quick: the process is forked from one that has imported the libraries; see `Program`.

    Args:
        name: of the command, as `train`.
        typed: its arguments.
        cwd: the working directory; that of the test if None.
        env: all environment variables; those of the test if None.
        timeout: seconds after which the test fails.

    Returns:
        Exit code, standard output and standard error, as `subprocess.run` returns them.
    """
    program = Program(name, typed, cwd, env, stderr_apart=True)
    try:
        stdout, stderr = program.communicate(timeout)
    finally:
        program.kill()
    assert program.returncode is not None
    return subprocess.CompletedProcess([name, *typed], program.returncode, stdout, stderr)


@contextlib.contextmanager
def hydra_restored() -> Iterator[None]:
    """Leaves no trace of Hydra's main in this process.

    But for its plugins, which are executed anew where `Singleton.set_state` puts them back.
    """
    before = HydraConfig.instance().cfg
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().clear()


def one_message(ended: subprocess.CompletedProcess[str]) -> str:
    """The one that a command ended in, without a traceback."""
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("Error: ") == 1
    return ended.stderr.partition("Error: ")[2]


def start(
    name: str, *typed: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Program:
    """Starts `python -m cifar_lightning.NAME`; what it prints to both streams `finish` returns."""
    return Program(name, typed, cwd, env)


def finish(program: Program, timeout: float = 300) -> str:
    """Waits for a program's end and returns what it printed."""
    try:
        return program.communicate(timeout)[0]
    finally:
        program.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def srun(rank: int, tasks: int, port: int) -> dict[str, str]:
    """What SLURM tells a task of a job on one machine."""
    return {
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "train",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "MASTER_PORT": str(port),
    }


def start_two(
    *typed: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> list[Program]:
    """Starts the two processes of one training as `srun --ntasks=2` does; the first has rank 0."""
    port, variables = free_port(), dict(os.environ if env is None else env)
    return [Program("train", typed, cwd, variables | srun(rank, 2, port)) for rank in (0, 1)]


def finish_all(
    programs: Sequence["Program | subprocess.Popen[str]"], kill_on_bad_exit: bool = False
) -> list[str]:
    """Waits for programs that run together, and ends them all if one hangs.

    Args:
        programs: that were started.
        kill_on_bad_exit: whether one that fails ends the others, as with srun and torchrun.

    Returns:
        What each printed.
    """
    try:
        if kill_on_bad_exit:
            wait_for(lambda: any(program.poll() for program in programs))
            for program in programs:
                program.kill()
        return [program.communicate(timeout=120)[0] for program in programs]
    finally:
        for program in programs:
            program.kill()


def wait_for(
    condition: Callable[[], Any],
    program: "Program | subprocess.Popen[str] | None" = None,
    seconds: float = 200,
) -> None:
    """Return when something is so; fail if it does not come, or a program has ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert program is None or program.poll() is None, program.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def only(pattern: str, place: Path | None = None) -> Path:
    """The one file of this pattern, in the working directory if nothing else is said."""
    (found,) = (place or Path.cwd()).glob(pattern)
    return found


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))
