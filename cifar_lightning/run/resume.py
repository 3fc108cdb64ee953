"""Builds the configuration for resuming a run."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_lightning.checkpoints.io import Checkpoint, check_finite, read_checkpoint
from cifar_lightning.checkpoints.record import LEFT_OUT, read_record
from cifar_lightning.checkpoints.trusted import check_targets
from cifar_lightning.config.compose import key_of
from cifar_lightning.config.messages import OF_A_RUN
from cifar_lightning.config.paths import DATA_PATHS
from cifar_lightning.config.training import keys_of_a_training
from cifar_lightning.errors import UserError
from cifar_lightning.tracking.differences import LIMITS, differences
from cifar_lightning.tracking.run_folder import RunFolder

# Arguments of Lightning's callbacks and profilers for the files that they write.
OUTPUTS = ("dirpath", "filename", "exclude_batches_path")
# A relative path, with metrics in formats such as {epoch:02d} and {val/acc:.4f}.
FILE_NAME = re.compile(r"(?!/)([\w /.,=+@-]|\{\w[\w/.-]*(:0?\d*(\.\d+)?[dfge]?)?\})+")


def resumed(config: DictConfig) -> DictConfig:
    """Build the configuration of a resume: the run's record, with the command line's overrides.

    Args:
        config: composed from the command line; `resume` is the path of the checkpoint.

    Raises:
        UserError: if the file is missing or not a checkpoint, was saved in the middle of an epoch,
            has weights that are not finite, or is not in its run's folder; or if an override
            changes what the checkpoint determines.
    """
    path = Path(config.resume).expanduser()
    checkpoint = read_checkpoint(path)
    _check_checkpoint(path, checkpoint)
    folder = RunFolder.to_resume(path)
    _check_last(path, folder)
    result = read_record(folder)
    if missing := [str(key) for key in config if key not in result and key not in LEFT_OUT]:
        if unknown := [key for key in missing if key not in {*keys_of_a_training(), *OF_A_RUN}]:
            raise UserError(f"There is no setting {unknown[0]}, and the run has none either.")
        raise UserError(
            f"{folder.config} has no {', '.join(missing)}: it was written by another version of "
            "cifar-lightning, which can resume the run. evaluate, predict and export work with its "
            "checkpoints."
        )
    overridden = [key_of(override) for override in config.overrides]
    removed = {key_of(override) for override in config.overrides if override.startswith("~")}
    changed = differences(config, folder.record(), folder.path).keys() - {"data.path", *LIMITS}
    for key in overridden:
        if _is_fixed(key) and any(c == key or c.startswith(f"{key}.") for c in changed):
            raise UserError(f"resume takes {key} from the checkpoint: leave it out. {_advice(key)}")
    overridden = [key for key in overridden if not _is_fixed(key)]
    earlier = [o for start in folder.starts() for o in start["overrides"] if "${" not in o]
    with open_dict(result):
        for key in overridden:
            above, _, name = key.rpartition(".")
            parent = OmegaConf.select(result, above) if above else result
            if key in removed and isinstance(parent, DictConfig) and "_target_" in parent:
                parent.pop(name, None)  # the argument gets its default
                continue
            value = None if key in removed else OmegaConf.select(config, key)
            OmegaConf.update(result, key, value, merge=False)
            if key in config.choices:
                result.choices[key] = config.choices[key]
        if _is_copied(folder, checkpoint.run_dir):
            result.run_id = config.run_id
        result.resume = str(path)
        result.overrides = [override for override in earlier if key_of(override) != "resume"]
    check_targets(
        folder.config,
        OmegaConf.to_container(result, resolve=True),
        command_line=OmegaConf.to_container(config),
    )
    _check_output_paths(path, result, overridden)
    return result


def _check_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that a run cannot be resumed from."""
    if not checkpoint.has_training_state:
        raise UserError(
            f"resume={path} holds only the network, as the copies on W&B do. Use last.ckpt in "
            "the run's folder."
        )
    if checkpoint.can_be_resumed is None:
        raise UserError(
            f"resume={path}: its count of epochs and steps is damaged or from another version. Use "
            "another checkpoint of the run. evaluate, predict and export may still work with this "
            "one."
        )
    if not checkpoint.can_be_resumed:
        raise UserError(
            f"resume={path} was saved in the middle of an epoch, without a record of the images "
            "that are left in that epoch. Use last.ckpt."
        )
    check_finite(path, checkpoint.state_dict)


