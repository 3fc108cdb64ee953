"""What a checkpoint tells, and how a run goes on from it."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_lightning.errors import UserError


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
    checkpoint = read_checkpoint(config.resume)
    if not checkpoint["at_epoch_end"]:
        raise UserError(
            f"resume={config.resume} was saved in the middle of an epoch, whose remaining images "
            "nobody knows. Take last.ckpt, which is of the end of an epoch."
        )
    result: DictConfig = OmegaConf.create(checkpoint["config"])
    keys = [o.lstrip("+~").partition("=")[0].partition("@")[0] for o in config.overrides]
    for key in keys:
        if key.partition(".")[0] in ("experiment", "model", "optimizer", "seed"):
            raise UserError(f"resume takes {key} from the checkpoint: leave {key}= out.")
    with open_dict(result):
        for key in [*keys, "run_dir", "resume"]:
            OmegaConf.update(result, key, OmegaConf.select(config, key), merge=False)
            if key in config.choices:
                result.choices[key] = config.choices[key]
    return result
