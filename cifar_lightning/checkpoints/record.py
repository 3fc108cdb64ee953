"""The record of a run: `config.yaml` in its folder, the configuration that a resume reads.

It is written once the run has passed all checks.
"""

import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.checkpoints.trusted import REFERENCE, check_interpolations
from cifar_lightning.errors import UserError
from cifar_lightning.system import processes
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.tracking.run_folder import RunFolder, load_yaml

# What a run writes in addition to `.hydra/`.
FILES = ("config.yaml", "metrics.csv", "metrics.json", "train.log", "checkpoints", "figures")
# Keys that differ from start to start; `starts` has the overrides of each start.
LEFT_OUT = ("overrides", "resume", "run_dir")


def write_record(config: DictConfig, overrides: Sequence[str]) -> None:
    """Write the record of a new run, or add a start to the record of a resumed one.

    References to other keys are kept, so that an override of a resume changes all that depends on
    it. Other interpolations, such as `${oc.env:HOME}`, are replaced by their values.

    If a run that was killed in its first epoch has left files in the folder, a new run moves them
    to the subfolder `before_<time>/`.

    Args:
        config: of the run.
        overrides: of this start.

    Raises:
        UserError: if a value itself looks like an interpolation.
    """
    folder = RunFolder(Path(config.run_dir))
    folder.path.mkdir(parents=True, exist_ok=True)
    record = record_of(config)
    starts = [] if config.resume is None else folder.starts()
    now = datetime.now()
    if config.resume is None:
        # Only for a single run; a sweep has recorded its jobs itself.
        single = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.RUN
        names = (*FILES, ".hydra") if single else FILES
        _set_aside(folder, f"{now:%Y-%m-%d_%H-%M-%S-%f}", names)
        if single and Path(HydraConfig.get().runtime.output_dir).absolute() == folder.path:
            write_hydra(folder, record)
    record["starts"] = [*starts, {"time": f"{now:%F %T.%f}", "overrides": list(overrides)}]
    with atomic_write(folder.config) as file:
        file.write(OmegaConf.to_yaml(record).encode())


def _set_aside(folder: RunFolder, time: str, names: Sequence[str]) -> None:
    """Move an earlier run's files to a subfolder, if it has saved metrics or a checkpoint."""
    files = [folder.path / "metrics.csv", folder.metrics_json, *folder.checkpoints.glob("*.ckpt")]
    if not any(file.exists() for file in files):
        return
    earlier = folder.path / f"before_{time}"
    earlier.mkdir()
    for name in names:
        if (folder.path / name).exists():
            (folder.path / name).rename(earlier / name)


def write_hydra(folder: RunFolder, config: Any) -> None:
    """Write `.hydra/` as Hydra would, but after all checks.

    Args:
        folder: of this command's run, or of a job of its sweep.
        config: the run's configuration, or a dictionary.
    """
    hydra, written = HydraConfig.get(), folder.path / ".hydra"
    written.mkdir(exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), written / "config.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), written / "hydra.yaml")
    OmegaConf.save(hydra.overrides.task, written / "overrides.yaml")


def check_free(folder: RunFolder) -> None:
    """Check that a new run would not overwrite another run, or a file of the user's.

    A run without results that cannot be resumed, such as one that was killed in its first epoch, is
    no obstacle: `write_record` moves it.

    Raises:
        UserError: names what is there, and what to do.
    """
    # Of several processes, only the first writes; the folder of the others may differ.
    if not processes.is_first():
        return
    elsewhere = "hydra.run.dir=FOLDER gives the new run another folder"
    finished = folder.metrics_json.exists() and folder.read().status == "finished"
    if finished or folder.last.exists():
        resume = f"{shlex.quote(f'resume={folder.last}')} resumes it; " * folder.last.exists()
        raise UserError(f"{folder.path} has a run already: {resume}{elsewhere}.")
    if folder.config.exists() and not folder.starts():
        raise UserError(
            f"{folder.config} is not the record of a run, and would be overwritten: move it away, "
            f"or {elsewhere}."
        )


def record_of(config: DictConfig) -> dict[str, Any]:
    """The content of a run's record, except its starts.

    Raises:
        UserError: see `write_record`.
    """
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    content: Any = OmegaConf.to_container(config)
    return {k: _resolve_calls(v, resolved[k]) for k, v in content.items() if k not in LEFT_OUT}


def _resolve_calls(content: Any, resolved: Any) -> Any:
    """Replace all interpolations in a configuration, except references, by their values."""
    if isinstance(content, dict) and isinstance(resolved, dict):
        return {key: _resolve_calls(value, resolved[key]) for key, value in content.items()}
    if isinstance(content, list) and isinstance(resolved, list):
        return [_resolve_calls(*pair) for pair in zip(content, resolved, strict=True)]
    if isinstance(resolved, str) and "${" in resolved:
        raise UserError(f"{resolved!r} contains ${{, which a run's record cannot hold.")
    calls = isinstance(content, str) and "${" in REFERENCE.sub("", content)
    return resolved if calls else content


def read_data(folder: RunFolder) -> tuple[dict[str, Any], str | None]:
    """Read only the data's configuration in a run's record: inference needs nothing else of it.

    It may evaluate only references. The caller has to check its `_target_`s.

    Returns:
        The settings, and the option in conf/data/; empty and None if the folder has no record.

    Raises:
        UserError: if the record cannot be read, or its data would evaluate more than references.
    """
    file = folder.config
    content = load_yaml(file) if file.is_file() else None
    if not isinstance(content, dict) or "starts" not in content:  # a file of the user's
        return {}, None
    data, choices = content.get("data"), content.get("choices")
    check_interpolations(file, data)
    try:
        config = OmegaConf.create(
            _without_calls(content) | {"run_dir": str(folder.path.absolute())}
        )
        settings: Any = (
            OmegaConf.to_container(config.data, resolve=True) if isinstance(data, dict) else {}
        )
    except Exception as error:  # OmegaConf's errors, and Python's if a key refers to itself
        raise _unreadable(file, error) from error
    check_interpolations(file, settings, resolved=True)
    option = choices.get("data") if isinstance(choices, dict) else None
    return settings, option if isinstance(option, str) else None


def _without_calls(content: Any) -> Any:
    """Replace all interpolations in a configuration, except references, by missing values."""
    if isinstance(content, dict):
        return {key: _without_calls(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_calls(value) for value in content]
    calls = isinstance(content, str) and "${" in REFERENCE.sub("", content)
    return "???" if calls else content


def read_record(folder: RunFolder) -> DictConfig:
    """Read the record of a run; its `run_dir` becomes the folder in which the run is now.

    It may evaluate only references. The caller has to check its `_target_`s.

    Raises:
        UserError: if there is no record, it cannot be read, or it would evaluate more than
            references.
    """
    file = folder.config
    try:
        content = load_yaml(file)
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
        raise _unreadable(file, error) from error
    return config


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}")
