"""Turns exceptions into error messages for users, with suggestions."""

import errno
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from cifar_lightning.config.comments import options, read_option
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.config.habits import (
    INSTEAD,
    commands_are_there,
    meant,
    near,
    question,
    suggestion,
)
from cifar_lightning.config.overrides import quoted
from cifar_lightning.config.refused import refusal
from cifar_lightning.errors import UserError
from cifar_lightning.system.atomic import is_writable
from cifar_lightning.system.jobs import JobFailed

# Exceptions that end in one message; all others are bugs, and end in a traceback. An OSError comes
# from the disk or the machine, and its message says how to get the traceback.
MISTAKES = (UserError, JobFailed, CompactHydraException, OmegaConfBaseException, OSError)

# What a wrong value raises, and perhaps a bug in a network.
FAULTS = (
    *(TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError),
    AssertionError,  # as torchvision has it for a wrong image size
)

HYDRA_OPTIONS = ("--help", "--multirun", "--cfg", "--config-dir", "--hydra-help", "--package")

# By command, the keys of an image or a folder, and of a checkpoint.
KEY_FOR_PATH = {
    "train": ("data.path", "resume"),
    "predict": ("images", "checkpoint"),
    "report": ("run", "run"),
    **dict.fromkeys(("evaluate", "export"), ("checkpoint", "checkpoint")),
}

# What a configuration gets when a run begins, and --cfg job does not show.
OF_A_RUN = ("choices", "overrides", "run_dir", "run_id", "sweep")


def explain(error: Exception, config_name: str, arguments: Sequence[str] = ()) -> str:
    """Turn an exception into an error message, with the nearest valid names if a name is wrong.

    Args:
        error: that ended the command.
        config_name: the file in conf/.
        arguments: of the command line; the options chosen there decide which names are valid.

    Returns:
        Printable lines, because file names and values may contain terminal escape sequences.
    """
    message = re.sub(r"\n\s*\n", "\n", _explain(error, config_name, arguments))  # one paragraph
    return "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in message
    )


def _explain(error: Exception, config_name: str, arguments: Sequence[str]) -> str:
    if isinstance(error, OSError) and not isinstance(error, CompactHydraException):
        return _explain_os(error, config_name)
    message = str(error).strip().expandtabs(2)
    if isinstance(error, UserError):
        if isinstance(error.__cause__, FAULTS):
            message += "\nHYDRA_FULL_ERROR=1 shows where it was raised."
        return message
    if explained := _explain_grammar(error, message, config_name):
        return explained
    message = re.sub(r"\n\s*full_key: (.*)", r" (in \1)", message)
    if cause := error.__cause__:
        message += f"\n{cause}"
    lines = [line for line in message.splitlines() if "object_type=" not in line]
    if found := re.search(r"Could not (?:find|load) '([^']*?)/?'", message):
        listed = message.partition("Available options")[2].partition("Config search path")[0]
        there = [line.strip() for line in listed.splitlines()[1:] if line.strip()]
        group, option = _typed_choice(found[1], arguments)
        return _unknown_choice(group, option, there)
    if found := re.search(r"Could not override '([^'@]+)'", message):
        # Of a dictionary, the key in it that there is not.
        inner = re.search(rf"full_key: ({re.escape(found[1])}\..*)", message)
        return _unknown_key(inner[1] if inner else found[1], config_name, arguments)
    if found := re.search(r"Could not delete from config. '([^']+)' does not exist", message):
        return _unknown_key(found[1], config_name, arguments)
    if found := re.search(r"Could not append to config. An item is already at '(.*)'", message):
        return f"{found[1]} is in the configuration already: {found[1]}=VALUE, without +, sets it."
    if found := re.search(
        r"Multiple values for ([^ ]+)\. To override .*override \1: (.*)'", message
    ):
        return f"{found[1]} has an option already: {found[1]}={found[2]}, without +, replaces it."
    return "\n".join(lines)


