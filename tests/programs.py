"""The commands as programs: run to their end, or started so that they can be stopped."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def run_command(
    name: str, *typed: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m cifar_lightning.NAME`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", f"cifar_lightning.{name}", *typed],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        cwd=cwd,
        env=env,
        timeout=300,
    )


def one_message(ended: subprocess.CompletedProcess[str]) -> str:
    """The one that a command ended in, without a traceback."""
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("Error: ") == 1
    return ended.stderr.partition("Error: ")[2]


def start(
    name: str, *typed: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """`python -m cifar_lightning.NAME`; what it says comes from `finish`."""
    return subprocess.Popen(
        [sys.executable, "-m", f"cifar_lightning.{name}", *typed],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=env,
        # What a shell starts by & ignores Ctrl-C, and so would what the tests start then.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(program: "subprocess.Popen[str]") -> str:
    """What a program says until its end, for which five minutes are waited."""
    try:
        return program.communicate(timeout=300)[0]
    finally:
        program.kill()


def wait_for(
    condition: Callable[[], Any],
    program: "subprocess.Popen[str] | None" = None,
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
