"""Checks a training's configuration before its data is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.checkpoints.io import read_checkpoint
from cifar_lightning.checkpoints.record import record_of
from cifar_lightning.config import training, validate
from cifar_lightning.models.budget import check_budget
from cifar_lightning.run.trainer import check_trainer


def check_config(config: DictConfig) -> None:
    """Check everything in a training's configuration that can be checked without the data.

    Raises:
        UserError: names the key or value, and what would fit.
    """
    training.check_config(config)
    validate.check_arguments("budget", check_budget, config.budget)
    record_of(config)  # refuses what a record cannot keep
    _check_folders(config)
    check_trainer(config)
    if config.get("teacher") is not None:
        read_checkpoint(config.teacher)


def _check_folders(config: DictConfig) -> None:
    """Check that the run's files can be written."""
    validate.check_folder(f"hydra.run.dir={config.run_dir}", Path(config.run_dir))
    values: Any = OmegaConf.to_container(config, resolve=True)
    parts = {"trainer.profiler": values["trainer"].get("profiler")}
    parts |= {f"callbacks.{name}": part for name, part in values["callbacks"].items()}
    for key, part in parts.items():
        folder = part.get("dirpath") if isinstance(part, Mapping) else None
        if isinstance(folder, str):
            validate.check_folder(f"{key}.dirpath={folder}", Path(folder))
