"""Jobs in real subprocesses that end in different ways."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from programs import wait_for

from cifar_lightning.system.jobs import (
    JobDied,
    JobFailed,
    in_job_process,
    run_job,
    threads_for,
)


def is_alive(pid: int) -> bool:
    try:
        # A process that nobody has asked for its exit code yet is dead all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# The work of the jobs


def value(result: Any) -> Any:
    return result


def fail() -> NoReturn:
    raise JobFailed("the reason")


def raise_another() -> NoReturn:
    raise LookupError("a fault")


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def exit_early() -> NoReturn:
    sys.exit(0)


def interrupt_itself() -> NoReturn:
    raise KeyboardInterrupt


def leave_a_child(pid_file: Path) -> NoReturn:
    if (child := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    pid_file.write_text(f"{child}")
    os._exit(3)


def return_what_cannot_be_pickled() -> object:
    return lambda: 5


def environment_found() -> dict[str, Any]:
    print("to standard output")
    os.system("echo of a program of its own >&2")
    logging.getLogger("cifar_lightning.x").warning("logged")
    return {
        "variables": dict(os.environ),
        "cwd": Path.cwd(),
        "threads": torch.get_num_threads(),
        "in a job": in_job_process(),
    }


# What comes back


def test_a_result_or_a_reason_comes_back() -> None:
    assert run_job(partial(value, {"a": [1, None], "b": b"0" * 10**6}))["a"] == [1, None]
    with pytest.raises(JobFailed, match=r"^the reason$") as caught:
        run_job(fail)
    assert not isinstance(caught.value, JobDied)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (exit_early, "Its process ended with exit code 0 before the work was done."),
        (partial(os._exit, 3), "Its process ended with exit code 3 before the work was done."),
        (partial(end_by, signal.SIGSEGV), "Its process was ended by SIGSEGV."),
        (
            partial(end_by, signal.SIGKILL),
            "Its process was ended by SIGKILL, perhaps by the system because memory ran out.",
        ),
        (raise_another, "Its process ended with exit code 1 before the work was done."),
        (
            return_what_cannot_be_pickled,
            "Its process ended with exit code 1 before the work was done.",
        ),
        (interrupt_itself, "It was interrupted by a signal to its process."),
    ],
)
def test_however_the_process_ends_the_caller_is_told(work: Callable[[], Any], message: str) -> None:
    with pytest.raises(JobDied) as caught:
        run_job(work)
    assert str(caught.value) == message


def test_a_process_that_leaves_a_child_behind_has_ended_all_the_same(tmp_path: Path) -> None:
    # As a worker that loads data, which has the pipe to the caller open too.
    with pytest.raises(JobDied, match="exit code 3"):
        run_job(partial(leave_a_child, tmp_path / "pid"))
    child = int((tmp_path / "pid").read_text())
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


# What it runs with


def test_the_environment_is_the_callers_and_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_job(partial(value, 1))  # the server has started, with other variables and folder
    monkeypatch.setenv("OF_THE_CALLER", "yes")
    monkeypatch.delenv("HOME", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    log = {
        "version": 1,
        "formatters": {"plain": {"format": "%(levelname)s %(message)s"}},
        "handlers": {"x": {"class": "logging.StreamHandler", "formatter": "plain"}},
        "root": {"level": "INFO", "handlers": ["x"]},
        "disable_existing_loggers": False,
    }
    output = tmp_path / "deep" / "output.log"
    for _ in range(2):
        found = run_job(environment_found, threads=1, output=output, log=log)
    assert found["variables"] == dict(os.environ)
    assert found["cwd"] == tmp_path / "elsewhere"
    assert found["threads"] == 1
    assert found["in a job"]
    assert not in_job_process()
    lines = sorted(output.read_text().splitlines())  # nothing of the first one is lost
    assert lines == sorted(2 * ["to standard output", "of a program of its own", "WARNING logged"])
    assert "standard output" not in capfd.readouterr().out


def test_cores_are_divided_unless_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert [threads_for(n) for n in (1, 2, 10_000)] == [cores, max(1, cores // 2), 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(2) is None


# Programs of their own, which can be interrupted and killed, and find works.py beside them.

WORKS = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from cifar_lightning.system.jobs import PRELOAD, JobDied, run_job
PRELOAD.clear()  # spares the seconds of importing PyTorch

def slow(how):
    interrupts = 0
    Path("pid").write_text(f"{os.getpid()}")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:
            interrupts += 1
            Path("interrupts").write_text(f"{interrupts}")
            if how == "crashes":
                os._exit(9)
            if how == "saves itself":
                end = time.monotonic() + 0.5
    Path("done").touch()

def print_and_return():
    print("hello")
    return "returned"

def print_and_die():
    print("the last words")
    os._exit(1)

def signalled():
    for process in (os.getpid(), os.getppid()):  # itself, and the server that it was forked from
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(process, number)
    time.sleep(0.5)
    return "unharmed"

def pid_of_a_job():
    return run_job(os.getpid)

def call(name, *arguments):
    try:
        print(run_job(partial(globals()[name], *arguments)))
    except KeyboardInterrupt:
        print("interrupted")
    except JobDied as error:
        print(error)
"""


