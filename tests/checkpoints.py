"""Helpers that read and change checkpoints and records of runs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]


def weights_of(checkpoint: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return dict(content["state_dict"])


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A checkpoint, changed in place."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def in_network(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """A change of what a checkpoint says of its network."""
    return lambda content: change(content["hyper_parameters"]["network"])


def changed_record(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A run's folder whose record is changed in place."""
    content = yaml.safe_load((run_dir / "config.yaml").read_text())
    change(content)
    # JSON is YAML without aliases, by which safe_dump would write what is in two places.
    (run_dir / "config.yaml").write_text(json.dumps(content))
    return run_dir


class Bomb:
    """Of a module that PyTorch refuses whoever allows it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (os.mkdir, ("was_called",))


class Copies:
    """Of any other module."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (shutil.copyfile, (__file__, "was_called"))
