"""Differences between a configuration and the one that a run has recorded."""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.config.overrides import COMBINED_GROUPS
from cifar_lightning.config.paths import DATA_PATHS

LIMITS = (
    "trainer.max_steps",
    "trainer.max_time",
)  # a run that such a limit ended is resumed if the limit is raised
# What differs between starts of the same run: keys, calls, and paths. data.path is not among them,
# because it says which images these are.
OF_A_START = ("overrides", "resume", "run_id", "starts", "sweep")
CALL_OF_A_START = re.compile(r"\$\{(hydra|now|title):")
PLACES = (
    *("logger.wandb.mode", "logger.wandb.save_dir"),
    *("logger.mlflow.tracking_uri", "logger.mlflow.save_dir", "logger.trackio.save_dir"),
    *(f"data.{name}" for name in DATA_PATHS if name != "path"),
)
LEFT_OUT = (*PLACES, *COMBINED_GROUPS)  # lists of options: only the options' content counts

Differences = dict[str, tuple[Any, Any]]
"""By key: the recorded and the requested value; None if the key is missing."""


def differences(config: DictConfig, record: Any, run_dir: Path) -> Differences:
    """The values that differ between a configuration and the record of a run, resolved.

    Values that differ between starts of the same run are left out. The option of a group has the
    group's name as its key. An argument that the record lacks, such as one that was added to conf/
    later, counts as its default.

    Args:
        config: the requested configuration.
        record: of the run, with unresolved references.
        run_dir: the run's folder.

    Raises:
        OmegaConfBaseException, RecursionError: if a value cannot be resolved.
        TypeError: if the record is not a dictionary.
    """
    common = dict.fromkeys(OF_A_START) | {"run_dir": str(run_dir.absolute())}
    asked, before = (
        dict(_leaves(OmegaConf.to_container(OmegaConf.create({**content, **common}), resolve=True)))
        for content in (_with_calls_of(record, OmegaConf.to_container(config)), record)
    )
    before |= {key: _default(key, asked) for key in asked if key not in before}
    both = {key: (value, asked.get(key)) for key, value in before.items() if key not in LEFT_OUT}
    return {key: values for key, values in both.items() if values[0] != values[1]}


def _with_calls_of(record: Any, content: Any) -> Any:
    """A configuration in which each `CALL_OF_A_START` has the value of the record."""
    if isinstance(content, dict):
        record = record if isinstance(record, dict) else {}
        return {key: _with_calls_of(record.get(key), value) for key, value in content.items()}
    return record if CALL_OF_A_START.search(str(content)) else content


def _leaves(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries, with keys joined by dots."""
    for name, value in content.items():
        key = f"{above}{name}".removeprefix("choices.")
        if isinstance(value, dict) and key not in LIMITS:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, str(Path(value)) if key == "data.path" and isinstance(value, str) else value


def _default(key: str, values: dict[str, Any]) -> Any:
    """The default of an argument of a `_target_`; None if it has no default that fits in YAML."""
    part, _, name = key.rpartition(".")
    try:
        target = pkgutil.resolve_name(values[f"{part}._target_"])
        default = inspect.signature(target).parameters[name].default
    except (ImportError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return default if isinstance(default, bool | int | float | str) else None
