"""What the board is told of a run, and what it is not: places on this machine."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

# Last parts of keys whose values are places on this machine, or what W&B is told in other ways.
LEFT_OUT = (
    *("cache_dir", "dirpath", "mirror", "mirrors", "path", "root", "run_dir", "save_dir"),
    *("logger", "resume", "run_id"),
)
# Of a checkpoint, what a training needs to go on.
TRAINING_STATE = ("callbacks", "optimizer_states", "lr_schedulers")


def searchable(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as flat keys: the option of each group by its name, `optimizer/lr` and so on.

    Args:
        config: nested dictionaries of primitives and lists, resolved.
    """
    choices = config.get("choices") or {}
    others = {key: value for key, value in config.items() if key != "choices"}
    return {**choices, **dict(_flat(without_places(others)))}


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}/")
        else:
            yield f"{above}{key}", value


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without places on this machine; of other absolute paths the last part stays.

    Args:
        config: nested dictionaries of primitives and lists.
    """
    kept = {key: _without_places(value) for key, value in config.items() if key not in LEFT_OUT}
    if isinstance(kept.get("overrides"), list):
        kept["overrides"] = [text for text in kept["overrides"] if not _is_place(text)]
    return kept


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_places(value)
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    is_absolute = isinstance(value, str) and value.startswith(("/", "~", "file:"))
    return Path(value).name if is_absolute else value


def _is_place(override: str) -> bool:
    """Whether an override, as typed, names a place, or what belongs to one."""
    key, _, value = override.lstrip("+~").partition("=")
    named = not {*key.split(".")}.isdisjoint(LEFT_OUT)
    return named or value.strip("'\"").startswith(("/", "~", "file:"))


def save_shareable(checkpoint: Path, file: Path) -> None:
    """Write a checkpoint for others: it can be rebuilt, and tells nothing of this machine.

    Args:
        checkpoint: of this package.
        file: to write.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = {key: value for key, value in content.items() if key not in TRAINING_STATE}
    facts = kept["hyper_parameters"]
    kept["hyper_parameters"] = facts | {"config": without_places(facts["config"])}
    file.parent.mkdir(exist_ok=True)
    torch.save(kept, file)
