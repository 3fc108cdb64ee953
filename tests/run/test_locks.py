"""One process in a run's folder, one job on a GPU: real processes, jobs."""

import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import wait_for

from cifar_lightning.system.jobs import JobDied, JobEnvironment, JobFailed, run_job
from cifar_lightning.system.locks import is_locked, reserve_gpu, run_lock

PLAIN = JobEnvironment()


def test_a_folder_is_one_process_s(tmp_path: Path) -> None:
    refused = pytest.raises(
        JobFailed, match=r"Another process is working on this run, in .*wait for it"
    )
    with run_lock(tmp_path), refused:
        run_job(partial(enter, tmp_path, None), PLAIN)
    run_job(partial(enter, tmp_path, None), PLAIN)
    with pytest.raises(JobDied, match="exit code 7"):
        run_job(partial(enter, tmp_path, 7), PLAIN)
    run_job(partial(enter, tmp_path, None), PLAIN)  # a process that died does not hold it
    with pytest.raises(LookupError), run_lock(tmp_path):
        raise LookupError
    run_job(partial(enter, tmp_path, None), PLAIN)


def enter(folder: Path, exit_code: int | None) -> None:
    with run_lock(folder):
        if exit_code is not None:
            os._exit(exit_code)


def test_a_folder_without_locks_is_no_reason_not_to_train(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()  # an error of the system, as on a disk that has no locks
    with run_lock(tmp_path):
        pass
    with pytest.raises(LookupError), run_lock(tmp_path):
        raise LookupError


def test_a_disk_without_locks_keeps_nothing_that_would_be_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_none(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", has_none)  # as such a file system answers
    with run_lock(tmp_path):
        assert not is_locked(tmp_path)


# A GPU of its own: real processes, which only count GPUs that are not there.


def hold_a_gpu(name: str, gpus: int) -> str | None:
    torch.cuda.device_count = lambda: gpus
    with reserve_gpu():
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        Path(f"{name}.json").write_text(json.dumps([os.getpid(), shown]))
        while not Path(f"{name}.end").exists():
            time.sleep(0.02)
    return shown


class Holders:
    """Jobs that have, or wait for, a GPU."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.threads = ThreadPoolExecutor()
        self.jobs: dict[str, Future[Any]] = {}

    def start(self, name: str) -> None:
        work = partial(hold_a_gpu, name, self.gpus)
        output = JobEnvironment(output=Path(f"{name}.log").absolute())
        self.jobs[name] = self.threads.submit(run_job, work, output)

    def has(self, name: str) -> Any:
        wait_for(lambda: Path(f"{name}.json").exists() and Path(f"{name}.json").read_text())
        return json.loads(Path(f"{name}.json").read_text())[1]

    def end(self, name: str) -> Any:
        Path(f"{name}.end").touch()
        return self.jobs[name].result(timeout=60)

    def kill(self, name: str) -> None:
        os.kill(json.loads(Path(f"{name}.json").read_text())[0], signal.SIGKILL)
        with pytest.raises(JobDied, match="SIGKILL"):
            self.jobs[name].result(timeout=60)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Where nobody else holds a GPU."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield monkeypatch
    for name in "abcd":  # or a test that fails would wait for them
        (tmp_path / f"{name}.end").touch()


def test_a_gpu_has_one_job_and_the_next_one_waits_for_it(machine: pytest.MonkeyPatch) -> None:
    holders = Holders(gpus=2)
    for name in "ab":
        holders.start(name)
    assert {holders.has("a"), holders.has("b")} == {"0", "1"}
    holders.start("c")
    log = Path("c.log")
    wait_for(lambda: log.exists() and log.read_text())  # that it waits
    assert not Path("c.json").exists()
    freed = holders.end("b")
    assert holders.has("c") == freed
    holders.start("d")
    holders.kill("a")
    assert {holders.has("c"), holders.has("d")} == {"0", "1"}
    for name in "cd":
        holders.end(name)
    waits = "All GPUs (0, 1) are in use by jobs; this one waits.\n"
    assert [Path(f"{name}.log").read_text() for name in "abc"] == ["", "", waits]


@pytest.mark.parametrize("shown", ["3,5", "GPU-8f1c, MIG-1/2/0"])
def test_gpus_are_those_that_the_environment_shows(machine: pytest.MonkeyPatch, shown: str) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", shown)
    holders = Holders(gpus=2)
    for name in "ab":
        holders.start(name)
    found = {holders.has("a"), holders.has("b")}
    assert {gpu.strip() for gpu in found} == {gpu.strip() for gpu in shown.split(",")}
    for name in "ab":
        holders.end(name)


def test_under_slurm_and_without_gpus_nothing_is_changed(machine: pytest.MonkeyPatch) -> None:
    holders = Holders(gpus=0)
    holders.start("d")
    assert holders.has("d") is None
    holders.end("d")
    machine.setenv("SLURM_JOB_ID", "1")
    machine.setenv("CUDA_VISIBLE_DEVICES", "4")
    holders = Holders(gpus=1)
    for name in "abc":
        holders.start(name)
    assert {holders.has(name) for name in "abc"} == {"4"}
    for name in "abc":
        holders.end(name)