def start(program: str) -> "subprocess.Popen[str]":
    Path("works.py").write_text(WORKS)
    lines = ["import sys, works", "if __name__ == '__main__':", f"    {program}"]
    Path("caller.py").write_text("\n".join(lines))
    return subprocess.Popen(
        [sys.executable, "caller.py"],
        stdout=subprocess.PIPE,
        text=True,
        # What a shell starts by & ignores Ctrl-C, and so would what the tests start then.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def output(program: "subprocess.Popen[str]") -> str:
    return program.communicate(timeout=120)[0]


def start_slow(how: str) -> tuple["subprocess.Popen[str]", int]:
    """A program with a job of a minute that is under way, and the job's process."""
    program = start(f"works.call('slow', {how!r})")
    wait_for(lambda: Path("pid").exists() and Path("pid").read_text())
    return program, int(Path("pid").read_text())


def test_ctrl_c_reaches_the_job_once_and_the_caller_when_that_has_ended() -> None:
    program, _ = start_slow("saves itself")
    program.send_signal(signal.SIGINT)
    assert output(program) == "interrupted\n"
    assert Path("interrupts").read_text() == "1"
    assert Path("done").exists()


def test_sigterm_reaches_the_job_too_and_once_where_it_is_sent_twice() -> None:
    """As `timeout` sends it."""
    handle = "signal.signal(signal.SIGTERM, terminate)"
    program = start(
        f"import signal; from cifar_lightning.system.signals import terminate; {handle}; "
        "works.call('slow', 'saves itself')"
    )
    wait_for(lambda: Path("pid").exists() and Path("pid").read_text())
    for _ in range(2):
        program.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert output(program) == ""
    assert program.returncode == 128 + signal.SIGTERM
    assert Path("interrupts").read_text() == "1"
    assert Path("done").exists()


def test_a_second_ctrl_c_ends_the_job() -> None:
    program, pid = start_slow("ignores it")
    program.send_signal(signal.SIGINT)
    wait_for(Path("interrupts").exists)
    assert is_alive(pid)
    program.send_signal(signal.SIGINT)
    assert output(program) == "interrupted\n"
    assert not is_alive(pid)
    assert not Path("done").exists()


def test_ctrl_c_is_told_as_such_if_the_job_dies_of_it() -> None:
    program, _ = start_slow("crashes")
    program.send_signal(signal.SIGINT)
    assert output(program) == "interrupted\n"  # a sweep would start its next job otherwise


@pytest.mark.parametrize("name", ["cifar-train", "other.py"])
def test_ctrl_c_is_an_exception_in_every_job(name: str) -> None:
    """Also in those of an installed command, which Ctrl-C ends at once while it imports."""
    ask = "partial(signal.getsignal, signal.SIGINT)"
    Path(name).write_text(
        "import signal\nfrom functools import partial\n"
        "from cifar_lightning.system.jobs import run_job\n"
        f"if __name__ == '__main__':\n    print({ask}(), run_job({ask}), sep='\\n')\n"
    )
    here, in_job = run_python(name)
    assert here == ("0" if name == "cifar-train" else in_job)  # SIG_DFL
    assert in_job == "<built-in function default_int_handler>"


def test_another_program_that_uses_the_package_keeps_its_ctrl_c() -> None:
    Path("tool").mkdir()
    Path("tool/__init__.py").write_text("import cifar_lightning\n")
    Path("tool/main.py").write_text("import signal\nprint(signal.getsignal(signal.SIGINT))\n")
    assert run_python("-m", "tool.main") == ["<built-in function default_int_handler>"]


def run_python(*arguments: str) -> list[str]:
    """The lines that a program prints."""
    program = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True
    )
    return program.stdout.splitlines()


