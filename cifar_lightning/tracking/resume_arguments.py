"""Replaces `resume=auto` and `resume=PATH` on the command line by what Hydra takes."""

import math
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.config.compose import CONF, compose, key_of
from cifar_lightning.config.overrides import (
    is_sweep,
    options_and_overrides,
    prepare_arguments,
    quoted,
    values_of,
)
from cifar_lightning.errors import UserError
from cifar_lightning.system import processes
from cifar_lightning.system.locks import is_locked
from cifar_lightning.tracking.differences import LIMITS, Differences, differences
from cifar_lightning.tracking.run_folder import Run, RunFolder

SHOWN, LONGEST = 3, 80  # differences in a message, characters of a value
MISSING = object()


def resume_auto(arguments: Sequence[str]) -> list[str]:
    """Replace resume=auto by the last checkpoint of the newest run of the same configuration.

    Only runs count that are not finished and that no process is working on; without one, a new run
    starts. They are searched for where the run would have its folder. `LIMITS` may differ: a run
    that such a limit has ended is not finished by a higher one.

    Args:
        arguments: as `plain_arguments` gives them.

    Raises:
        UserError: in a sweep.
    """
    others = [a for a in arguments if values_of("resume", [a]) != ["auto"]]
    if is_sweep(others) and any(v not in ("", "null") for v in values_of("resume", arguments)):
        raise UserError("resume= resumes one run; resume_sweep=FOLDER a sweep.")
    if len(others) == len(arguments):
        return others
    options, overrides = options_and_overrides(others)
    folders = values_of("--config-dir", options)
    config = compose(
        [*prepare_arguments(overrides), *(f"hydra.searchpath=[{quoted(f)}]" for f in folders)]
    )
    folder, differing = _nearest_unfinished(config, _candidates(config, overrides))
    changed = {key: values for key, values in differing.items() if key not in LIMITS}
    found = "no run to resume, so this is a new one"
    if folder is not None:
        found = f"{found} ({folder.path} has {_describe(changed)})" if changed else str(folder.last)
    if processes.is_first():
        print(f"resume=auto: {found}", flush=True)
    if folder is None or changed:
        return others
    # By itself the resume would have the run's limits.
    asked = {key: value for key, (_, value) in differing.items() if not values_of(key, overrides)}
    limits = [f"{key}={_in_yaml(value)}" for key, value in asked.items()]
    return [*(a for a in others if key_of(a) != "hydra.run.dir"), *limits, f"resume={found}"]


def _nearest_unfinished(
    config: DictConfig, candidates: Iterable[RunFolder]
) -> tuple[RunFolder | None, Differences]:
    """The run with the fewest differences, beside limits, that can be resumed: the newest such."""
    started = processes.launch()
    alone = started is None or started.total == 1  # several processes must choose the same run
    nearest: tuple[RunFolder | None, Differences] = (None, {})
    fewest = math.inf
    for folder in sorted(candidates, key=lambda folder: folder.start_time, reverse=True):
        run = folder.read()
        limited = f"trainer.{run.metrics.get('stopped_by')}" in LIMITS
        if (run.status == "finished" and not limited) or (alone and is_locked(folder.path)):
            continue
        try:
            differing = differences(config, folder.record(), folder.path)
        except (OmegaConfBaseException, RecursionError, TypeError):  # its record is damaged
            continue
        unfinished = run.status != "finished" or _is_cut_short(run, differing)
        if unfinished and (number := len(differing.keys() - LIMITS)) < fewest:
            nearest, fewest = (folder, differing), number
            if number == 0:
                break
    return nearest


def _is_cut_short(run: Run, differing: Differences) -> bool:
    """Whether a limit has ended a run that is lower than the one now asked for."""
    limit = f"trainer.{run.metrics.get('stopped_by')}"
    if limit not in LIMITS or limit not in differing:
        return False
    before, asked = map(_limit, differing[limit])
    return asked > before


def _limit(value: Any) -> float:
    """A limit in steps or seconds; 0 if the value is none, which is refused later."""
    try:
        if isinstance(value, str):
            days, hours, minutes, seconds = map(int, value.split(":"))
            value = {"days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
        if isinstance(value, dict):
            return timedelta(**value).total_seconds()
        return math.inf if value in (None, -1) else float(value)
    except (TypeError, ValueError):
        return 0.0


def _describe(changed: Differences) -> str:
    """The first few of the changed values; of a group with another option that alone."""
    groups = [key for key in changed if "." not in key]
    keys = groups + [key for key in changed if key.partition(".")[0] not in groups]
    texts = []
    for key in keys[:SHOWN]:
        before, asked = (_in_yaml(value)[:LONGEST] for value in changed[key])
        texts.append(f"{key} {before}, not {asked}")
    more = [f"and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
    return "; ".join([*texts, *more])


def _in_yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0])


def _candidates(config: DictConfig, overrides: Sequence[str]) -> list[RunFolder]:
    """The runs with a checkpoint that it could be: those beside its folder, if none was typed."""
    typed = values_of("hydra.run.dir", overrides)
    if typed and "${" not in typed[-1]:
        folders = [Path(typed[-1]).expanduser()]
    else:
        parent = Path(config.run_dir).parent
        if parent.is_relative_to(Path.cwd()):
            parent = parent.relative_to(Path.cwd())
        folders = [*parent.glob("*")]
    return [folder for folder in map(RunFolder, folders) if folder.last.is_file()]


def in_run_folder(arguments: Sequence[str]) -> list[str]:
    """Prepare resume=PATH: Hydra's run folder is that of the checkpoint.

    Keys that the run has and conf/ has not, such as those of a callback that was added, can be
    changed (`callbacks.early.patience=3`) and removed (`~callbacks.early`) as others.

    Raises:
        UserError: if the checkpoint is not there, or not in its run's folder; or if hydra.run.dir
            names another folder.
    """
    checkpoints = values_of("resume", arguments)
    if not checkpoints or checkpoints[-1] in ("", "null"):
        return [*arguments]
    folder = RunFolder.to_resume(Path(checkpoints[-1]).expanduser())
    for typed in values_of("hydra.run.dir", arguments):
        if Path(typed).expanduser().resolve() != folder.path.resolve():
            raise UserError(
                f"resume={checkpoints[-1]} continues the run in {folder.path}: leave "
                "hydra.run.dir= out. To have the run elsewhere, move its folder first."
            )
    place = [f"hydra.run.dir={quoted(str(folder.path))}"]
    options, overrides = options_and_overrides(arguments)
    record = folder.record()
    others = [o for o in overrides if key_of(o) != "hydra.run.dir"]
    return [*options, *place, *(for_hydra for o in others for for_hydra in _for_record(o, record))]


def _for_record(override: str, record: Any) -> list[str]:
    """An override such that Hydra takes it for any key of a run's record."""
    key = key_of(override)
    in_record = record
    for part in key.split("."):
        in_record = in_record.get(part, MISSING) if isinstance(in_record, dict) else MISSING
    if in_record is MISSING or key == "resume" or (CONF / key.replace("@", "/")).is_dir():
        return [override]
    if override.startswith("~"):  # Hydra removes only what is there, and not null
        return [f"++{key}=true", f"~{key}"]
    return [f"++{override.lstrip('+')}"]
