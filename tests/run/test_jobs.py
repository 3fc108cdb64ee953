"""Work in processes of its own: real ones, each with the end that its test is about."""

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

from cifar_lightning.system import jobs
from cifar_lightning.system.jobs import Ask, JobDied, JobFailed, Surroundings, run_job

PLAIN = Surroundings()


def run(work: Callable[[Ask], Any], **more: Any) -> Any:
    return run_job(work, more.pop("surroundings", PLAIN), **more)


def is_alive(pid: int) -> bool:
    try:
        # A process that nobody has asked for its exit code yet is dead all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# The works


def value(result: Any, ask: Ask) -> Any:
    return result


def fail(ask: Ask) -> NoReturn:
    raise JobFailed("the reason")


def raise_another(ask: Ask) -> NoReturn:
    raise LookupError("a fault")


def leave(code: int, ask: Ask) -> NoReturn:
    sys.exit(code)


def leave_at_once(code: int, ask: Ask) -> NoReturn:
    os._exit(code)


def end_by(number: int, ask: Ask) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def interrupt_itself(ask: Ask) -> NoReturn:
    raise KeyboardInterrupt


def ask_twice(ask: Ask) -> list[Any]:
    return [ask("one"), ask({"two": 2})]


def sleep(pid_file: Path, ask: Ask) -> None:
    pid_file.write_text(f"{os.getpid()}")
    time.sleep(60)


def surroundings_of(ask: Ask) -> dict[str, Any]:
    print("to standard output")
    os.system("echo of a program of its own >&2")
    logging.getLogger("cifar_lightning.x").warning("logged")
    return {
        "environment": dict(os.environ),
        "cwd": Path.cwd(),
        "threads": torch.get_num_threads(),
        "inside": jobs.inside(),
        "group": os.getpgrp() == os.getpid(),
    }


def leave_a_child(pid_file: Path, ask: Ask) -> NoReturn:
    if (child := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    pid_file.write_text(f"{child}")
    os._exit(3)


def without_a_word(ask: Ask) -> object:
    return lambda: 5  # cannot be pickled


# What comes back


def test_what_the_work_returns_comes_back() -> None:
    assert run(partial(value, {"a": [1, None]})) == {"a": [1, None]}


def test_what_the_work_could_not_do_comes_back_with_its_reason() -> None:
    with pytest.raises(JobFailed, match=r"^the reason$") as caught:
        run(fail)
    assert not isinstance(caught.value, JobDied)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (partial(leave, 0), "Its process ended with exit code 0 before the work was done."),
        (partial(leave_at_once, 3), "Its process ended with exit code 3 before the work was done."),
        (partial(end_by, signal.SIGSEGV), "Its process was ended by SIGSEGV."),
        (
            partial(end_by, signal.SIGKILL),
            "Its process was ended by SIGKILL, as the system does when memory runs out.",
        ),
        (raise_another, "Its process ended with exit code 1 before the work was done."),
        (without_a_word, "Its process ended with exit code 1 before the work was done."),
        (interrupt_itself, "It was interrupted, by a signal to its process alone."),
    ],
)
def test_however_the_process_ends_the_caller_is_told(
    work: Callable[[Ask], Any], message: str
) -> None:
    with pytest.raises(JobDied) as caught:
        run(work)
    assert str(caught.value) == message
    assert run(partial(value, 1)) == 1  # the next one is none the worse


def test_a_process_that_leaves_a_child_behind_has_ended_all_the_same(tmp_path: Path) -> None:
    # As a worker that loads data, which has the pipe to the caller open too.
    with pytest.raises(JobDied, match="exit code 3"):
        run(partial(leave_a_child, tmp_path / "pid"))
    child = int((tmp_path / "pid").read_text())
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


def test_questions_are_answered() -> None:
    assert run(ask_twice, answer=lambda question: ("of", question)) == [
        ("of", "one"),
        ("of", {"two": 2}),
    ]


def test_a_tick_is_called_while_it_works_and_can_end_it(tmp_path: Path) -> None:
    ticks = []
    pid_file = tmp_path / "pid"

    def tick() -> None:
        if not pid_file.exists() or not pid_file.read_text():
            return
        ticks.append(time.monotonic())
        if len(ticks) == 3:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        run(partial(sleep, pid_file), tick=tick, tick_s=0.1)
    assert ticks[2] - ticks[0] > 0.15
    assert not is_alive(int(pid_file.read_text()))


# What it finds around it


def test_its_surroundings_are_the_callers_and_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(partial(value, 1))  # the server has begun, with other variables and another folder
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
        found = run(surroundings_of, surroundings=Surroundings(threads=1, output=output, log=log))
    assert found["environment"] == dict(os.environ)
    assert found["cwd"] == tmp_path / "elsewhere"
    assert found["threads"] == 1
    assert found["inside"]
    assert found["group"]
    lines = sorted(output.read_text().splitlines())  # nothing of the first one is lost
    assert lines == sorted(2 * ["to standard output", "of a program of its own", "WARNING logged"])
    assert "standard output" not in capfd.readouterr().out
    assert not jobs.inside()