def _is_copied(folder: RunFolder, saved_in: Path | None) -> bool:
    """Whether the folder is a copy of one that still exists; it is then another run on W&B.

    Args:
        folder: of the run.
        saved_in: folder of the run when its checkpoint was saved; None if it is unknown.
    """
    original = None if saved_in is None else RunFolder(saved_in).record()
    if saved_in is None or not isinstance(original, dict):  # the folder was moved, not copied
        return False
    is_same_run = original.get("run_id") == folder.record()["run_id"]
    return is_same_run and not saved_in.samefile(folder.path)


def _check_last(path: Path, folder: RunFolder) -> None:
    """Refuse a checkpoint that is earlier than the run's last one, which would be overwritten."""
    if not folder.last.is_file() or path.samefile(folder.last):
        return
    try:
        last = read_checkpoint(folder.last).global_step
    except UserError:  # it is damaged, so an earlier one is needed
        return
    if (step := read_checkpoint(path).global_step) < last:
        raise UserError(
            f"resume={path} is from step {step}, but the run has reached step {last}, which would "
            f"be lost. {shlex.quote(f'resume={folder.last}')} continues from there. To go back, "
            "move that file away first."
        )


def _check_output_paths(path: Path, config: DictConfig, overridden: Sequence[str]) -> None:
    """Refuse a record that would write or delete files outside of the run's folder.

    `overridden` has the keys of the command line's overrides: their paths are the user's choice.
    """
    content: Any = OmegaConf.to_container(config, resolve=True)
    outputs: dict[str, Any] = {}
    parts = {f"callbacks.{name}": part for name, part in content["callbacks"].items()}
    for name, part in (parts | {"trainer.profiler": content["trainer"].get("profiler")}).items():
        arguments = part if isinstance(part, dict) else {}
        outputs |= {f"{name}.{key}": arguments.get(key) for key in OUTPUTS}
    for key, output in outputs.items():
        if output is None or key in overridden:
            continue
        if key.endswith(".filename"):
            # Lightning's formats could fill a name with dots and slashes.
            inside = FILE_NAME.fullmatch(str(output)) and ".." not in str(output)
        else:
            # Lightning deletes earlier best checkpoints, whose paths are stored in the checkpoint.
            folder = Path(config.run_dir).resolve()
            inside = (
                isinstance(output, str)
                and "://" not in output
                and Path(output).expanduser().resolve().is_relative_to(folder)
            )
        if not inside:
            shown = str(output)[:200]
            raise UserError(
                f"resume={path} makes {key.rpartition('.')[0]} write to {shown}, outside of the "
                f"run's folder. If that is intended, type {shlex.quote(f'{key}={shown}')} again."
            )


def _is_fixed(key: str) -> bool:
    """Whether a resume may not change a key.

    Another network, optimizer, loss or seed would not fit the saved state. Another split would
    validate on training images. `trainer=ddp` would also set that option's number of epochs; the
    keys of `trainer` can be set one by one.
    """
    group, _, rest = key.partition(".")
    if group == "data":
        return rest not in DATA_PATHS
    fixed = ("debug", "experiment", "init", "model", "module", "optimizer", "seed")
    return group in fixed or key in ("loss", "loss._target_", "trainer")


def _advice(key: str) -> str:
    """What a user can do instead of changing a key that a resume may not change."""
    group = key.partition(".")[0]
    if group == "trainer":
        return "Keys of trainer can be changed one by one, as in trainer.strategy=ddp."
    if group in ("debug", "experiment"):
        return f"What another {group} would set can be set key by key."
    if group == "data":
        return f"Only the paths of the images can be changed: data.{', data.'.join(DATA_PATHS)}."
    return f"For another {group}, start a new run."