def _typed_choice(file: str, arguments: Sequence[str]) -> tuple[str, str]:
    """The group and the option of a file; an option that was typed may have slashes, as a path."""
    for argument in arguments:
        group, _, value = argument.lstrip("+").partition("=")
        for option in value.split(","):
            if f"{group}/{option}".rstrip("/") == file:
                return group, option
    group, _, option = file.rpartition("/")
    return group, option


def _unknown_choice(group: str, option: str, there: Sequence[str]) -> str:
    """The message for an option that a group does not have, which has those that are there."""
    there = there or options(group)
    known = f" The options of {group}: {', '.join(there)}." if there else ""
    instead = INSTEAD.get(group, "")
    if not instead or not commands_are_there(instead):
        instead = "--help lists the groups and their options."
    return f"There is no {group}={option}.{known}{question(near(option, there))}\n{instead}"


def _unknown_key(name: str, config_name: str, arguments: Sequence[str]) -> str:
    """The message for a key or a group that a command does not have."""
    is_training = config_name in ("train", "search")
    if is_training and (refused := refusal(name)):
        return refused
    there_is_no = f"There is no {name!r} in the configuration."
    if name.startswith("hydra."):
        return f"{there_is_no}{_elsewhere(name)}\n--cfg hydra shows Hydra's configuration."
    hint = _elsewhere(name) or suggestion(name, known_names(config_name, arguments))
    if not hint:  # perhaps the options chosen lack the key
        keys, _ = meant(name, known_names(config_name))
        hint = question(keys) + "".join(map(_elsewhere, keys))
    adds = "; +KEY=VALUE adds a new key" * is_training
    return f"{there_is_no}{hint}\n--help all lists every key{adds}."


def unknown_option(option: str, after: Sequence[str], config_name: str) -> str:
    """The message for an option, as --lr, that there is not.

    Args:
        option: as it was typed.
        after: what was typed after it, where its value may be.
        config_name: the command's file in conf/.
    """
    option, equals, value = option.partition("=")
    name = option.lstrip("-").replace("-", "_")
    if not equals:
        value = after[0] if after and not re.search("^-|=", after[0]) else "VALUE"
    known = known_names(config_name)
    keys, _ = ([name], "") if name in known else meant(name, known)
    if len(keys) == 1:
        hint = f" As in: {shlex.quote(f'{keys[0]}={value}')}."
    elif of_hydra := near(option, HYDRA_OPTIONS):
        return f"{option} is not an option.{question(of_hydra)}"
    else:
        hint = suggestion(name, known)
    return f"{option} is not an option. Values are set by KEY=VALUE.{hint}"


def _explain_grammar(error: Exception, message: str, config_name: str) -> str | None:
    """The message for an override or a reference that Hydra could not read; None for others."""
    if isinstance(error, OverrideParseException):  # whose message is of the parser's terms
        return (
            f"{error.override} cannot be read: expected KEY=VALUE, +KEY=VALUE for a new key, or "
            f"~KEY to remove one.{_with_key(error.override, config_name)}"
        )
    if found := re.search(r"Ambiguous value for argument '(([^=]*)=(.*?))'\n1\.", message, re.S):
        override, key, value = found.groups()
        return (
            f"{override} has several values: -m runs a job with each. A list is {key}=[{value}], "
            f'a text with commas "{key}={quoted(value)}".'
        )
    if found := re.search(r"Sweep parameters '(.*)' requires --multirun", message, re.S):
        return f"{found[1]} has several values: -m runs a job with each."
    if isinstance(error, GrammarParseError) or isinstance(error.__cause__, GrammarParseError):
        where = re.search(r"(?:override |full_key: )(.*)", message)
        return (
            f"{where[1] if where else message}: ${{ begins a reference to another key, as in "
            "${seed}, or a call of a resolver, as in ${oc.env:HOME}."
        )
    if found := re.match(r"Interpolation key '(?:hydra\.runtime\.)?choices\.(.*)' not", message):
        return f"{found[1]} cannot be removed. Choose another option."
    found = re.fullmatch(r"Interpolation key '(\w+)' not found", message)
    if found and found[1] in OF_A_RUN:
        return f"${{{found[1]}}} is known only to a run: leave --resolve out."
    return None


