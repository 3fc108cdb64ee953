"""One process per run folder, and one job per GPU, tested with real processes."""

import errno
import fcntl
import logging
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from programs import wait_for

from cifar_lightning.cli import run_task
from cifar_lightning.errors import UserError
from cifar_lightning.system.jobs import JobDied, JobFailed, run_job
from cifar_lightning.system.locks import is_locked, reserve_gpu, run_lock
from cifar_lightning.system.logs import LogFile


def test_a_folder_is_one_process_s(tmp_path: Path) -> None:
    refused = pytest.raises(
        JobFailed, match=r"Another process is working on the run in .*Wait for it"
    )
    with run_lock(tmp_path), refused:
        run_job(partial(enter, tmp_path, None))
    run_job(partial(enter, tmp_path, None))
    with pytest.raises(JobDied, match="exit code 7"):
        run_job(partial(enter, tmp_path, 7))
    run_job(partial(enter, tmp_path, None))  # a process that died does not hold it
    with pytest.raises(LookupError), run_lock(tmp_path):
        raise LookupError
    run_job(partial(enter, tmp_path, None))


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


# A GPU of its own: nothing but their number is asked of GPUs, which are not there.


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """With two GPUs, where nobody holds one."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


def hold_a_gpu(name: str) -> str | None:
    torch.cuda.device_count = lambda: 2
    with reserve_gpu():
        shown = os.environ["CUDA_VISIBLE_DEVICES"]
        Path(name).write_text(f"{os.getpid()} {shown}\n")
        wait_for(Path(f"{name}.end").exists)
    return shown


def test_a_gpu_has_one_job_and_the_next_one_waits_for_it(machine: pytest.MonkeyPatch) -> None:
    jobs: dict[str, Future[Any]] = {}

    def start(name: str) -> None:
        output = Path(f"{name}.log").absolute()
        jobs[name] = threads.submit(run_job, partial(hold_a_gpu, name), output=output)

    def holder(name: str) -> list[str]:
        """Its process and its GPU, once it has one."""
        wait_for(lambda: Path(name).exists() and Path(name).read_text().endswith("\n"))
        return Path(name).read_text().split()

    with ThreadPoolExecutor() as threads:
        try:
            for name in "ab":
                start(name)
            assert {holder("a")[1], holder("b")[1]} == {"0", "1"}
            start("c")
            wait_for(lambda: Path("c.log").exists() and Path("c.log").read_text())
            assert not Path("c").exists()
            Path("b.end").touch()
            assert holder("c")[1] == jobs["b"].result(timeout=60)
            start("d")
            os.kill(int(holder("a")[0]), signal.SIGKILL)
            with pytest.raises(JobDied, match="SIGKILL"):
                jobs["a"].result(timeout=60)
            assert {holder("c")[1], holder("d")[1]} == {"0", "1"}
        finally:
            for name in "abcd":
                Path(f"{name}.end").touch()
    waits = "All GPUs (0, 1) are in use by other jobs; this job waits.\n"
    assert [Path(f"{name}.log").read_text() for name in "abc"] == ["", "", waits]


@pytest.mark.parametrize("shown", ["3,5", "GPU-8f1c, MIG-1/2/0"])
def test_gpus_are_those_that_the_environment_shows(machine: pytest.MonkeyPatch, shown: str) -> None:
    found = []
    with ExitStack() as held:
        for visible in (shown, f" {shown}"):  # spaces make no other GPU
            machine.setenv("CUDA_VISIBLE_DEVICES", visible)
            held.enter_context(reserve_gpu())
            found.append(os.environ["CUDA_VISIBLE_DEVICES"].strip())
    assert found == shown.replace(" ", "").split(",")


def test_under_slurm_and_without_gpus_nothing_is_changed(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "device_count", lambda: 0)
    with reserve_gpu():
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    machine.setattr(torch.cuda, "device_count", lambda: 1)
    machine.setenv("SLURM_JOB_ID", "1")
    machine.setenv("CUDA_VISIBLE_DEVICES", "4")
    with reserve_gpu(), reserve_gpu():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"


def test_a_refused_job_writes_nothing_to_the_log_of_a_run_of_another_process(
    tmp_path: Path,
) -> None:
    def refuse(_: DictConfig) -> None:
        raise UserError("it is refused")

    config, file = OmegaConf.create({"run_dir": str(tmp_path)}), tmp_path / "train.log"
    logging.getLogger().addHandler(LogFile(str(file)))
    with run_lock(tmp_path), pytest.raises(JobFailed, match="it is refused"):
        run_task(refuse, "train", config)
    assert not file.exists()
    with pytest.raises(JobFailed, match="it is refused"):
        run_task(refuse, "train", config)
    assert "it is refused" in file.read_text()
