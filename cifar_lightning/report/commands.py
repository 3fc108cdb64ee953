"""Commands that repeat a run, as a user would type them."""

import shlex
from collections.abc import Sequence

from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.errors import UserError


def train_command(
    overrides: Sequence[str], config_dir: str | None = None, multirun: bool = False
) -> str:
    """The shell command that trains with these overrides and this --config-dir."""
    words = ["python", "-m", "cifar_lightning.train", *(["-m"] if multirun else [])]
    words += [] if config_dir is None else ["--config-dir", config_dir]
    return shlex.join([*words, *(_as_typed(override, multirun) for override in overrides)])


def _as_typed(override: str, multirun: bool = False) -> str:
    """An override without the quotes that `prepare_arguments` puts around a path."""
    key, _, value = override.partition("=")
    if len(value) < 2 or value[0] != "'" or value[-1] != "'":
        return override
    typed = f"{key}={value[1:-1]}".replace("\\'", "'")
    try:
        prepared = prepare_arguments([*(["--multirun"] if multirun else []), typed])
    except UserError:  # such as for a checkpoint that no longer exists
        return override
    return typed if prepared[-1] == override else override
