"""Online W&B runs with a local server that answers, refuses, hangs, disconnects or forbids."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
from conftest import TINY, needs_unshare
from programs import Program, only, wait_for
from wandb_files import recorded, run_folders, without_service
from wandb_server import KEY, Behaviour, WandbServer, wandb_server

from cifar_lightning.config.compose import CONF
from cifar_lightning.tracking.run_folder import read_rows

EPOCHS = 12  # some seconds, in which a server can go away
IN_TIME = 80  # seconds, from its going away to the end


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server() as running:
        yield running


AS_OTHERS = 'hostname secret-host && test "$(hostname)" = secret-host && exec "$@"'
OPTIONS = [*TINY, "logger=default", "target_accuracy=null"]


def environment(url: str) -> dict[str, str]:
    """All variables of a training whose W&B server is at this address."""
    return without_service() | {
        "WANDB_BASE_URL": url,
        "WANDB_API_KEY": KEY,
        "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",  # seconds
        "HOME": str(Path.cwd()),
    }


def start(url: str, *arguments: str, online: bool = True) -> Program:
    mode = f"logger.wandb.mode={'online' if online else 'offline'}"
    options = [*OPTIONS, "logger.wandb.finish_timeout=3", mode, *arguments]
    return programs.start("train", *options, env=environment(url))


def finish(program: Program) -> str:
    output = programs.finish(program, IN_TIME)
    assert program.returncode == 0, output
    assert "Traceback" not in output
    return output


def messages_in(output: str) -> list[str]:
    """What was said of W&B, but for the line that names the W&B run."""
    return [line for line in output.splitlines() if re.search("W&B(?! run )", line)]


def check_that_nothing_is_lost(output: str, epochs: int, said: str) -> None:
    """All files of the run are there, and one message says what happened."""
    (message,) = messages_in(output)
    assert said in message
    metrics: dict[str, Any] = json.loads(only("runs/train/*/metrics.json").read_text())
    assert metrics["test/acc"] is not None
    assert only("runs/train/*/checkpoints/best.ckpt").stat().st_size
    rows = read_rows(only("runs/train/*"))
    assert [row["epoch"] for row in rows if "val/acc" in row] == list(range(1, epochs + 1))


@needs_unshare("--uts")
@pytest.mark.slow
def test_an_online_run_is_uploaded_whole_and_without_anything_of_the_machine(
    server: WandbServer, tmp_path: Path
) -> None:
    options = [*OPTIONS, "plots=true", "trainer.max_epochs=2", "logger.wandb.mode=online"]
    options += ["trainer.profiler={_target_:pytorch_lightning.profilers.SimpleProfiler}"]
    options += [
        f"+trainer.profiler.dirpath={tmp_path}/secret_place",
        "+trainer.profiler.filename=p",
    ]
    training = [sys.executable, "-m", "cifar_lightning.train", *options]
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--uts", "sh", "-c", AS_OTHERS, "sh", *training],
        env=environment(server.url) | {"USER": "secret_user", "LOGNAME": "secret_user"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    output = ended.stdout
    assert ended.returncode == 0, output
    assert not messages_in(output)
    rows = [row for row in server.streamed("wandb-history.jsonl") if "val/acc" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"best", "latest"} <= {
        alias["alias"]
        for variables in server.variables("CreateArtifact")
        for alias in variables["input"]["aliases"]
    }
    uploaded = {path.removeprefix("/upload/") for path, _ in server.sent}
    assert {"best.ckpt", "mistakes.table.json", "config.yaml"} <= uploaded
    assert f"{server.url}/somebody/p/runs/" in output
    (folder,) = run_folders()
    assert list(folder.glob("*.wandb.synced"))  # `make wandb-sync` leaves it out

    texts = [json.dumps(variables) for _, variables in server.asked]
    texts += [b.decode(errors="replace") for path, b in server.sent if "diff.patch" not in path]
    assert len(texts) > 50
    for text in texts:
        for secret in ("secret_", "secret-host", KEY, str(Path.cwd()), str(CONF.parent)):
            assert secret not in text, text[:300]
    assert {v["host"] for v in server.variables("UpsertBucket")} <= {None, ""}


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["hang", "refuse", "forbid"])
def test_a_server_that_goes_away_ends_no_training(
    server: WandbServer, behaviour: Behaviour
) -> None:
    program = start(server.url, f"trainer.max_epochs={EPOCHS}")
    wait_for(server.saw_a_row.is_set, program)
    server.behaviour = behaviour
    output = finish(program)
    check_that_nothing_is_lost(
        output, EPOCHS, "The training continues. Data that was not uploaded is kept"
    )
    (folder,) = run_folders()
    assert [row["epoch"] for row in recorded(folder).rows] == list(range(1, EPOCHS + 1))
    assert len(server.streamed("wandb-history.jsonl")) < EPOCHS

    server.behaviour = "answer"
    assert sync(server).returncode == 0
    epochs = {row["epoch"] for row in server.streamed("wandb-history.jsonl") if "val/acc" in row}
    assert epochs == set(range(1, EPOCHS + 1))


@pytest.mark.slow
def test_a_server_that_does_not_answer_at_the_start_makes_the_run_offline(
    server: WandbServer,
) -> None:
    server.behaviour = "hang"
    output = finish(start(server.url))
    check_that_nothing_is_lost(
        output, 1, "W&B could not start an online run, so this run is offline"
    )
    (folder,) = (path for path in run_folders() if path.name.startswith("offline"))
    assert recorded(folder).summary["test/acc"] is not None


@pytest.mark.slow
def test_without_its_own_process_wandb_ends_no_training(server: WandbServer) -> None:
    program = start(server.url, f"trainer.max_epochs={EPOCHS}")
    wait_for(server.saw_a_row.is_set, program)
    os.kill(core_of(program.pid), signal.SIGKILL)
    output = finish(program)
    check_that_nothing_is_lost(output, EPOCHS, "W&B: ")


def core_of(pid: int) -> int:
    """The process of W&B that a training has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            text = status.read_text()
            if f"PPid:\t{pid}\n" in text and "Name:\twandb-core" in text:
                found.append(int(status.parent.name))
    (core,) = found
    return core


