"""Calls git."""

import os
import subprocess
from pathlib import Path

# Set in a git hook; they would have git work on another repository than the folder's.
OF_A_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")


def git(folder: Path, *arguments: str) -> str:
    """Call git in a folder.

    Returns:
        What it printed, without white space at the end.

    Raises:
        FileNotFoundError: if git is not installed.
        subprocess.CalledProcessError: if it fails.
    """
    environment = {k: v for k, v in os.environ.items() if k not in OF_A_REPOSITORY}
    command = ["git", "-C", str(folder), *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.rstrip()
