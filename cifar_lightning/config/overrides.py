"""Command-line overrides, checked and quoted for Hydra's grammar."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cifar_lightning.config.compose import CONF
from cifar_lightning.errors import UserError

CONFIG_DIR = ("--config-dir", "-cd")  # Hydra's options for another folder of configurations

# Keys of paths, which Hydra's grammar needs quoted if they contain =, spaces or brackets.
PATH_KEYS = (
    "checkpoint",
    "data.cache_dir",
    "data.mirror",
    "data.path",
    "data.root",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "images",
    "logger.wandb.save_dir",
    "output",
    "resume",
    "run",
    "storage",
    "teacher",
)


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Quote paths for Hydra's grammar, and refuse overrides that it would misread.

    Raises:
        UserError: if a path is empty, a group is given no option, or there is a space before an
            equals sign.
    """
    prepared = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if not equals and not before.startswith("-") and Path(argument).exists():
            raise UserError(
                f"{argument}: expected KEY=VALUE. For several images, images=FOLDER or a pattern "
                "in quotes, images='photos/*.png'."
            )
        if equals and not key:
            raise UserError(f"{argument}: no space belongs before the equals sign.")
        if argument in ("experiment=null", "debug=null"):
            continue  # the default, which Hydra does not accept
        group = key.lstrip("+")
        is_group = group != "" and (CONF / group).is_dir()
        if is_group and not all(map(_names_option, value.split(","))):
            options = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
            raise UserError(f"{argument}: this group needs an option: {options}.")
        if equals and key.lstrip("+") in PATH_KEYS and value != "null":
            if not value:
                raise UserError(f"{argument} names no file or folder.")
            of_a_sweep = is_sweep(arguments) and "," in value and not Path(value).exists()
            if value[0] not in ("'", '"') and not of_a_sweep:
                # Not pathlib's, which would make one slash of two in an address.
                argument = f"{key}={quoted(os.path.expanduser(value))}"  # noqa: PTH111
        prepared.append(argument)
    return prepared


def _names_option(value: str) -> bool:
    """Whether a value may be the name of an option, and not a number, null or a dictionary."""
    if value.strip().lower() in ("null", "true", "false") or value.strip().startswith("{"):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether Hydra would run several jobs."""
    return any(a == "-m" or a.startswith("--multi") for a in arguments)


def quoted(value: str) -> str:
    """Quote a text for Hydra's grammar, in single quotes.

    Backslashes are doubled before a quote only, where they would escape it.
    """
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'")
    return f"'{escaped}'"


def write_nothing(arguments: Sequence[str]) -> list[str]:
    """Overrides for a process that is not the first, which alone writes the run folder and the log.

    torchrun and srun start one command per process, each of which would name a run folder by its
    own time.
    """
    same_for_all = any(a.startswith("hydra.run.dir=") and "${" not in a for a in arguments)
    folder = [] if same_for_all else ["hydra.run.dir=."]
    return [*folder, "hydra.output_subdir=null", "hydra/job_logging=terminal"]


def options_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into Hydra's options with their values, and overrides."""
    options: list[str] = []
    overrides: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_override = "=" in argument or argument.startswith("~")
        of_option = argument.startswith("-") or before in CONFIG_DIR or not is_override
        (options if of_option else overrides).append(argument)
    return options, overrides