@pytest.mark.slow
def test_a_training_that_is_killed_leaves_the_rows_so_far() -> None:
    program = start("http://127.0.0.1:9", "trainer.max_epochs=10_000", online=False)
    wait_for(lambda: any(recorded(folder).rows for folder in run_folders()))
    core = core_of(program.pid)
    program.kill()
    program.communicate()
    wait_for(lambda: not Path(f"/proc/{core}").exists())  # it writes what it has
    (folder,) = run_folders()
    shown = recorded(folder)
    assert shown.rows[0]["epoch"] == 1
    assert not shown.of("exit")
    assert shown.config["model"] == "dilated_dw"


def resume(url: str, checkpoint: Path, *arguments: str, online: bool) -> None:
    mode = {} if online else {"WANDB_MODE": "offline"}
    finish(programs.start("train", f"resume={checkpoint}", *arguments, env=environment(url) | mode))


def train_the_second_epoch_twice(url: str, online: bool) -> None:
    """A run that is resumed from the end of its first epoch a second time."""
    typed = ("trainer.val_check_interval=0.5", "logger.wandb.log_images=false")
    finish(start(url, *typed, "logger.wandb.finish_timeout=60", online=online))
    last = only("runs/train/*/checkpoints/last.ckpt")
    first = last.with_name("first.ckpt")
    shutil.copy(last, first)
    resume(url, last, "trainer.max_epochs=2", online=online)
    last.unlink()  # else going back is refused: it would replace this one
    resume(url, first, "trainer.max_epochs=3", online=online)


def check_that_rows_are_uploaded_once(server: WandbServer, run: str) -> None:
    rows = [row for row in server.streamed("wandb-history.jsonl", run) if "val/acc" in row]
    assert [row["epoch"] for row in rows] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert [row["_step"] for row in rows] == [2, 5, 8, 11, 14, 17]


@pytest.mark.slow
def test_a_row_that_is_trained_twice_is_uploaded_once(server: WandbServer) -> None:
    train_the_second_epoch_twice(server.url, online=True)
    (run,) = {variables["name"] for variables in server.variables("UpsertBucket")}
    check_that_rows_are_uploaded_once(server, run)


def sync(server: WandbServer) -> subprocess.CompletedProcess[str]:
    where = f"FROM={Path.cwd()}"
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(CONF.parent), "wandb-sync", where],
        env=without_service() | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_wandb_sync_uploads_all_offline_runs_once(server: WandbServer) -> None:
    train_the_second_epoch_twice(server.url, online=False)
    (resumed,) = {recorded(folder).run["run_id"] for folder in run_folders()}
    finish(start(server.url, "seed=1", online=False))
    assert len(run_folders()) == 4
    assert not server.asked
    ended = sync(server)
    assert ended.returncode == 0, ended.stderr
    assert len({variables["name"] for variables in server.variables("UpsertBucket")}) == 2
    check_that_rows_are_uploaded_once(server, resumed)
    uploaded = [path for path, _ in server.sent]
    assert uploaded.count("/upload/best.ckpt") == 4
    assert str(Path.cwd()) not in server.everything()
    count = len(server.sent)
    assert "No runs to sync" in sync(server).stderr
    assert len(server.sent) == count
    assert not Path("wandb").exists()
    assert not (CONF.parent / "wandb").exists()


@needs_unshare("--mount")
@pytest.mark.slow
def test_without_a_home_and_in_a_read_only_folder_its_files_are_beside_the_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "here").mkdir()
    options = ["logger=default", "logger.wandb.mode=offline", f"hydra.run.dir={tmp_path}/runs/x"]
    script = "mount -t tmpfs -o ro disk here && cd here && " + shlex.join(
        [sys.executable, "-m", "cifar_lightning.train", *TINY, *options]
    )
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "env", "-u", "HOME", "sh", "-c", script],
        env=without_service(),
        capture_output=True,
        text=True,
        timeout=IN_TIME,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len([*(tmp_path / "runs" / "wandb").glob("offline-run-*")]) == 1


@needs_unshare("--mount")
@pytest.mark.slow
def test_a_disk_that_is_full_costs_the_wandb_run_and_not_the_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    options = ["logger=default", "logger.wandb.mode=offline", f"logger.wandb.save_dir={disk}"]
    script = f"mkdir {disk} && mount -t tmpfs -o size=100k disk {disk} && " + shlex.join(
        [sys.executable, "-m", "cifar_lightning.train", *TINY, *options]
    )
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        env=without_service(),
        capture_output=True,
        text=True,
        timeout=IN_TIME,
    )
    assert ended.returncode == 0, ended.stderr
    output = ended.stdout + ended.stderr
    check_that_nothing_is_lost(output, 1, "No space left on device")
