"""Checks a configuration against the signatures it goes to, before anything is built."""

import difflib
import inspect
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from cifar_lightning.errors import UserError

PARTS = ("data", "augment", "init", "model", "optimizer", "scheduler", "trainer")
OF_TRAINER = ("compile", "deterministic", "gpus", "max_epochs", "precision")  # which are read here
ONE_FOR_A_LIST = "Input should be a list, as in [a,b]"
ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)


class Settings(TypedDict):
    """The kinds of the values at the configuration's top; those of its parts say their classes."""

    seed: int
    target_accuracy: float | None
    target_confidence: float
    label_smoothing: float
    cutmix: float
    teacher: NotRequired[str | None]
    rehearse_without_data: bool


class Budget(TypedDict):
    """The kinds of the values of `budget`, whose names the check of the network knows."""

    max_params: float | None
    min_dilated: int | None
    min_separable: int | None


def check_config(config: DictConfig) -> None:
    """Refuse what neither the data nor the machine is needed to judge, before the data is fetched.

    Raises:
        UserError: names the key, its value, and what would fit.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    _check_presence(values)
    check_values("", get_type_hints(Settings), values)
    check_values("budget.", get_type_hints(Budget), values["budget"])
    check_values("trainer.", {"compile": bool}, values["trainer"])
    for key in PARTS:
        check_part(key, values[key])
    if values.get("teacher") is not None:
        check_part("distillation", values.get("distillation"))
    for group in ("callbacks", "logger"):
        for name, part in values[group].items():
            if part is not None:  # taken out
                check_part(f"{group}.{name}", part)
    _check_ranges(values)


def _check_presence(values: Any) -> None:
    """Refuse a configuration without a key that is read, or with a value in place of a group."""
    groups = (*PARTS, "budget", "callbacks", "logger")
    _refuse_missing("", values, (*sorted(Settings.__required_keys__), *groups))
    for key in groups:
        if not isinstance(values[key], dict):
            raise UserError(f"{key}={_typed(values[key])} is no option and no set of keys.")
    _refuse_missing("trainer.", values["trainer"], OF_TRAINER)
    for name in ("best", "throughput"):
        if values["callbacks"].get(name) is None:
            raise UserError(f"callbacks.{name} cannot be taken out: the results come from it.")


def _refuse_missing(prefix: str, values: Mapping[str, Any], keys: Iterable[str]) -> None:
    missing = ", ".join(f"{prefix}{key}" for key in keys if key not in values)
    if missing:
        raise UserError(f"{missing} cannot be taken out. Set it to another value.")


def _check_ranges(values: Any) -> None:
    """Refuse values of the right kind that no constructor would refuse by their key."""
    target, trainer = values["target_accuracy"], values["trainer"]
    epochs, nodes = trainer["max_epochs"], trainer.get("num_nodes", 1)
    interval, confidence = trainer.get("val_check_interval"), values["target_confidence"]
    cutmix = values["cutmix"]
    ranges = (
        (
            "target_accuracy",
            target,
            target is None or 0 <= target <= 1,
            "from 0 to 1, as 0.8, or null",
        ),
        ("target_confidence", confidence, 0.5 <= confidence < 1, "from 0.5 to below 1, as 0.9"),
        ("cutmix", cutmix, 0 <= cutmix <= 1, "from 0 to 1, as 0.5"),
        ("trainer.max_epochs", epochs, isinstance(epochs, int) and epochs >= 1, "a count from 1"),
        ("trainer.num_nodes", nodes, isinstance(nodes, int) and nodes >= 1, "a count from 1"),
        (
            "trainer.val_check_interval",
            interval,
            not isinstance(interval, int | float) or interval > 0,
            "above 0",
        ),
    )
    for key, value, fits, range_ in ranges:
        if not fits:
            raise UserError(f"{key}={_typed(value)} is not {range_}.")
    if target is not None and values["data"].get("val_size") == 0:
        raise UserError(
            "data.val_size=0 leaves no images to see the target on: say target_accuracy=null too."
        )


def check_part(key: str, part: Any) -> None:
    """Check a part of a configuration against the class or function that it goes to.

    Args:
        key: where it stands in the configuration.
        part: its `_target_` and arguments, as a container of primitives.

    Raises:
        UserError: if there is no such target, or its arguments do not fit.
    """
    if not isinstance(part, dict) or not isinstance(part.get("_target_"), str):
        raise UserError(f"{key} has no _target_, the class or function to call: {_typed(part)}.")
    ours = ("gpus", "compile", "precision") if key == "trainer" else ()  # not (only) Lightning's
    arguments = {k: v for k, v in part.items() if not k.startswith("_") and k not in ours}
    try:
        target = pkgutil.resolve_name(part["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}._target_={part['_target_']}: {error}.") from error
    check_arguments(key, target, arguments)


def check_folder(key: str, folder: Path) -> None:
    """Check that files can be written to a folder, which need not be there yet.

    Args:
        key: that it stems from, as it was typed.
        folder: nothing is made.

    Raises:
        UserError: names what is in the way.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{key}: {place} is a file, where a folder is needed.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{key}: nothing can be written to {place}.")


