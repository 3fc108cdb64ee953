"""Checks values and arguments against types and signatures, before anything is built."""

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from cifar_lightning.config.compose import CONF
from cifar_lightning.config.habits import near, question, suggestion
from cifar_lightning.config.messages import OF_A_RUN
from cifar_lightning.errors import UserError
from cifar_lightning.system.atomic import is_writable

# Arguments that a run adds to those of a part.
OF_A_MODULE = ("augment", "cutmix", "loss", "optimizer", "scheduler")  # settings and groups
ADDED = {
    "data": ("seed",),
    "distillation": ("teacher", "name"),
    "module": ("network", "classes", "image_size", "mean", "std", "seed", *OF_A_MODULE),
}
# What a run calls later, with more arguments.
CALLED_LATER = ("init", "loss", "optimizer", "scheduler")
ONE_FOR_A_LIST = "Input should be a list, as in [a,b]"
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
MAX_SEED = 2**32 - 1  # seeds of NumPy and Optuna have 32 bits


def check_keys(config: DictConfig, config_name: str) -> None:
    """Refuse keys of a command that its file in conf/ lacks, and that nothing reads.

    Args:
        config: of another command than train and search, whose keys `check_config` checks.
        config_name: the file in conf/.

    Raises:
        UserError: names the first.
    """
    known: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{config_name}.yaml"))
    values: Any = OmegaConf.to_container(config)
    groups = config.get("choices", {})
    for key, value in values.items():
        if key in groups or key in OF_A_RUN:  # a group's are checked with its class
            continue
        names = {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
        of_file = known.get(key)
        there = {f"{key}.{name}" for name in of_file} if isinstance(of_file, dict) else {*known}
        if unknown := sorted(names - there):
            raise UserError(
                f"There is no setting {unknown[0]}.{suggestion(unknown[0], sorted(there))}"
            )


def check_part(key: str, part: Any) -> None:
    """Check a part of a configuration against the class or function that it calls.

    Args:
        key: of the part, for the message.
        part: its `_target_` and arguments, as a dictionary of primitives.

    Raises:
        UserError: if the target cannot be imported, or its arguments are wrong.
    """
    target = target_of(key, part)
    arguments = {name: value for name, value in part.items() if not name.startswith("_")}
    check_arguments(key, target, arguments)
    if part.get("_partial_") or "_args_" in part:
        return
    for name, parameter in (parameters_of(target) or {}).items():
        is_needed = parameter.kind in NAMED and parameter.default is parameter.empty
        if is_needed and name not in arguments and name not in ADDED.get(key, ()):
            later = key in CALLED_LATER and not (key == "loss" and isinstance(target, type))
            hint = " With _partial_: true a run gives it later." if later else ""
            raise UserError(f"{key}.{name} is missing: {target.__qualname__} needs it.{hint}")


def target_of(key: str, part: Any) -> Any:
    """The class or function that a part of a configuration calls.

    Raises:
        UserError: if there is none, or it cannot be imported.
    """
    if not isinstance(part, dict) or not isinstance(part.get("_target_"), str):
        raise UserError(f"{key} has no _target_, the class or function to call: {in_yaml(part)}.")
    try:
        return pkgutil.resolve_name(part["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}._target_={part['_target_']}: {error}.") from error


def takes(target: Callable[..., Any], names: Iterable[str]) -> list[str]:
    """Those of the names that a class or function has as arguments; all, if it has **kwargs."""
    parameters = parameters_of(target) or {}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return [name for name in names if takes_any or name in parameters]


def parameters_of(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The arguments of a function or class; None for built-in functions without a signature."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return None


def check_folder(key: str, folder: Path) -> None:
    """Check that files can be written to a folder, which need not exist yet.

    Args:
        key: the override that names it, for the message.
        folder: is not created.

    Raises:
        UserError: if a file is in the way, or permissions are missing.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{key}: {existing} is a file, where a folder is needed.")
    if not is_writable(existing):
        raise UserError(f"{key}: nothing can be written to {existing}.")


def check_arguments(key: str, target: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check the names and types of arguments against a class or function.

    Args:
        key: of the arguments in the configuration, for the message.
        target: the class or function; arguments without annotation may have any type.
        values: the arguments, by name.

    Raises:
        UserError: names the first that is wrong.
    """
    if (parameters := parameters_of(target)) is None:
        return
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any else [name for name in values if name not in parameters]
    if unknown:
        hint = question([f"{key}.{name}" for name in near(unknown[0], [*parameters])])
        if not hint and (CONF / key).is_dir():  # the arguments there are of another class
            files = (CONF / key).glob("*.yaml")
            in_conf = {name for file in files for name in OmegaConf.load(file)}
            without = " ".join(f"~{key}.{name}" for name in unknown if name in in_conf)
            removes = f"; {without} removes what conf/ has" if without else ""
            hint = f" Leave it out{removes}."
        raise UserError(f"{key}.{unknown[0]}: {target.__qualname__} has no such argument.{hint}")
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        hints = get_type_hints(function)
    except Exception:  # annotations may be any text, or names that only type checkers import
        return
    given = {
        name: value
        for name, value in values.items()
        if not _is_instantiated(value)
        and (value is not None or name not in parameters or parameters[name].default is not None)
    }
    check_values(f"{key}.", hints, given)


def _is_instantiated(value: Any) -> bool:
    """Whether Hydra instantiates an object from a value, and passes that on instead."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_is_instantiated, value.values()))
    return isinstance(value, list) and any(map(_is_instantiated, value))


def check_values(prefix: str, hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Check values against type hints.

    Args:
        prefix: of the names, in the message.
        hints: types, by name.
        values: by name.

    Raises:
        UserError: names the first of a wrong type, and what is right.
    """
    for name, value in values.items():
        if name not in hints:
            continue
        try:
            kind = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
            try:
                # Lists not strictly, because YAML has them for tuples too.
                kind.validate_python(value, strict=not isinstance(value, list))
            except ValidationError:
                # Paths are texts in YAML.
                if not isinstance(value, str) or not isinstance(kind.validate_python(value), Path):
                    raise
        except ValidationError as error:
            hint = ""
            if value is not None and all(e["type"] == "string_type" for e in error.errors()):
                text = "…" if isinstance(value, dict | list) else value
                hint = f": in quotes, as in \"{prefix}{name}='{text}'\""
            if any(e["type"].startswith("time_delta") for e in error.errors()):
                text = "{_target_: datetime.timedelta, seconds: 1}"
                hint = f": as in '{prefix}{name}={text}'"
            raise UserError(f"{prefix}{name}={in_yaml(value)}{_expected(error)}{hint}.") from None
        except PydanticUserError:  # a type that no value in YAML has
            continue
        is_seed = name == "seed" or name.endswith("_seed")
        if is_seed and isinstance(value, int) and not 0 <= value <= MAX_SEED:
            raise UserError(f"{prefix}{name}={value} is not from 0 to {MAX_SEED}.")


def in_yaml(value: Any) -> str:
    """A value in YAML's spelling, for a message."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _expected(error: ValidationError) -> str:
    """Pydantic's messages, as the end of a sentence."""
    # Not those for tensors and the like, which YAML cannot have, unless there are no others.
    errors = error.errors()
    errors = [e for e in errors if e["type"] != "is_instance_of"] or errors
    found = [ONE_FOR_A_LIST if e["type"] == "sequence_str" else e["msg"] for e in errors]
    messages = [re.sub(r"^Input |, (unable|got) .*", "", message) for message in found]
    first, *others = dict.fromkeys(messages)
    ending = " or ".join([first, *(m.removeprefix("should be ") for m in others)])
    return f" {ending}" if ending.startswith("should") else f": {ending}"
