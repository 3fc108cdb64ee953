"""The configuration that a run is resumed by."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_lightning.checkpoints.io import check_finite, read_checkpoint
from cifar_lightning.checkpoints.record import LEFT_OUT, read_record
from cifar_lightning.checkpoints.trusted import check_targets
from cifar_lightning.config.compose import key_of
from cifar_lightning.config.paths import DATA_PATHS
from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import RunFolder


def resumed(config: DictConfig) -> DictConfig:
    """The configuration to resume by: the run's record, with the command line's overrides on top.

    Args:
        config: as composed from the command line; its `resume` names the checkpoint.

    Raises:
        UserError: if the checkpoint is missing, is none, is of the middle of an epoch, has weights
            that are not finite, or is not in its run's folder; or if an override changes what the
            checkpoint decides.
    """
    path = Path(config.resume).expanduser()
    _check_checkpoint(path)
    folder = RunFolder.to_resume(path)
    result = read_record(folder)
    if missing := [str(key) for key in config if key not in result and key not in LEFT_OUT]:
        raise UserError(
            f"{folder.config} has no {', '.join(missing)}: it is of another version of "
            "cifar-lightning, which can resume the run. evaluate, predict and export take its "
            "checkpoints."
        )
    typed = [override.lstrip("+").partition("=")[0] for override in config.overrides]
    for key in typed:
        if _is_decided(key) and not _is_the_same(key, config, result):
            raise UserError(f"resume takes this from the checkpoint: leave {key}= out.")
    typed = [key for key in typed if not _is_decided(key)]
    earlier = [o for start in folder.starts() for o in start["overrides"] if "${" not in o]
    with open_dict(result):
        for key in typed:
            OmegaConf.update(result, key, OmegaConf.select(config, key), merge=False)
            if key in config.choices:
                result.choices[key] = config.choices[key]
        result.resume = str(path)
        result.overrides = [override for override in earlier if key_of(override) != "resume"]
    check_targets(
        folder.config,
        OmegaConf.to_container(result, resolve=True),
        typed=OmegaConf.to_container(config),
    )
    _check_places(path, result, typed)
    return result


def _check_checkpoint(path: Path) -> None:
    """Refuse a checkpoint that a run cannot be resumed from.

    Raises:
        UserError: says why.
    """
    checkpoint = read_checkpoint(path)
    if not checkpoint.has_training_state:
        raise UserError(
            f"resume={path} holds the network alone, as the copies on W&B do. Take last.ckpt of "
            "the run's folder."
        )
    if not checkpoint.can_be_resumed:
        raise UserError(
            f"resume={path} was saved in the middle of an epoch, whose remaining images "
            "nobody knows. Take last.ckpt."
        )
    check_finite(path, checkpoint.state_dict)


def _check_places(path: Path, config: DictConfig, typed: Sequence[str]) -> None:
    """Refuse a record that has files written, and deleted, outside of the run's folder.

    Args:
        path: of the checkpoint, for the message.
        config: to resume by.
        typed: keys of the overrides.

    Raises:
        UserError: names the callback or profiler that would, unless its path was typed.
    """
    parts = {"trainer.profiler": config.trainer.get("profiler")}
    parts |= {f"callbacks.{name}": part for name, part in config.callbacks.items()}
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
        return rest not in DATA_PATHS
    decided = ("debug", "experiment", "init", "model", "optimizer", "seed")
    return group in decided or key == "trainer" or key.startswith("~")


def _is_the_same(key: str, typed: DictConfig, recorded: DictConfig) -> bool:
    """Whether two configurations have the same in a key, paths of data aside."""
    if key in ("debug", "experiment"):
        return bool(typed.choices.get(key) == recorded.choices.get(key))
    one, other = (_plain(config, key.lstrip("~")) for config in (typed, recorded))
    return bool(one == other)


def _plain(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key)
    if not OmegaConf.is_config(value):
        return value
    content: Any = OmegaConf.to_container(value, resolve=True)
    if key == "data":
        return {name: part for name, part in content.items() if name not in DATA_PATHS}
    return content
