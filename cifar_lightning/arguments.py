"""Checks configured values against the signatures they go to, before anything is built."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from cifar_lightning.errors import UserError

ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)


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
        function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
        hints = get_type_hints(function)
    except (TypeError, ValueError, NameError):  # a built-in, or names that only a type checker sees
        return
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in values:
        if name not in parameters and not takes_any:
            close = difflib.get_close_matches(name, parameters, n=3, cutoff=0.5)
            hint = f" Did you mean {' or '.join(f'{key}.{c}' for c in close)}?" if close else ""
            raise UserError(f"{key}.{name}: {target.__qualname__} has no such argument.{hint}")
    check_values(f"{key}.", hints, values)


def check_values(prefix: str, hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Check that values are of the kinds that type hints say.

    Args:
        prefix: stands before the names in the message.
        hints: types by name.
        values: by name; nested configurations are not looked into.

    Raises:
        UserError: names the first that does not fit, and what would.
    """
    for name, value in values.items():
        if name not in hints or isinstance(value, dict):
            continue
        try:
            # Not strictly where it is a list, which YAML has for tuples too.
            TypeAdapter(hints[name], config=ANY_CLASS).validate_python(
                value, strict=not isinstance(value, list)
            )
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
    found = [e["msg"] for e in error.errors() if e["type"] != "is_instance_of"]
    messages = [re.sub(r"^Input |, (unable|got) .*", "", m) for m in found or [str(error)]]
    first, *others = dict.fromkeys(messages)
    ending = " or ".join([first, *(m.removeprefix("should be ") for m in others)])
    return f" {ending}" if ending.startswith("should") else f": {ending}"