def test_cores_are_divided_unless_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert [jobs.threads_for(n) for n in (1, 2, 10_000)] == [cores, max(1, cores // 2), 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert jobs.threads_for(2) is None


# Signals. In programs of their own, whose callers can be interrupted and killed.

WORKS = """
import os, signal, sys, time
from pathlib import Path
from cifar_lightning import jobs
jobs.HEAVY.clear()  # spares the seconds of importing PyTorch

def slow(how, ask):
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
            if how == "in order":
                end = time.monotonic() + 0.5
    Path("done").touch()
    return interrupts

def speak(ask):
    print("hello")
    return "returned"

def print_and_die(ask):
    print("the last words")
    os._exit(1)

def signalled(ask):
    for process in (os.getpid(), os.getppid()):  # itself, and the server that it was forked from
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(process, number)
    time.sleep(0.5)
    return "unharmed"
"""

CALLER = """
import sys
from functools import partial
import works
from cifar_lightning import jobs
if __name__ == "__main__":
    _, name, *arguments = sys.argv
    try:
        print(jobs.run_job(partial(getattr(works, name), *arguments), jobs.Surroundings()))
    except KeyboardInterrupt:
        print("interrupted")
    except jobs.JobDied as error:
        print(error)
"""


class Caller:
    """A program that has some work done by `run_job`."""

    def __init__(self, *work: str) -> None:
        Path("works.py").write_text(WORKS)
        Path("caller.py").write_text(CALLER)
        self.program = subprocess.Popen(
            [sys.executable, "caller.py", *work],
            stdout=subprocess.PIPE,
            text=True,
            # What a shell starts by & ignores Ctrl-C, and so would what the tests start then.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def pid_of_the_job(self) -> int:
        wait_for(lambda: Path("pid").exists() and Path("pid").read_text())
        return int(Path("pid").read_text())

    def said(self) -> str:
        return self.program.communicate(timeout=60)[0]


def test_ctrl_c_reaches_the_work_once_and_the_caller_when_that_has_ended() -> None:
    caller = Caller("slow", "in order")
    caller.pid_of_the_job()
    caller.program.send_signal(signal.SIGINT)
    assert caller.said() == "interrupted\n"
    assert Path("interrupts").read_text() == "1"
    assert Path("done").exists()


def test_a_second_ctrl_c_ends_it() -> None:
    caller = Caller("slow", "ignores it")
    pid = caller.pid_of_the_job()
    caller.program.send_signal(signal.SIGINT)
    wait_for(Path("interrupts").exists)
    assert is_alive(pid)
    caller.program.send_signal(signal.SIGINT)
    assert caller.said() == "interrupted\n"
    assert not is_alive(pid)
    assert not Path("done").exists()


def test_ctrl_c_is_none_the_less_one_if_the_work_dies_of_it() -> None:
    caller = Caller("slow", "crashes")
    caller.pid_of_the_job()
    caller.program.send_signal(signal.SIGINT)
    assert caller.said() == "interrupted\n"  # a sweep would go on with its next job otherwise


def test_a_caller_that_is_killed_takes_the_job_with_it() -> None:
    caller = Caller("slow", "in order")
    pid = caller.pid_of_the_job()
    assert is_alive(pid)
    caller.program.kill()
    caller.said()
    wait_for(lambda: not is_alive(pid), seconds=10)
    assert not Path("done").exists()


def test_a_crash_loses_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    assert Caller("print_and_die").said() == (
        "the last words\nIts process ended with exit code 1 before the work was done.\n"
    )


def test_without_a_file_the_output_is_the_callers() -> None:
    assert Caller("speak").said() == "hello\nreturned\n"


def test_the_notice_that_slurm_gives_to_all_processes_is_the_callers_to_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert Caller("signalled").said() == "unharmed\n"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert "Its process was ended by SIGTERM" in Caller("signalled").said()


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
        "from cifar_lightning.system.jobs import HEAVY\n"
        "for name in HEAVY: importlib.import_module(name)\n"
        "print(len(HEAVY), threading.active_count())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == f"{len(jobs.HEAVY)} 1\n", ended.stderr  # nor may threads be lost


JOBLIB = """
from joblib import Parallel, delayed
import works
from cifar_lightning import jobs
if __name__ == "__main__":
    pids = Parallel(n_jobs=2, backend="loky")(delayed(works.in_a_job)() for _ in range(3))
    print(len(set(pids)))
"""


def test_a_worker_of_joblib_can_have_jobs() -> None:
    pytest.importorskip("joblib")
    Path("caller.py").write_text(JOBLIB)
    Path("works.py").write_text(
        "import os\n"
        "from cifar_lightning import jobs\n"
        "jobs.HEAVY.clear()\n"
        "def pid(ask): return os.getpid()\n"
        "def in_a_job(): return jobs.run_job(pid, jobs.Surroundings())\n"
    )
    ended = subprocess.run(
        [sys.executable, "caller.py"], capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "3\n", ended.stderr


def test_a_job_that_is_to_have_a_gpu_of_its_own_has_it_before_it_works() -> None:
    Path("two_gpus.py").write_text(
        "import torch\n"
        "torch.cuda.device_count = lambda: 2\n"
        "def shown(ask):\n"
        "    import os\n"
        "    return os.environ.get('CUDA_VISIBLE_DEVICES')\n"
    )
    program = (
        "import two_gpus\n"
        "from cifar_lightning import jobs\n"
        "if __name__ == '__main__':\n"
        "    jobs.HEAVY[:] = ['two_gpus']\n"
        "    for own in (True, False):\n"
        "        print(jobs.run_job(two_gpus.shown, jobs.Surroundings(own_gpu=own)))\n"
    )
    Path("caller.py").write_text(program)
    environment = {k: v for k, v in os.environ.items() if "CUDA" not in k and "SLURM" not in k}
    search_path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "caller.py"],
        capture_output=True,
        text=True,
        env=environment | {"TMPDIR": str(Path.cwd()), "PYTHONPATH": search_path},
        timeout=120,
    )
    assert ended.stdout == "0\nNone\n", ended.stderr
