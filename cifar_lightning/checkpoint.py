"""How checkpoints are written, what they tell, and how a run goes on from one."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.plugins.io import TorchCheckpointIO

from cifar_lightning.atomic import atomic_write
from cifar_lightning.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint in one step.

    Lightning's own writes to the system's temporary folder first, and then copies over the old
    checkpoint where that folder is on another disk: a full disk would leave neither.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint to a path on this machine."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(checkpoint, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without unpickling anything but primitives and tensors.

    Returns:
        `config`, `data_facts`, `state_dict`, `global_step`, and `at_epoch_end`.

    Raises:
        UserError: if the file is missing or is no checkpoint of this package.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        hyper_parameters = content["hyper_parameters"]
        progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        return {
            "config": hyper_parameters["config"],
            "data_facts": hyper_parameters["data_facts"],
            "state_dict": content["state_dict"],
            "global_step": content["global_step"],
            "at_epoch_end": progress["is_last_batch"],
        }
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except Exception as error:  # torch.load raises whatever the bytes lead it into
        raise UserError(f"{path} is not a checkpoint of cifar-lightning: {error}") from error


def resumed(config: DictConfig) -> DictConfig:
    """The configuration to resume by: the checkpoint's, with the command line's overrides on top.

    Args:
        config: as composed from the command line; its `resume` names the checkpoint.

    Raises:
        UserError: if the checkpoint is missing, is none, or is of the middle of an epoch, or if an
            override is of what a checkpoint decides.
    """
    path = Path(config.resume).expanduser()
    checkpoint = read_checkpoint(path)
    if not checkpoint["at_epoch_end"]:
        raise UserError(
            f"resume={path} was saved in the middle of an epoch, whose remaining images "
            "nobody knows. Take last.ckpt, which is of the end of an epoch."
        )
    result: DictConfig = OmegaConf.create(checkpoint["config"])
    keys = [override.lstrip("+").partition("=")[0] for override in config.overrides]
    for key in keys:
        if _is_decided(key):
            raise UserError(f"resume takes this from the checkpoint: leave {key}= out.")
    with open_dict(result):
        for key in [*keys, "run_dir"]:
            OmegaConf.update(result, key, OmegaConf.select(config, key), merge=False)
            if key in config.choices:
                result.choices[key] = config.choices[key]
        result.resume = str(path)
    return result


def _is_decided(key: str) -> bool:
    """Whether a resume may not change a key.

    A network, an optimizer or another seed would not fit what is saved, and another split would
    validate on images that were trained on. `trainer=ddp` would bring that option's number of
    epochs along; its keys can be set one by one.
    """
    group, _, rest = key.partition(".")
    if group == "data":
        return rest not in ("path", "root", "mirror", "mirrors", "cache_dir")
    decided = ("experiment", "init", "model", "optimizer", "seed")
    return group in decided or key == "trainer" or key.startswith("~")
