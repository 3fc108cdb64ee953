"""Command-line overrides, checked and quoted for Hydra's grammar."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.errors import HydraException

from cifar_lightning.config.compose import CONF, key_of
from cifar_lightning.errors import UserError

# Where a command's files go, if hydra.run.dir or hydra.sweep.dir does not say it.
OUTPUTS = {
    "train": "without -m, hydra.run.dir=FOLDER is the run's folder",
    "search": "hydra.run.dir=FOLDER is the search's folder",
    "report": "report writes to the folder of run=PATH, or for several to runs/compare/",
    "dashboard": "dashboard writes no files",
    "new": "dir=FOLDER is the new project's folder",
    **{name: f"{name} writes to output=PATH" for name in ("evaluate", "export", "predict")},
}

# Keys of paths, which Hydra's grammar needs quoted if they contain =, spaces or brackets.
PATH_KEYS = (
    "checkpoint",
    "data.cache_dir",
    "data.mirror",
    "data.path",
    "data.root",
    "dir",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "images",
    "logger.mlflow.save_dir",
    "logger.trackio.save_dir",
    "logger.wandb.save_dir",
    "output",
    "resume",
    "run",
    "storage",
    "teacher",
)

# Groups whose options may be combined, as in callbacks=[mirror,progressive_resizing].
COMBINED_GROUPS = ("callbacks", "logger")


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Quote paths, and texts that Hydra's grammar cannot read; refuse what it would misread.

    Args:
        arguments: as `plain_arguments` gives them.

    Raises:
        UserError: if an argument cannot be read, a path is empty, a group is given no option, or
            there is a space before an equals sign.
    """
    prepared, multirun = [], is_sweep(arguments)
    for argument in arguments:
        if "\0" in argument:
            raise UserError(f"{argument}: it has a NUL character, which no name or text may have.")
        if argument in ("experiment=null", "debug=null"):
            continue  # the default, which Hydra does not accept
        if not argument.startswith("-"):
            _check_key(argument)
            _check_group(argument)
            if "=" in argument:
                argument = _readable(_quoted_path(argument, multirun), multirun)
        prepared.append(argument)
    return prepared


def _check_key(argument: str) -> None:
    """Refuse an override without a key, or that would change what relative paths mean."""
    key, equals, value = argument.partition("=")
    if equals and not key.lstrip("+~"):
        raise UserError(f"{argument}: no space belongs before the equals sign.")
    value = value.strip("'\"").lower()
    if key.lstrip("+") == "hydra.job.chdir" and value not in ("false", "0", "no", "off", "null"):
        raise UserError(
            f"{argument} would make paths relative to the run's folder. Leave it "
            "out; your own code has that folder as ${run_dir}."
        )


def _check_group(argument: str) -> None:
    """Refuse an override of a group that names no option."""
    key, equals, value = argument.partition("=")
    if key.startswith("~") and not equals:
        return  # it needs none
    group = key.lstrip("+~").partition("@")[0]
    options = _options(group)
    is_group = options or (equals and ("/" in group or group == "hydra"))
    if is_group and not _names_options(value, group in COMBINED_GROUPS):
        known = "" if group.startswith("hydra") else f": {', '.join(options)}"  # it has others
        raise UserError(f"{argument}: this group needs an option{known}.")


def _quoted_path(argument: str, multirun: bool) -> str:
    """Quote the value of an override if it is a path, with a home folder in place of `~`.

    Raises:
        UserError: if the path is empty.
    """
    key, _, value = argument.partition("=")
    if key.lstrip("+") not in PATH_KEYS or value == "null":
        return argument
    if not value:
        raise UserError(f"{argument} names no file or folder.")
    of_a_sweep = multirun and "," in value and not key.startswith("hydra.") and not _exists(value)
    if value[0] in ("'", '"') or of_a_sweep:
        return argument
    # Not pathlib's, which would make one slash of two in an address.
    return f"{key}={quoted(os.path.expanduser(value))}"  # noqa: PTH111


