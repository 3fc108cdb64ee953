"""What the board is told of a run, and what it is not: places on this machine."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cifar_lightning.config.paths import without_places

# Of a checkpoint, what a training needs to go on.
TRAINING_STATE = (
    *("callbacks", "optimizer_states", "lr_schedulers"),
    *("fit_scores", "random_state"),
)


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
