"""Replaces `resume=auto` and `resume=PATH` on the command line by overrides that Hydra accepts."""

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

    The run must be unfinished, and no process may be working on it; if there is none, a new run
    starts. It is searched for beside the folder that the new run would get. `LIMITS` may differ: a
    run that such a limit ended counts as unfinished if the limit is raised.

    Args:
        arguments: from `plain_arguments`.

    Raises:
        UserError: if the arguments are of a sweep.
    """
    others = [a for a in arguments if values_of("resume", [a]) != ["auto"]]
    if is_sweep(others) and any(v not in ("", "null") for v in values_of("resume", arguments)):
        raise UserError("resume= resumes one run; resume_sweep=FOLDER resumes a sweep.")
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
    # Without these overrides, the resume would keep the limits of the run.
    asked = {key: value for key, (_, value) in differing.items() if not values_of(key, overrides)}
    limits = [f"{key}={_in_yaml(value)}" for key, value in asked.items()]
    return [*(a for a in others if key_of(a) != "hydra.run.dir"), *limits, f"resume={found}"]


def _nearest_unfinished(
    config: DictConfig, candidates: Iterable[RunFolder]
) -> tuple[RunFolder | None, Differences]:
    """The newest unfinished run with the fewest differences, limits not counted."""
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
    """Whether a run was ended by a limit that is lower than the one requested now."""
    limit = f"trainer.{run.metrics.get('stopped_by')}"
    if limit not in LIMITS or limit not in differing:
        return False
    before, asked = map(_limit, differing[limit])
    return asked > before


def _limit(value: Any) -> float:
    """A limit in steps or seconds; 0 for an invalid value, which is refused later."""
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
    """The first few of the changed values; for a group with another option, only the option."""
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
    """The runs with a checkpoint in the typed folder, or beside the folder of the new run."""
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
    """Prepare resume=PATH: set Hydra's run folder to that of the checkpoint.

    Keys of the run that conf/ lacks, such as those of an added callback, can be changed
    (`callbacks.early.patience=3`) and removed (`~callbacks.early`) like others.

    Raises:
        UserError: if the checkpoint does not exist or is not in its run folder, or if hydra.run.dir
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
                "hydra.run.dir= out. To continue in another folder, move this one first."
            )
    place = [f"hydra.run.dir={quoted(str(folder.path))}"]
    options, overrides = options_and_overrides(arguments)
    record = folder.record()
    others = [o for o in overrides if key_of(o) != "hydra.run.dir"]
    return [*options, *place, *(for_hydra for o in others for for_hydra in _for_record(o, record))]


def _for_record(override: str, record: Any) -> list[str]:
    """The overrides that make Hydra accept an override of any key in a run's record."""
    key = key_of(override)
    in_record = record
    for part in key.split("."):
        in_record = in_record.get(part, MISSING) if isinstance(in_record, dict) else MISSING
    if in_record is MISSING or key == "resume" or (CONF / key.replace("@", "/")).is_dir():
        return [override]
    if override.startswith("~"):  # Hydra only removes keys that exist and are not null
        return [f"++{key}=true", f"~{key}"]
    return [f"++{override.lstrip('+')}"]
