"""Configurations in checkpoints: whoever wrote the file could have written anything into them.

Hydra calls what a configuration names as `_target_`; OmegaConf calls what `${NAME:…}` names.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from cifar_lightning.config.compose import CONF
from cifar_lightning.errors import UserError

# To another value of the configuration: what else may stand in braces can call something.
REFERENCE = re.compile(r"\$\{[\w.-]+\}")
# A configuration of ours has some thousand characters. A list of lists of lists, each of which is
# ten times the same one, or references to references, can make few of them fill any memory.
MOST_CHARACTERS = 1_000_000
# Without which nothing can be rebuilt.
PARTS = ("augment", "choices", "data", "model", "optimizer", "scheduler", "trainer")


def as_data(config: DictConfig) -> dict[str, Any]:
    """A configuration as `trusted_config` takes it back.

    References to other values stay, so that an override at a resume reaches all that depend on it.
    All other interpolations, as `${oc.env:HOME}`, become their values, and so do all of the data's:
    they are of this machine.

    Raises:
        UserError: if such a value would be taken for an interpolation itself.
    """
    content = OmegaConf.to_container(config)
    resolved = OmegaConf.to_container(config, resolve=True)
    kept: dict[str, Any] = _without_calls(content, resolved)
    return kept | {"data": resolved["data"]}  # type: ignore[index,call-overload]


def _without_calls(content: Any, resolved: Any) -> Any:
    if isinstance(content, dict) and isinstance(resolved, dict):
        return {key: _without_calls(value, resolved[key]) for key, value in content.items()}
    if isinstance(content, list) and isinstance(resolved, list):
        return [_without_calls(*pair) for pair in zip(content, resolved, strict=True)]
    if isinstance(resolved, str) and "${" in resolved:
        raise UserError(f"{resolved!r} holds ${{, which a checkpoint cannot keep.")
    return resolved if _calls(content) else content


def _calls(value: Any) -> bool:
    """Whether a value is a text in which OmegaConf would call something, now or read once more."""
    return isinstance(value, str) and "${" in REFERENCE.sub("", value)


def trusted_config(
    path: str | Path,
    content: dict[str, Any],
    left_out: Sequence[str] = (),
    own: DictConfig | None = None,
) -> DictConfig:
    """The configuration that a checkpoint holds, from which objects may be made.

    Each part of it (`model`, `data`, …) may call only the classes and functions that files of conf/
    call in that part; its values may refer to each other, and to nothing else.

    Args:
        path: of the checkpoint, for the message.
        content: as `as_data` gave it, if it was not changed since.
        left_out: parts that the result has not, and that may hold anything; `trainer.profiler` is
            one of the trainer.
        own: the configuration of the command line; what it calls in a part may be called there.

    Raises:
        UserError: if something else would be called, or if it is no configuration of a training.
    """
    _check_length(path, content)
    try:
        # What is checked is what OmegaConf made of it: it takes more kinds of containers than ours.
        config: DictConfig = OmegaConf.create(_without(content, left_out))
        as_it_is: Any = OmegaConf.to_container(config)
        _check_calls(path, as_it_is)
        _check_references(path, as_it_is)
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        # As it is and resolved: a reference can bring a target to where it has no place.
        _check_targets(path, as_it_is, own)
        _check_targets(path, resolved, own)
    except (OmegaConfBaseException, GrammarParseError, RecursionError) as error:
        raise UserError(f"{path}: its configuration cannot be read: {error}") from error
    for _, value in _leaves(resolved):
        # Hydra would evaluate what two references put together, one `$` and one `{NAME:…}`.
        if isinstance(value, str) and "${" in value:
            raise UserError(f"{path} wants to evaluate {value!r}, so it was not read any further.")
    for part in PARTS:
        if not isinstance(resolved.get(part), dict):
            raise UserError(f"{path}: its configuration has no {part}.")
    if not all(isinstance(resolved["choices"].get(group), str) for group in ("model", "data")):
        raise UserError(f"{path}: its configuration does not say which model and data it chose.")
    return config


def _without(content: Any, left_out: Sequence[str], above: str = "") -> Any:
    """A configuration but for some of its keys, each written with those above it."""
    if not isinstance(content, dict):
        return content
    return {
        key: _without(value, left_out, f"{above}{key}.")
        for key, value in content.items()
        if f"{above}{key}" not in left_out
    }


def _check_length(path: str | Path, content: Any) -> None:
    """Before anything goes through all of it: that could take for ever."""
    characters, waiting = 0, [content]
    while waiting and characters <= MOST_CHARACTERS:
        value = waiting.pop()
        characters += 1 + (len(value) if isinstance(value, str) else 0)
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
    if characters > MOST_CHARACTERS:
        raise UserError(
            f"{path}: its configuration has more than {MOST_CHARACTERS:,} characters, so it was "
            "not read any further."
        )


def _check_references(path: str | Path, content: Any) -> None:
    """Refuse references to references that would be as long when they are resolved."""
    leaves = {tuple(map(str, keys)): str(value) for keys, value in _leaves(content)}
    lengths: dict[tuple[str, ...], int] = {}

    def length(place: tuple[str, ...]) -> int:
        """Of all that is found at a place, or on the way to it, in characters."""
        if place not in lengths:
            lengths[place] = 0  # of what leads in a circle, which OmegaConf refuses
            for keys, text in leaves.items():
                if keys[: len(place)] == place[: len(keys)]:
                    lengths[place] += len(text) + sum(map(length, _places(keys, text)))
                if lengths[place] > MOST_CHARACTERS:
                    break
        return lengths[place]

    if length(()) > MOST_CHARACTERS:
        raise UserError(
            f"{path}: the references in its configuration would make more than "
            f"{MOST_CHARACTERS:,} characters of it, so it was not read any further."
        )


def _places(keys: tuple[str, ...], text: str) -> list[tuple[str, ...]]:
    """Where the references in a text lead; one that begins with dots goes up from where it is."""
    places = []
    for reference in REFERENCE.findall(text):
        name = reference[2:-1].lstrip(".")
        up = len(reference) - 3 - len(name)
        above = keys[: max(len(keys) - up, 0)] if up else ()
        places.append((*above, *name.split(".")))
    return places


def _check_calls(path: str | Path, content: Any) -> None:
    for _, value in _leaves(content):
        if _calls(value):
            raise UserError(f"{path} wants to evaluate {value!r}, so it was not read any further.")


def _check_targets(path: str | Path, content: Any, own: DictConfig | None) -> None:
    known = _known_targets() | _targets_in({} if own is None else OmegaConf.to_container(own))
    for keys, value in _leaves(content):
        if "_target_" in keys and not (
            keys[-1] == "_target_"
            and isinstance(value, str)
            and (keys[0], len(keys), value) in known
        ):
            raise UserError(
                f"{path} wants to call {value!r} in {keys[0]}, where no configuration in {CONF} "
                "does, so it was not called. If it is your own, name it there, as a network in "
                "conf/model/NAME.yaml; with resume= its ._target_= can be typed again instead."
            )


@cache
def _known_targets() -> frozenset[tuple[Any, int, Any]]:
    """What the files of conf/ call."""
    known: set[tuple[Any, int, Any]] = set()
    for file in CONF.rglob("*.yaml"):
        group = file.relative_to(CONF).parts[:-1]
        keys_above = () if "@package _global_" in file.read_text() else group
        try:
            content = OmegaConf.to_container(OmegaConf.load(file))
        except Exception as error:  # PyYAML and OmegaConf have no base class in common
            raise UserError(f"{file} cannot be read: {error}") from error
        known |= _targets_in(content, keys_above)
    return frozenset(known)


def _targets_in(content: Any, keys_above: tuple[Any, ...] = ()) -> set[tuple[Any, int, Any]]:
    """What a configuration calls: the part, how deep in it, and the class or function."""
    leaves = _leaves(content, keys_above)
    return {(keys[0], len(keys), value) for keys, value in leaves if keys[-1:] == ("_target_",)}


def _leaves(content: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """All values within nested dictionaries and lists, each with the keys that lead to it."""
    if isinstance(content, dict | list) and content:
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            yield from _leaves(value, (*keys, key))
    else:
        yield keys, content
