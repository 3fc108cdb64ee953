"""Replaces `resume=auto` and `resume=PATH` on the command line by what Hydra takes."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cifar_lightning.config.compose import CONF, compose, key_of, overrides_of
from cifar_lightning.config.overrides import (
    CONFIG_DIR,
    is_sweep,
    options_and_overrides,
    prepare_arguments,
    quoted,
)
from cifar_lightning.errors import UserError
from cifar_lightning.system import processes
from cifar_lightning.system.locks import is_locked
from cifar_lightning.tracking.run_folder import DEBUGGING, RUNS, Run, RunFolder

# After which a run can go on to the bit as if they had been higher from the start.
LIMITS = ("trainer.max_steps", "trainer.max_time")
MISSING = object()


def resume_auto(arguments: Sequence[str]) -> list[str]:
    """Replace resume=auto by the last checkpoint of the newest run with the same overrides.

    Only runs count that are not finished and that no process is working on; without one, a new run
    starts. They are searched for where the run would have its folder. Among the overrides
    `trainer.max_steps` and `trainer.max_time` may differ: a run that such a limit has ended is not
    finished by a higher one.

    Raises:
        UserError: in a sweep.
    """
    others = [a for a in arguments if a.replace("'", "").replace('"', "") != "resume=auto"]
    if is_sweep(others) and any(v not in ("", "null") for v in _values("resume", arguments)):
        raise UserError("resume= resumes one run; resume_sweep=FOLDER a sweep.")
    if len(others) == len(arguments):
        return others
    found = _newest_unfinished(others)
    if processes.is_first():
        print(f"resume=auto: {found or 'no run to resume, so this is a new one'}", flush=True)
    if found is None:
        return others
    return [*(a for a in others if key_of(a) != "hydra.run.dir"), f"resume={found}"]


def _newest_unfinished(arguments: Sequence[str]) -> Path | None:
    """The last checkpoint of the newest run that can be resumed with these arguments."""
    options, overrides = options_and_overrides(arguments)
    folders = [o.partition("=")[2].strip("'\"") for o in options if o.startswith(CONFIG_DIR)]
    folders += [after for o, after in pairwise(options) if o in CONFIG_DIR]
    further = [f"hydra.searchpath=[{quoted(folder)}]" for folder in folders if folder]
    config = compose([*prepare_arguments(overrides), *further])
    typed = _meanings(overrides_of(config))
    default = DEBUGGING if config.choices.debug else RUNS
    started = processes.launch()
    alone = started is None or started.total == 1  # several processes must choose the same run
    candidates = [folder for folder in _candidates(overrides, default) if folder.last.is_file()]
    for folder in sorted(candidates, key=lambda folder: folder.start_time, reverse=True):
        run = folder.read()
        later = _meanings(o for some in run.resumed for o in some)
        if (
            _meanings(run.overrides) == typed
            and later <= typed
            and (run.status != "finished" or _is_cut_short(run, folder.record(), config.trainer))
            and not (alone and is_locked(folder.path))
        ):
            return folder.last
    return None


def _meanings(overrides: Iterable[str]) -> set[str]:
    """Overrides in one spelling, without those that may differ between the starts of a run."""
    same = (f"{o[1:]}=null" if o.startswith("~") else o.lstrip("+") for o in overrides)
    return {o for o in same if key_of(o) not in ("resume", *LIMITS)}


def _is_cut_short(run: Run, record: Any, trainer: DictConfig) -> bool:
    """Whether a limit has ended a run that is lower than the one now asked for."""
    stopped_by = str(run.metrics.get("stopped_by"))
    if f"trainer.{stopped_by}" not in LIMITS:
        return False
    before, asked = record["trainer"].get(stopped_by), trainer.get(stopped_by)
    if asked in (None, -1):
        return True
    if stopped_by == "max_time":
        return _seconds(asked) > _seconds(before)
    return isinstance(asked, int) and isinstance(before, int) and asked > before


def _seconds(limit: Any) -> float:
    """The seconds of a `trainer.max_time`; 0 if it is no time, which is refused later."""
    try:
        if isinstance(limit, str):
            days, hours, minutes, seconds = map(int, limit.split(":"))
            return timedelta(days, seconds, hours=hours, minutes=minutes).total_seconds()
        return timedelta(**limit).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def _candidates(overrides: Sequence[str], default: Path) -> list[RunFolder]:
    """The folders in which the run could have begun: in the default one, if none was typed."""
    typed = _values("hydra.run.dir", overrides)
    if typed and "${" not in typed[-1]:
        return [RunFolder(Path(typed[-1]).expanduser())]
    parent = Path(typed[-1]).expanduser().parent if typed else default
    return [RunFolder(folder) for folder in parent.glob("*") if folder.is_dir()]


def in_run_folder(arguments: Sequence[str]) -> list[str]:
    """Prepare resume=PATH: Hydra's run folder is that of the checkpoint.

    Keys that the run has and conf/ has not, such as those of a callback that was added, can be
    changed (`callbacks.early.patience=3`) and removed (`~callbacks.early`) as others.

    Raises:
        UserError: if the checkpoint is not there, or not in its run's folder; or if hydra.run.dir
            names another folder.
    """
    resumed = [
        a for a in arguments if a.startswith("resume=") and a not in ("resume=", "resume=null")
    ]
    if not resumed:
        return [*arguments]
    folder = RunFolder.to_resume(Path(_values("resume", resumed)[-1]).expanduser())
    for typed in _values("hydra.run.dir", arguments):
        if Path(typed).expanduser().resolve() != folder.path.resolve():
            raise UserError(
                f"{resumed[-1]} continues the run in {folder.path}: leave hydra.run.dir= out. To "
                "have the run elsewhere, move its folder first."
            )
    # .hydra/ stays as the run began; the run's own record has its resumes.
    place = [f"hydra.run.dir={quoted(str(folder.path))}", "hydra.output_subdir=null"]
    options, overrides = options_and_overrides(arguments)
    record = folder.record()
    kept = [_for_record(o, record) for o in overrides if key_of(o) != "hydra.run.dir"]
    return [*options, *place, *kept]


def _for_record(override: str, record: Any) -> str:
    """An override such that Hydra takes it for any key of a run's record."""
    key = key_of(override)
    in_record = record
    for part in key.split("."):
        in_record = in_record.get(part, MISSING) if isinstance(in_record, dict) else MISSING
    if in_record is MISSING or key == "resume" or (CONF / key.replace("@", "/")).is_dir():
        return override
    return f"++{key}=null" if override.startswith("~") else f"++{override.lstrip('+')}"


def _values(key: str, arguments: Sequence[str]) -> list[str]:
    """The values that the command line gives a key, without quotes around them."""
    return [a.partition("=")[2].strip("'\"") for a in arguments if key_of(a) == key]
