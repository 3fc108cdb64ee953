"""The record of a run: `config.yaml` in its folder, the configuration that a resume reads.

Hydra writes `.hydra/` before anything is checked; this is written when all checks are passed.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.checkpoints.trusted import REFERENCE, check_interpolations
from cifar_lightning.errors import UserError
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.tracking.run_folder import RunFolder

# Of one start alone; `starts` has the overrides of each.
LEFT_OUT = ("overrides", "resume", "run_dir")


def write_record(config: DictConfig, typed: Sequence[str]) -> None:
    """Write the record of a run, or replace it at a resume.

    References to other values stay, so that an override at a resume reaches all that depend on it.
    All other interpolations, such as `${oc.env:HOME}`, become their values.

    Args:
        config: the run's.
        typed: overrides of this start.

    Raises:
        UserError: if a value would be taken for an interpolation itself.
    """
    folder = RunFolder(Path(config.run_dir))
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    content: Any = OmegaConf.to_container(config)
    record = {k: _without_calls(v, resolved[k]) for k, v in content.items() if k not in LEFT_OUT}
    starts = [] if config.resume is None else folder.starts()
    now = f"{datetime.now():%F %T.%f}"
    record["starts"] = [*starts, {"time": now, "overrides": list(typed)}]
    folder.path.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder.config) as file:
        file.write(OmegaConf.to_yaml(record).encode())


def _without_calls(content: Any, resolved: Any) -> Any:
    """A configuration with references as they are, and other interpolations resolved."""
    if isinstance(content, dict) and isinstance(resolved, dict):
        return {key: _without_calls(value, resolved[key]) for key, value in content.items()}
    if isinstance(content, list) and isinstance(resolved, list):
        return [_without_calls(*pair) for pair in zip(content, resolved, strict=True)]
    if isinstance(resolved, str) and "${" in resolved:
        raise UserError(f"{resolved!r} holds ${{, which the record of a run cannot keep.")
    calls = isinstance(content, str) and "${" in REFERENCE.sub("", content)
    return resolved if calls else content


def read_record(folder: RunFolder) -> DictConfig:
    """The configuration of a run, as `write_record` wrote it, in the folder where it is now.

    Nothing in it is evaluated but references; what it calls is for the caller to check.

    Raises:
        UserError: if there is none, it cannot be read, or it would evaluate more.
    """
    file = folder.config
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        if not isinstance(content, dict):
            raise TypeError("it holds no keys")
        for part in ("callbacks", "choices", "data", "trainer"):
            if not isinstance(content.get(part), dict):
                raise TypeError(f"it has no {part}")
        content.pop("starts", None)
        check_interpolations(file, content)
        config = OmegaConf.create(content | {"run_dir": str(folder.path.absolute())})
        check_interpolations(file, OmegaConf.to_container(config, resolve=True), resolved=True)
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # PyYAML and OmegaConf have no base class in common
        raise UserError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}") from error
    return config
