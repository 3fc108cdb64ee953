"""Checks what a checkpoint or a record, which may be from elsewhere, would call and evaluate.

Hydra calls the `_target_`s of a configuration; OmegaConf calls the NAME of `${NAME:…}`. A file may
call only `_target_`s that this installation's conf/ calls too, or that are harmless with any
arguments. It may evaluate only references to other keys.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import callbacks
from torchvision.transforms import v2

from cifar_lightning.config.compose import CONF, typed_config_dir
from cifar_lightning.errors import UserError

# A reference to another key; anything else in braces may be a call.
REFERENCE = re.compile(r"\$\{[\w.-]+\}")

Targets = frozenset[tuple[Any, int, Any]]
"""Each is a part of the configuration, such as `model`, the depth of a `_target_` in that part, and
the name that is called. So what conf/ calls as a callback may not be called as an argument."""

# Lightning's callbacks that are harmless with any arguments: they write to the trainer's loggers,
# or to paths that run/resume.py checks. Those that config/refused.py names are left out, and so is
# LambdaCallback, which is useless without functions.
CALLBACKS = (
    *("DeviceStatsMonitor", "EMAWeightAveraging", "EarlyStopping", "GradientAccumulationScheduler"),
    *("LearningRateMonitor", "ModelCheckpoint", "ModelSummary", "RichModelSummary"),
    *("RichProgressBar", "SpikeDetection", "TQDMProgressBar", "ThroughputMonitor", "Timer"),
    "WeightAveraging",
)
MOST = 10  # targets shown in a message
LONGEST = 100  # characters shown of each


def check_targets(file: Path, content: Any, command_line: Any = None) -> None:
    """Refuse a `_target_` that neither conf/ nor the command line has at that key.

    Args:
        file: of the configuration, for the message.
        content: nested dictionaries and lists, by part (`model`, `data`, …); references resolved.
        command_line: a resume's command line as a configuration; None for inference.

    Raises:
        UserError: names each class or function with its key, and says what to type.
    """
    unknown = _unknown(content, known_targets() | stock_targets() | targets_in(command_line))
    if unknown:
        texts = sorted(
            f"{'.'.join(map(str, keys))[:LONGEST]}={str(name)[:LONGEST]}"
            for keys, name in unknown.items()
        )
        shown = ", ".join([*texts[:MOST], *["…"] * (len(texts) > MOST)])
        raise UserError(
            f"{file} has a _target_ that neither {CONF} nor the command line has at that key: "
            f"{shown}. Nothing was called. {_advice(unknown, command_line is not None)}"
        )


def _unknown(content: Any, known: Targets) -> dict[tuple[Any, ...], Any]:
    """The unknown targets of a configuration, by their keys."""
    return {
        keys[: keys.index("_target_") + 1]: value
        for keys, value in leaves(content)
        if "_target_" in keys and _target(keys, value) not in known
    }


def arguments_to_resume(config: DictConfig) -> list[str]:
    """What has to be typed in addition to resume=, because a run's record alone may not call it.

    Args:
        config: of this process's run.

    Returns:
        `--config-dir` if it was typed, and each `_target_` that is neither in conf/ nor in that
        folder. If a `_target_` is in a list, the whole list is returned.
    """
    arguments, known = [], targets_of(CONF) | stock_targets()
    if (folder := typed_config_dir()) is not None:
        arguments += ["--config-dir", folder]
        known |= targets_of(Path(folder))
    overrides = {}
    for keys in _unknown(OmegaConf.to_container(config, resolve=True), known):
        list_at = next((n for n, key in enumerate(keys) if isinstance(key, int)), None)
        key = ".".join(keys[:list_at])
        overrides[key] = value = OmegaConf.select(config, key)
        if list_at is not None:
            plain = OmegaConf.to_container(value, resolve=True)
            overrides[key] = yaml.safe_dump(plain, default_flow_style=True, width=math.inf).strip()
    return [*arguments, *sorted(f"{key}={value}" for key, value in overrides.items())]


def _advice(unknown: Mapping[tuple[Any, ...], Any], resumes: bool) -> str:
    """What the user can type for unknown targets, which are given by their keys."""
    if resumes:
        without = {f"~{k[0]}.{k[1]}"[:LONGEST] for k in unknown if k[0] in ("callbacks", "logger")}
        without |= {f"{k[0]}=OPTION" for k in unknown if k[0] in ("augment", "scheduler")}
        ending = f" Or resume without it: {' '.join(sorted(without)[:MOST])}." if without else ""
        folder = "--config-dir FOLDER, the folder of its configuration"
        return f"If it is your own, type it again, or {folder}.{ending}"
    (part, *_), name = next(iter(unknown.items()))
    if part == "data":
        return "data=OPTION gives other data. If it is your own, name it in conf/data/OPTION.yaml."
    return (
        f"If it is your own, name it in conf/{part}/NAME.yaml (_target_: {str(name)[:LONGEST]}). "
        f"If that conf/ is not {CONF}, type --config-dir conf as well."
    )


def check_interpolations(file: Path, content: Any, resolved: bool = False) -> None:
    """Refuse a configuration that would evaluate more than references.

    Args:
        file: of the configuration, for the message.
        content: nested dictionaries and lists.
        resolved: whether references are resolved, so that none may remain.

    Raises:
        UserError: names the value.
    """
    for _, value in leaves(content):
        if isinstance(value, str) and "${" in (value if resolved else REFERENCE.sub("", value)):
            raise UserError(f"{file} wants to evaluate {value!r}, so it was not read any further.")


def known_targets() -> Targets:
    """The targets of all files in conf/ and in the folders that the command line names.

    Raises:
        UserError: if a file cannot be read.
    """
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    folders = [Path(s.path) for s in sources if s.schema == "file" and s.provider != "main"]
    return targets_of(CONF).union(*map(targets_of, folders))


@cache
def targets_of(folder: Path) -> Targets:
    """The targets of all files in a folder of configurations.

    Raises:
        UserError: if a file cannot be read.
    """
    known: Targets = frozenset()
    # Only groups of conf/, because a folder of --config-dir may hold many other files.
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    for file in (
        *folder.glob("*.yaml"),
        *(f for g in groups for f in (folder / g).rglob("*.yaml")),
    ):
        try:
            content = OmegaConf.to_container(OmegaConf.load(file))
        except Exception as error:  # PyYAML and OmegaConf have no base class in common
            raise UserError(f"{file} cannot be read: {error}") from error
        for group in reversed(file.relative_to(folder).parts[:-1]):
            if "@package _global_" not in file.read_text(encoding="utf-8"):
                content = {group: content}
        known |= targets_in(content)
    return known


@cache
def stock_targets() -> Targets:
    """The targets of PyTorch, torchvision and Lightning that are harmless with any arguments."""
    found = [("callbacks", 2, getattr(callbacks, name), callbacks.__name__) for name in CALLBACKS]
    for part, module, base in (
        ("optimizer", torch.optim, torch.optim.Optimizer),
        ("scheduler", torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
    ):
        classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
        found += [(part, 1, one, module.__name__) for one in classes]
    transforms = [
        c for c in vars(v2).values() if isinstance(c, type) and issubclass(c, v2.Transform)
    ]
    # In augment.extra.N.transforms.N, and in a transform there such as RandomApply. Lambda is
    # useless without a function.
    found += [
        ("augment", depth, c, v2.__name__) for c in transforms for depth in (5, 7) if c != v2.Lambda
    ]
    return frozenset(
        (part, depth, f"{module}.{one.__name__}")
        for part, depth, one, exported in found
        for module in (exported, one.__module__)
    )


def targets_in(content: Any) -> Targets:
    """All targets of a configuration, with their parts and depths."""
    return frozenset(_target(keys, value) for keys, value in leaves(content) if "_target_" in keys)


def _target(keys: tuple[Any, ...], value: Any) -> tuple[Any, int, Any]:
    name = value if isinstance(value, str) else repr(value)[:LONGEST]
    return keys[0], keys.index("_target_"), name


def leaves(content: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """All values in nested dictionaries and lists, each with the keys that lead to it."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while waiting:
        keys, value = waiting.pop()
        if isinstance(value, dict | list | tuple) and value:
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*keys, key), inner) for key, inner in pairs]
        else:
            yield keys, value