def test_a_caller_that_is_killed_takes_the_job_with_it() -> None:
    program, pid = start_slow("saves itself")
    assert is_alive(pid)
    program.kill()
    output(program)
    wait_for(lambda: not is_alive(pid), seconds=10)
    assert not Path("done").exists()


def test_without_a_file_the_output_is_the_callers_and_a_crash_loses_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    program = start("works.call('print_and_return'); works.call('print_and_die')")
    assert output(program) == (
        "hello\nreturned\n"
        "the last words\nIts process ended with exit code 1 before the work was done.\n"
    )


def test_the_notice_that_slurm_gives_to_all_processes_is_the_callers_to_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert output(start("works.call('signalled')")) == "unharmed\n"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert "Its process was ended by SIGTERM" in output(start("works.call('signalled')"))


@pytest.mark.slow
def test_a_worker_of_joblib_can_have_jobs() -> None:
    pytest.importorskip("joblib")
    jobs = "joblib.delayed(works.pid_of_a_job)() for _ in range(3)"
    program = f"import joblib; print(len(set(joblib.Parallel(2, backend='loky')({jobs}))))"
    assert output(start(program)) == "3\n"


@pytest.mark.slow
def test_what_is_imported_before_the_fork_asks_nothing_of_cuda() -> None:
    # A process that is forked after CUDA was asked for anything cannot use it.
    program = (
        "import torch\n"
        "def asked(*arguments): raise AssertionError('CUDA was asked')\n"
        "for name in ('is_available', 'device_count', '_lazy_init', 'current_device', 'init'):\n"
        "    assert hasattr(torch.cuda, name)\n"
        "    setattr(torch.cuda, name, asked)\n"
        "torch._C._cuda_getDeviceCount = asked\n"
        "import importlib, threading\n"
        "from cifar_lightning.system.jobs import PRELOAD\n"
        "for name in PRELOAD: importlib.import_module(name)\n"
        "print(threading.active_count())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200
    )
    assert ended.stdout == "1\n", ended.stderr  # nor may threads be lost


@pytest.mark.slow
def test_a_job_that_is_to_have_a_gpu_of_its_own_has_it_before_it_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(Path.cwd()))
    Path("two_gpus.py").write_text("import torch\ntorch.cuda.device_count = lambda: 2\n")
    work = "run_job(works.shown_gpu, own_gpu=own)"
    Path("works.py").write_text(
        "import os\ndef shown_gpu(): return os.environ.get('CUDA_VISIBLE_DEVICES')\n"
    )
    Path("caller.py").write_text(
        "import works\n"
        "from cifar_lightning.system.jobs import PRELOAD, run_job\n"
        "if __name__ == '__main__':\n"
        "    PRELOAD[:] = ['two_gpus']\n"
        f"    print(*[{work} for own in (True, False)])\n"
    )
    search_path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "caller.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": search_path},
        timeout=200,
    )
    assert ended.stdout == "0 None\n", ended.stderr
