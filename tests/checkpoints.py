"""Checkpoints read and altered."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def weights_of(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return dict(content["state_dict"])


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def in_config(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda content: change(content["hyper_parameters"]["config"])


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, ("was_called",))
