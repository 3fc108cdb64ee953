"""The code of a run: its Git commit and the uncommitted changes."""

import os
import subprocess
from pathlib import Path

from cifar_lightning.config.compose import PACKAGE

# The files and folders of a checkout that a training depends on.
CODE = ("cifar_lightning", "conf", "hydra_plugins", "pyproject.toml", "requirements.lock")
MAX_DIFF = 1_000_000  # bytes
# Independent of the user's Git settings.
PLAIN = (
    *("--no-color", "--no-ext-diff", "--no-textconv", "--binary"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)


def code_state(package: Path = PACKAGE) -> tuple[str | None, bytes]:
    """The commit and the uncommitted changes of the checkout that the package runs from.

    Args:
        package: the folder of the package in the checkout.

    Returns:
        The hash of the commit, or None without a checkout or Git; and the changes for `git apply`,
        new files included, with paths relative to the package's parent folder.
    """
    root = package.parent  # not necessarily the root of the repository
    code = [name for name in CODE if (root / name).exists()]
    try:
        # Raises an error if the repository is of another project.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        diff = _git(root, "diff", *PLAIN, "--relative", "HEAD", "--", *code)
        new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *code)
        for name in filter(None, new.decode(errors="surrogateescape").split("\0")):
            diff += _git(root, "diff", *PLAIN, "--no-index", "--", os.devnull, name, expected=1)
    except (OSError, subprocess.SubprocessError):
        return None, b""
    if len(diff) > MAX_DIFF:
        diff = diff[:MAX_DIFF] + b"\n(cut off here)\n"
    return commit, diff


def _git(folder: Path, *arguments: str, expected: int = 0) -> bytes:
    """The standard output of a Git command.

    Raises:
        OSError: if Git is not installed.
        subprocess.SubprocessError: if it takes longer than 10 s, or has another exit code.
    """
    ended = subprocess.run(
        ["git", "-C", folder, *arguments],
        capture_output=True,
        timeout=10,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    if ended.returncode != expected:
        raise subprocess.CalledProcessError(ended.returncode, arguments)
    return ended.stdout
