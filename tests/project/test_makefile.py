"""The set-up rules of the Makefile, with an empty lock, so that they need no network."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAMP = ".venv/.dependencies-of-lock"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "a checkout"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements.lock").touch()
    return folder


def make(
    folder: Path, *arguments: str, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    if folder == ROOT:  # whose environment is that of these tests: nothing sets it up anew
        arguments = ("--old-file=.venv/.ready", *arguments)
    # Of a make around these tests nothing may reach the one inside.
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "ARGS"}
    # With the locked uv: an empty lock has none to install. Each set-up of a clone shows that.
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}" if path is None else path
    return subprocess.run(
        [str(shutil.which("make")), *arguments], cwd=folder, env=env, capture_output=True, text=True
    )


def test_set_up_is_done_once_then_again_for_a_changed_lock(checkout: Path) -> None:
    first = make(checkout, STAMP)
    assert first.returncode == 0, first.stderr
    assert "Setting up .venv" in first.stdout
    assert (checkout / ".venv/bin/python").exists()
    assert "up to date" in make(checkout, STAMP).stdout
    lock = checkout / "requirements.lock"
    later = (checkout / STAMP).stat().st_mtime_ns + 10**9
    os.utime(lock, ns=(later, later))
    assert "Setting up .venv" in make(checkout, STAMP).stdout


def test_a_set_up_that_was_broken_off_is_done_again(checkout: Path) -> None:
    (checkout / "requirements.lock").write_text("no-such-package-anywhere==1.0\n")
    broken = make(checkout, STAMP)
    assert broken.returncode != 0
    assert not (checkout / STAMP).exists()
    (checkout / "requirements.lock").write_text("")
    again = make(checkout, STAMP)
    assert again.returncode == 0, again.stderr
    assert "Setting up .venv" in again.stdout


def test_without_a_python_that_fits_the_message_says_so(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "rm", "touch", "echo"):
        (tools / name).symlink_to(str(shutil.which(name)))
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    ended = make(checkout, STAMP, path=str(tools))
    assert ended.returncode != 0
    assert "Python 3.11 or 3.12 is needed" in ended.stderr


def test_only_make_train_without_arguments_may_rehearse() -> None:
    assert "rehearse_without_data=true" in make(ROOT, "--dry-run", "train").stdout
    with_arguments = make(ROOT, "--dry-run", "train", "ARGS=optimizer=sgd seed=1").stdout
    assert "cifar_lightning.train optimizer=sgd seed=1" in with_arguments
    assert "rehearse" not in with_arguments


def test_an_option_outside_of_args_is_refused_with_the_command_to_type() -> None:
    ended = make(ROOT, "--dry-run", "train", "data.path=my images.zip")
    assert ended.returncode != 0
    assert not ended.stdout
    assert 'make train ARGS="data.path=my images.zip"' in ended.stderr


def test_make_new_passes_on_what_is_typed_and_nothing_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NAME", "of the machine, as some systems have it")
    command = make(ROOT, "--dry-run", "new", "DIR=../my net", "TOOLS=").stdout
    assert shlex.split(command.replace("\\\n", ""))[2:] == [
        "cifar_lightning.new",
        "dir=../my net",
        "tools=",
    ]
    command = make(ROOT, "--dry-run", "new", "DIR=../a", "NAME=b", "TOOLS=hub,sweep").stdout
    assert shlex.split(command.replace("\\\n", ""))[3:] == ["dir=../a", "name=b", "tools=hub,sweep"]


def test_help_lists_every_target() -> None:
    listed = {line.split()[0] for line in make(ROOT, "help").stdout.splitlines()}
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert listed == rules >= {"help", "setup", "train", "test", "test-all", "lint", "bench"}


def test_where_there_is_no_run_wandb_view_says_so_and_nothing_is_uploaded(tmp_path: Path) -> None:
    for target in ("wandb-view", "wandb-sync"):
        ended = make(ROOT, target, f"FROM={tmp_path}")
        assert ended.returncode != 0
        assert f"there is no run in {tmp_path}/runs/wandb" in ended.stderr
    (tmp_path / "runs" / "wandb").mkdir(parents=True)
    ended = make(ROOT, "--silent", "wandb-sync", f"FROM={tmp_path}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