def _with_key(path: str, config_name: str) -> str:
    """How a path is typed with its key; empty for a text that is none."""
    data, checkpoint = KEY_FOR_PATH.get(config_name, ("", ""))
    key = checkpoint if path.endswith(".ckpt") else data
    if not key or not os.path.exists(path):  # noqa: PTH110  # pathlib's: an error for a long name
        return ""
    several = " For several images, images='photos/*.png', in quotes." * (key == "images")
    return f" As in: {shlex.quote(f'{key}={path}')}.{several}"


def _explain_os(error: OSError, config_name: str) -> str:
    path = error.filename2 or error.filename
    where = f" ({path})" if path else ""
    training = config_name == "train"
    option = "hydra.run.dir=FOLDER puts a new run" if training else "output=PATH puts the output"
    elsewhere = {"predict": f"{option} elsewhere.", "report": ""}.get(
        config_name,
        f"{option} elsewhere, data.root=FOLDER the official files and data.cache_dir=FOLDER the "
        "decoded images.",
    )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        resume = ", with resume=LAST_CHECKPOINT if there is one" * training
        return (
            f"The disk is full{where}. What was saved before is intact. Free some space and start "
            f"again{resume}{f'; or {elsewhere}' if elsewhere else '.'}"
        )
    hint = "HYDRA_FULL_ERROR=1 shows where it was raised."
    parent = Path(os.fsdecode(path)).parent if path else Path()
    if error.errno == errno.ENOENT and parent.is_dir() and not is_writable(parent):
        return f"No folder or file can be made in {parent}{where}. {elsewhere}\n{hint}"
    if training and error.errno in (errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENOTCONN):
        return (
            f"{error.strerror}{where}. Is its disk still there? resume=LAST_CHECKPOINT resumes "
            f"the run from there; {elsewhere}\n{hint}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
        return f"{error.strerror}{where}. {elsewhere}\n{hint}"
    if error.errno == errno.ENAMETOOLONG:
        return f"The name is longer than the file system allows{where}. {elsewhere}\n{hint}"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"A file is where a folder is needed{where}. {elsewhere}\n{hint}"
    return f"{error}\n{hint}"


def _elsewhere(name: str) -> str:
    """Name the options of a key's group that have it, as data=folder has `data.path`."""
    group, _, key = name.removeprefix("hydra.").partition(".")
    if name.startswith("hydra."):
        group = f"hydra/{group}"
    having = [o for o in options(group) if name in {k.name for k in read_option(group, o).keys}]
    if group == "hydra/launcher":  # most are of Hydra's plugins
        stored = ConfigStore.instance().repo["hydra"]["launcher"]
        having += [file.removesuffix(".yaml") for file in stored if key in stored[file].node]
    named = [f"{group}={option}" for option in dict.fromkeys(having)]
    return f" It belongs to {' and '.join(named)}." if named else ""


def known_names(config_name: str, arguments: Sequence[str] = ()) -> list[str]:
    """All groups and keys of a command, with the options on the command line that exist."""
    chosen = []
    for argument in arguments:
        group, _, option = argument.partition("=")
        if (CONF / group / f"{option}.yaml").is_file():
            chosen.append(argument)
    try:
        config = compose(chosen, config_name=config_name)
    except CompactHydraException:  # one of them is of another command, or the mistake
        config = compose(config_name=config_name)
    return names_in(config)


def names_in(config: DictConfig) -> list[str]:
    """All groups and keys of a configuration, and the key of the run folder if it has one."""
    names = {str(group): None for group in config.choices}  # a dict keeps the order

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                names[f"{prefix}{key}"] = None
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(config), "")
    known = [name for name in names if name.partition(".")[0] not in OF_A_RUN]
    return [*known, "hydra.run.dir"] if "trainer.max_epochs" in known else known
