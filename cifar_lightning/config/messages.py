"""Turns exceptions into error messages for users, with suggestions."""

import difflib
import errno
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.config.overrides import quoted
from cifar_lightning.config.refused import refusal
from cifar_lightning.errors import UserError
from cifar_lightning.system.atomic import is_writable
from cifar_lightning.system.jobs import JobFailed

# Exceptions that end in one message; all others are bugs, and end in a traceback. An OSError comes
# from the disk or the machine, and its message says how to get the traceback.
MISTAKES = (UserError, JobFailed, CompactHydraException, OmegaConfBaseException, OSError)

# What a wrong value raises, and perhaps a bug in a network.
FAULTS = (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError)

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
    if found := re.search(r"Could not (?:find|load) '([^']*)/([^'/]+)/?'", message):
        listed = message.partition("Available options")[2].partition("Config search path")[0]
        options = [line.strip() for line in listed.splitlines()[1:] if line.strip()]
        options = options or sorted(path.stem for path in (CONF / found[1]).glob("*.yaml"))
        known = f" The options of {found[1]}: {', '.join(options)}." if options else ""
        return f"There is no {found[1]}={found[2]}.{known}" + _nearest(
            found[2], options, config_name
        )
    if found := re.search(r"Could not override '([^'@]+)'", message):
        # Of a dictionary, the key in it that there is not.
        inner = re.search(rf"full_key: ({re.escape(found[1])}\..*)", message)
        name = inner[1] if inner else found[1]
        if refused := refusal(name):
            return refused
        return f"There is no {name!r} in the configuration.{_elsewhere(name)}" + _nearest(
            name, _known_names(config_name, arguments), config_name
        )
    return "\n".join(lines)


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
            f"{override} has several values: -m runs a job with each. As a list they are "
            f'{key}=[{value}], and a text with commas is in quotes: "{key}={quoted(value)}".'
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
        return f"${{{found[1]}}} is known to a run alone: leave --resolve out."
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


def _nearest(name: str, known: Sequence[str], config_name: str) -> str:
    if name.startswith("hydra."):
        return "\n--cfg hydra shows Hydra's configuration."
    adds = "; +KEY=VALUE adds a new key" * (config_name in ("train", "search"))
    return f"{did_you_mean(name, known)}\n--cfg job shows the whole configuration{adds}."


def did_you_mean(name: str, known: Sequence[str], prefix: str = "") -> str:
    """The nearest known names, as the end of a message; empty if none is near."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if not close:  # perhaps only the groups before the last dot are wrong
        last = name.rpartition(".")[2]
        close = [k for k in known if k.rpartition(".")[2] == last][:3]
    return f" Did you mean {' or '.join(prefix + c for c in close)}?" if close else ""


def _elsewhere(name: str) -> str:
    """Name the options of a key's group that have it, as data=folder has `data.path`."""
    above, dot, key = name.rpartition(".")
    group = above.replace(".", "/")
    if not dot:
        return ""
    options = [
        path.stem for path in sorted((CONF / group).glob("*.yaml")) if key in OmegaConf.load(path)
    ]
    if group == "hydra/launcher":  # most are of Hydra's plugins
        stored = ConfigStore.instance().repo["hydra"]["launcher"]
        options += [file.removesuffix(".yaml") for file in stored if key in stored[file].node]
    named = [f"{group}={option}" for option in dict.fromkeys(options)]
    return f" It belongs to {' and '.join(named)}." if named else ""


def _known_names(config_name: str, arguments: Sequence[str]) -> list[str]:
    """All groups and keys, with the options on the command line that exist."""
    chosen = []
    for argument in arguments:
        group, _, option = argument.partition("=")
        if (CONF / group / f"{option}.yaml").is_file():
            chosen.append(argument)
    try:
        config = compose(chosen, config_name=config_name)
    except CompactHydraException:  # one of them is of another command, or the mistake
        config = compose(config_name=config_name)
    names = {str(group): None for group in config.choices}  # a dict keeps the order

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                names[f"{prefix}{key}"] = None
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(config), "")
    return [name for name in names if name.partition(".")[0] not in OF_A_RUN]
