"""How files and programs of this process are typed in the shell that it was started from."""

import os
import shutil
import sys
from pathlib import Path


def from_here(path: Path) -> Path:
    """The path, relative to the working directory if that holds it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def program(name: str) -> list[str]:
    """The words that start a program of this Python environment, which the shell may not find."""
    if "UV_RUN_RECURSION_DEPTH" in os.environ:  # within `uv run`
        return ["uv", "run", name]
    own = Path(sys.executable).with_name(name)
    if name == "python" and not own.exists():  # a system may have python3 alone
        own = Path(sys.executable)
        name = own.name
    found = shutil.which(name) == str(own) or not own.exists()
    return [name if found else str(from_here(own))]
