"""Replaces `resume=auto` and `resume=PATH` on the command line by what Hydra takes."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cifar_lightning.config.compose import compose, key_of, overrides_of
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
from cifar_lightning.tracking.run_folder import DEBUGGING, RUNS, RunFolder


def resume_auto(arguments: Sequence[str]) -> list[str]:
    """Replace resume=auto by the last checkpoint of the newest run with the same overrides.

    Only runs that are not finished and that no process is working on count; without one, a new run
    starts. They are searched for where the run would have its folder.

    Raises:
        UserError: in a sweep.
    """
    others = [a for a in arguments if a.replace("'", "").replace('"', "") != "resume=auto"]
    if len(others) == len(arguments):
        return others
    if is_sweep(others):
        raise UserError("resume=auto resumes one run; resume_sweep=FOLDER a sweep.")
    found = _newest_unfinished(others)
    if processes.is_first():
        print(f"resume=auto: {found or 'no run to resume, so this is a new one'}", flush=True)
    return others if found is None else [*others, f"resume={found}"]


def _newest_unfinished(arguments: Sequence[str]) -> Path | None:
    """The last checkpoint of the newest run that can be resumed with these arguments."""
    options, overrides = options_and_overrides(arguments)
    folders = [o.partition("=")[2].strip("'\"") for o in options if o.startswith(CONFIG_DIR)]
    folders += [after for o, after in pairwise(options) if o in CONFIG_DIR]
    further = [f"hydra.searchpath=[{quoted(folder)}]" for folder in folders if folder]
    config = compose([*prepare_arguments(overrides), *further])
    typed = {*overrides_of(config)}
    default = DEBUGGING if config.choices.debug else RUNS
    started = processes.launch()
    alone = started is None or started.total == 1  # several processes must choose the same run
    candidates = [folder for folder in _candidates(overrides, default) if folder.last.is_file()]
    for folder in sorted(candidates, key=lambda folder: folder.start_time, reverse=True):
        run = folder.read()
        later = {o for some in run.resumed for o in some if key_of(o) != "resume"}
        if (
            run.status != "finished"
            and {*run.overrides} == typed
            and later <= typed
            and not (alone and is_locked(folder.path))
        ):
            return folder.last
    return None


def _candidates(overrides: Sequence[str], default: Path) -> list[RunFolder]:
    """The folders in which the run could have begun: in the default one, if none was typed."""
    typed = _values("hydra.run.dir", overrides)
    if typed and "${" not in typed[-1]:
        return [RunFolder(Path(typed[-1]).expanduser())]
    parent = Path(typed[-1]).expanduser().parent if typed else default
    return [RunFolder(folder) for folder in parent.glob("*") if folder.is_dir()]


def in_run_folder(arguments: Sequence[str]) -> list[str]:
    """Set Hydra's run folder to that of the checkpoint in resume=PATH.

    Raises:
        UserError: if the checkpoint is not there, or not in its run's folder; or if hydra.run.dir
            names another folder.
    """
    resumed = [
        a for a in arguments if a.startswith("resume=") and a not in ("resume=", "resume=null")
    ]
    if not resumed:
        return [*arguments]
    folder = RunFolder.to_resume(Path(_values("resume", resumed)[-1]).expanduser()).path
    for typed in _values("hydra.run.dir", arguments):
        if "${" not in typed and Path(typed).expanduser().resolve() != folder.resolve():
            raise UserError(
                f"{resumed[-1]} continues the run in {folder}: leave hydra.run.dir= out. To have "
                "the run elsewhere, move its folder first."
            )
    # .hydra/ stays as the run began; the run's own record has its resumes.
    place = [f"hydra.run.dir={quoted(str(folder))}", "hydra.output_subdir=null"]
    kept = [argument for argument in arguments if key_of(argument) != "hydra.run.dir"]
    at = kept.index(resumed[-1])
    return [*kept[:at], *place, *kept[at:]]


def _values(key: str, arguments: Sequence[str]) -> list[str]:
    """The values that the command line gives a key, without quotes around them."""
    return [a.partition("=")[2].strip("'\"") for a in arguments if key_of(a) == key]
