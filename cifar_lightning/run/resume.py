"""By which configuration a run goes on from a checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_lightning.checkpoints.io import check_finite, read_checkpoint
from cifar_lightning.checkpoints.trusted import trusted_config
from cifar_lightning.config.paths import PLACES
from cifar_lightning.errors import UserError


def resumed(config: DictConfig) -> DictConfig:
    """The configuration to resume by: the checkpoint's, with the command line's overrides on top.

    Args:
        config: as composed from the command line; its `resume` names the checkpoint.

    Raises:
        UserError: if the checkpoint is missing, is none, is of the middle of an epoch, or has
            weights that are no numbers, or if an override changes what a checkpoint decides.
    """
    path = Path(config.resume).expanduser()
    checkpoint = read_checkpoint(path)
    if not checkpoint.has_training_state:
        raise UserError(
            f"resume={path} holds the network alone, as the copies on W&B do. Take last.ckpt of "
            "the run's folder."
        )
    if not checkpoint.can_go_on:
        raise UserError(
            f"resume={path} was saved in the middle of an epoch, whose remaining images "
            "nobody knows. Take last.ckpt."
        )
    check_finite(path, checkpoint.state_dict)
    result = trusted_config(path, checkpoint.config, own=config)
    unknown = {"sweep": None, "teacher": None, "cutmix": 0.0}  # to runs of earlier versions
    unknown |= {key: config[key] for key in ("teacher_weight", "teacher_temperature")}
    with open_dict(result):
        for key, value in unknown.items():
            result.setdefault(key, value)
    if missing := [str(key) for key in config if key not in result]:
        raise UserError(
            f"resume={path} was written by an earlier version of cifar-lightning, with which it "
            f"can be resumed: its configuration has no {', '.join(missing)}. evaluate, predict and "
            "export take it."
        )
    keys = [override.lstrip("+").partition("=")[0] for override in config.overrides]
    for key in keys:
        if _is_decided(key) and not _is_the_same(key, config, result):
            raise UserError(f"resume takes this from the checkpoint: leave {key}= out.")
    keys = [key for key in keys if not _is_decided(key)]
    with open_dict(result):
        for key in [*keys, "run_dir"]:
            OmegaConf.update(result, key, OmegaConf.select(config, key), merge=False)
            if key in config.choices:
                result.choices[key] = config.choices[key]
        result.resume = str(path)
    _check_places(path, result, keys)
    return result


def _check_places(path: Path, config: DictConfig, typed: Sequence[str]) -> None:
    """Refuse a checkpoint that has files written, and deleted, outside of the run's folder.

    Args:
        path: of the checkpoint, for the message.
        config: to go on by.
        typed: keys of the overrides.

    Raises:
        UserError: names the callback or profiler that would, unless its place was typed.
    """
    parts = {"trainer.profiler": config.trainer.get("profiler")}
    callbacks = config.callbacks if OmegaConf.is_dict(config.callbacks) else {}
    parts |= {f"callbacks.{name}": part for name, part in callbacks.items()}
    for name, part in parts.items():
        if not OmegaConf.is_dict(part) or "dirpath" not in part:
            continue
        # Lightning deletes what an earlier best checkpoint was, by a path of the checkpoint's own.
        place, run_dir = part.dirpath, Path(config.run_dir).resolve()
        inside = isinstance(place, str) and Path(place).resolve().is_relative_to(run_dir)
        if not inside and f"{name}.dirpath" not in typed:
            raise UserError(
                f"resume={path} wants {name} to write to {place}, outside of the run's "
                f"folder. If you want that too, type {name}.dirpath={place} again."
            )


def _is_decided(key: str) -> bool:
    """Whether a resume may not change a key.

    A network, an optimizer or another seed would not fit what is saved, and another split would
    validate on images that were trained on. `trainer=ddp` would bring that option's number of
    epochs along; its keys can be set one by one.
    """
    group, _, rest = key.partition(".")
    if group == "data":
        return rest not in PLACES
    decided = ("debug", "experiment", "init", "model", "optimizer", "seed")
    return group in decided or key == "trainer" or key.startswith("~")


def _is_the_same(key: str, typed: DictConfig, saved: DictConfig) -> bool:
    """Whether a configuration has in a key what another one has, places on a machine aside."""
    if key in ("debug", "experiment"):
        return bool(typed.choices.get(key) == saved.choices.get(key))
    one, other = (_plain(config, key.lstrip("~")) for config in (typed, saved))
    return bool(one == other)


def _plain(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key)
    if not OmegaConf.is_config(value):
        return value
    content: Any = OmegaConf.to_container(value, resolve=True)
    if key == "data":
        return {name: part for name, part in content.items() if name not in PLACES}
    return content
