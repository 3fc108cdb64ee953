"""Checks what a checkpoint or a record from elsewhere calls and evaluates.

Hydra calls the `_target_`s of a configuration; OmegaConf calls the NAME of `${NAME:…}`. A file may
call only `_target_`s that this installation's conf/ calls too, and evaluate only references.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cifar_lightning.config.compose import CONF
from cifar_lightning.errors import UserError

# A reference to another key; all else in braces may be a call.
REFERENCE = re.compile(r"\$\{[\w.-]+\}")

Targets = frozenset[tuple[Any, int, Any]]
"""Each a part of the configuration, such as `model`, the depth of a `_target_` in it, and what is
called there: what conf/ calls as a callback is not called as an argument of one."""


def check_targets(file: Path, content: Any, typed: Any = None) -> None:
    """Refuse a configuration that calls what neither conf/ nor the command line calls there.

    Args:
        file: of the configuration, for the message.
        content: nested dictionaries and lists, by part (`model`, `data`, …); references resolved.
        typed: the command line's configuration, likewise.

    Raises:
        UserError: names the class or function, and the part.
    """
    known = known_targets() | targets_in(typed)
    for part, depth, target in targets_in(content):
        if not isinstance(target, str) or (part, depth, target) not in known:
            raise UserError(
                f"{file} wants to call {target!r} in {part}, where no configuration in {CONF} "
                "does, so it was not called. If it is your own, name it there, as a network in "
                "conf/model/NAME.yaml; with resume= its ._target_= can be typed again instead."
            )


def check_interpolations(file: Path, content: Any, resolved: bool = False) -> None:
    """Refuse a configuration that would evaluate more than references.

    Args:
        file: of the configuration, for the message.
        content: nested dictionaries and lists.
        resolved: whether references are resolved, so that none may be left.

    Raises:
        UserError: names the value.
    """
    for _, value in leaves(content):
        if isinstance(value, str) and "${" in (value if resolved else REFERENCE.sub("", value)):
            raise UserError(f"{file} wants to evaluate {value!r}, so it was not read any further.")


@cache
def known_targets() -> Targets:
    """The targets of all files in conf/.

    Raises:
        UserError: if one cannot be read.
    """
    known: Targets = frozenset()
    for file in CONF.rglob("*.yaml"):
        try:
            content = OmegaConf.to_container(OmegaConf.load(file))
        except Exception as error:  # PyYAML and OmegaConf have no base class in common
            raise UserError(f"{file} cannot be read: {error}") from error
        for group in reversed(file.relative_to(CONF).parts[:-1]):
            if "@package _global_" not in file.read_text():
                content = {group: content}
        known |= targets_in(content)
    return known


def targets_in(content: Any) -> Targets:
    """The targets of a configuration, with their parts and depths."""
    return frozenset(
        (keys[0], keys.index("_target_"), value if isinstance(value, str) else repr(value)[:100])
        for keys, value in leaves(content)
        if "_target_" in keys
    )


def leaves(content: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """All values within nested dictionaries and lists, each with the keys that lead to it."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while waiting:
        keys, value = waiting.pop()
        if isinstance(value, dict | list | tuple) and value:
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*keys, key), inner) for key, inner in pairs]
        else:
            yield keys, value