def _exists(path: str | Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  # pathlib's raises an error for a long name


def _options(group: str) -> list[str]:
    """The options of a group of conf/; empty if there is none of this name."""
    folder = CONF / group
    return sorted(path.stem for path in folder.glob("*.yaml")) if group and _exists(folder) else []


def _names_options(value: str, combined: bool) -> bool:
    """Whether a value may be the name of an option, or names separated by commas.

    Args:
        value: of an override.
        combined: whether it may be a list too.
    """
    if combined and value.startswith("[") and value.endswith("]"):
        value = value[1:-1]
    return all(map(_names_option, value.split(",")))


def _names_option(value: str) -> bool:
    """Whether a value may be the name of an option, and not a number, null, list or dictionary."""
    value = value.strip(" /")
    if value.lower() in ("", "null", "true", "false") or value.startswith(("{", "[")):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


def _readable(argument: str, multirun: bool) -> str:
    """Quote the value of an override, or the texts in it, if Hydra's grammar cannot read it.

    Raises:
        UserError: if quotes, brackets or a function in the value leave open what the texts are.
    """
    if _can_read(argument):
        return argument
    key, _, value = argument.partition("=")
    if not _can_read(f"{key}=1"):
        raise UserError(
            f"{argument}: {key} is not the name of a key, as trainer.max_epochs, or of a group."
        )
    is_list = value.startswith("[") and value.endswith("]")
    is_call = value.endswith(")") and value.partition("(")[0] in create_functions().definitions
    if value[0] in ("'", '"'):
        raise UserError(
            f"{argument}: the quote is not closed, or something follows it. As a text with quotes "
            f'in it: "{key}={quoted(value)}".'
        )
    several = value[1:-1] if is_list else value
    if is_list or is_call or _is_dictionary(value) or (multirun and "," in value):
        if re.search(r"[][(){}'\"]", several):
            raise UserError(
                f"{argument} cannot be read. Put quotes around text that has other "
                f"characters than letters, digits and _-./, as in \"{key}=['50 %','a=b']\"."
            )
        texts = (part.strip() for part in several.split(","))
        joined = ",".join(text if _can_read(f"{key}={text}") else quoted(text) for text in texts)
        return f"{key}=[{joined}]" if is_list else f"{key}={joined}"
    return f"{key}={quoted(value)}"


def _can_read(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _is_dictionary(value: str) -> bool:
    """Whether a value is in braces as a whole, as {a:1} is, and not {epoch}-{step:02d}."""
    depth = 0
    for at, character in enumerate(value, start=1):
        depth += (character == "{") - (character == "}")
        if depth == 0:  # at once if the first character is no brace
            return 1 < at == len(value) and ":" in value
    return False


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether Hydra would run several jobs, by what `plain_arguments` gives."""
    modes = values_of("hydra.mode", arguments)
    return "--multirun" in arguments or (bool(modes) and modes[-1].upper() == "MULTIRUN")


def values_of(key: str, arguments: Sequence[str]) -> list[str]:
    """The values that the command line gives a key, without quotes around them."""
    return [a.partition("=")[2].strip("'\"") for a in arguments if key_of(a) == key]


def check_folders(arguments: Sequence[str], config_name: str) -> None:
    """Refuse Hydra's option for a folder that it would not use.

    Args:
        arguments: of the command line.
        config_name: the command's file in conf/.

    Raises:
        UserError: says what to use instead.
    """
    unused, instead = ["hydra.run.dir"], OUTPUTS[config_name]
    if config_name == "train" and is_sweep(arguments):
        instead = "hydra.sweep.dir=FOLDER is a sweep's folder"
    elif config_name in ("train", "search"):
        unused = ["hydra.sweep.dir", "hydra.sweep.subdir"]
    for key in unused:
        if values_of(key, arguments):
            raise UserError(f"{key} is not used here: {instead}.")


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
    """Split what `plain_arguments` gives into Hydra's options and overrides."""
    options = [argument for argument in arguments if argument.startswith("-")]
    return options, [argument for argument in arguments if not argument.startswith("-")]