def check_arguments(key: str, target: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check that a class or function has arguments of these names, and takes values of these kinds.

    Args:
        key: where the values stand in the configuration.
        target: the class or function; of what it has no annotation for, any value will do.
        values: by name.

    Raises:
        UserError: names the first that does not fit.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some built-in functions do not tell
        return
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in values:
        if name not in parameters and not takes_any:
            close = difflib.get_close_matches(name, parameters, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(f'{key}.{c}' for c in close)}?" if close else ""
            raise UserError(f"{key}.{name}: {target.__qualname__} has no such argument.{hint}")
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        hints = get_type_hints(function)
    except Exception:  # annotations may be any text, or names that only a type checker sees
        return
    given = {
        name: value
        for name, value in values.items()
        if not _makes_object(value)
        and (value is not None or name not in parameters or parameters[name].default is not None)
    }
    check_values(f"{key}.", hints, given)


def _makes_object(value: Any) -> bool:
    """Whether it is not the value that is passed on, but an object that Hydra makes of it."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_makes_object, value.values()))
    return isinstance(value, list) and any(map(_makes_object, value))


def check_values(prefix: str, hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Check that values are of the kinds that type hints say.

    Args:
        prefix: stands before the names in the message.
        hints: types by name.
        values: by name.

    Raises:
        UserError: names the first that does not fit, and what would.
    """
    for name, value in values.items():
        if name not in hints:
            continue
        try:
            kind = TypeAdapter(hints[name], config=ANY_CLASS)
            try:
                # Not strictly where it is a list, which YAML has for tuples too.
                kind.validate_python(value, strict=not isinstance(value, list))
            except ValidationError:
                # A path is typed as text.
                if not isinstance(value, str) or not isinstance(kind.validate_python(value), Path):
                    raise
        except ValidationError as error:
            raise UserError(f"{prefix}{name}={_typed(value)}{_what_fits(error)}.") from None
        except PydanticUserError:  # a type that no value of a configuration could have
            continue


def _typed(value: Any) -> str:
    """As a user types it."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _what_fits(error: ValidationError) -> str:
    """Pydantic's messages as the end of a sentence."""
    # Tensors and the like cannot be typed; where nothing else fits, they are named all the same.
    errors = error.errors()
    errors = [e for e in errors if e["type"] != "is_instance_of"] or errors
    found = [ONE_FOR_A_LIST if e["type"] == "sequence_str" else e["msg"] for e in errors]
    messages = [re.sub(r"^Input |, (unable|got) .*", "", message) for message in found]
    first, *others = dict.fromkeys(messages)
    ending = " or ".join([first, *(m.removeprefix("should be ") for m in others)])
    return f" {ending}" if ending.startswith("should") else f": {ending}"
