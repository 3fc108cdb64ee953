"""What a file from elsewhere may have called and evaluated.

Hydra calls what a configuration names as `_target_`; OmegaConf calls what `${NAME:…}` names. A file
may name only what this installation's conf/ names, and evaluate nothing but references.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cifar_lightning.config.compose import CONF
from cifar_lightning.errors import UserError

# To another value of the configuration: what else may stand in braces can call something.
REFERENCE = re.compile(r"\$\{[\w.-]+\}")

Targets = frozenset[tuple[Any, Any]]
"""Classes and functions that are called, each with the part of the configuration that does it."""


def check_targets(file: Path, content: Any, typed: Any = None) -> None:
    """Refuse a configuration that calls what neither conf/ nor the command line calls there.

    Args:
        file: that it is from, for the message.
        content: nested dictionaries and lists, by part (`model`, `data`, …); references resolved.
        typed: the configuration of the command line, likewise.

    Raises:
        UserError: names the class or function, and the part.
    """
    known = known_targets() | targets_in(typed)
    for part, target in targets_in(content):
        if not isinstance(target, str) or (part, target) not in known:
            raise UserError(
                f"{file} wants to call {target!r} in {part}, where no configuration in {CONF} "
                "does, so it was not called. If it is your own, name it there, as a network in "
                "conf/model/NAME.yaml; with resume= its ._target_= can be typed again instead."
            )


def check_interpolations(file: Path, content: Any, resolved: bool = False) -> None:
    """Refuse a configuration that would evaluate more than references.

    Args:
        file: that it is from, for the message.
        content: nested dictionaries and lists.
        resolved: whether references are resolved too, and none may be left.

    Raises:
        UserError: names the value.
    """
    for _, value in leaves(content):
        if isinstance(value, str) and "${" in (value if resolved else REFERENCE.sub("", value)):
            raise UserError(f"{file} wants to evaluate {value!r}, so it was not read any further.")


@cache
def known_targets() -> Targets:
    """What the files of conf/ call.

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
    """What a configuration calls, each with the part in which it does so."""
    return frozenset(
        (keys[0], value if isinstance(value, str) else repr(value)[:100])
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
