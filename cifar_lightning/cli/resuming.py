"""What was typed to go on with: a sweep, or the newest run that is not finished."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cifar_lightning.config.compose import as_typed, compose, key_of
from cifar_lightning.config.overrides import is_sweep, prepare_arguments, quoted
from cifar_lightning.errors import UserError
from cifar_lightning.system import processes
from cifar_lightning.tracking.run_folder import (
    DEBUGGING,
    RUNS,
    RunFolder,
    read_config_dir,
    read_sweep,
)

CONFIG_DIR = ("--config-dir", "-cd")  # Hydra's options for a further folder of configurations


def resume_sweep(arguments: Sequence[str]) -> list[str]:
    """In the place of resume_sweep=DIR, what makes Hydra go on with the sweep in that folder.

    Alone, it is the whole sweep as it was typed; with overrides, the sweep that they make, of which
    the folder has some jobs. Hydra's own options (`hydra/launcher=…`) stay unless typed anew.

    Raises:
        UserError: if the folder has no sweep.
    """
    others = [argument for argument in arguments if not argument.startswith("resume_sweep=")]
    if len(others) == len(arguments):
        return others
    value = next(a for a in reversed(arguments) if a not in others).partition("=")[2].strip("'\"")
    folder = Path(value).expanduser()
    if not value or not (folder / "multirun.yaml").is_file():
        raise UserError(
            f"resume_sweep={value}: no sweep's folder, which has a multirun.yaml. As in: "
            "resume_sweep=runs/train/<date>_<time>_sweep"
        )
    # Options first, and what belongs to them: Hydra takes overrides in one stretch alone.
    options, typed = _options_and_overrides(others)
    if not is_sweep(options):
        options.insert(0, "-m")
    names = {option.partition("=")[0] for option in options}
    if not names & set(CONFIG_DIR) and (place := read_config_dir(folder)):
        options += [CONFIG_DIR[0], place]
    left_out = {"hydra.mode", "hydra.sweep.dir", "hydra.sweeper.resume"}
    left_out |= {key_of(argument) for argument in typed}
    recorded = [o for o in read_sweep(folder, "hydra") if key_of(o) not in left_out]
    if "hydra/launcher" in left_out:  # another launcher has other options
        recorded = [o for o in recorded if not key_of(o).startswith("hydra.launcher.")]
    jobs = [] if any(not a.startswith("hydra") for a in typed) else read_sweep(folder)
    goes_on = [f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweeper.resume=true"]
    return [*options, *recorded, *jobs, *typed, *goes_on]


def resume_auto(arguments: Sequence[str]) -> list[str]:
    """In the place of resume=auto, the last checkpoint of the newest run with these overrides.

    Of those that are not finished, and that no process works on; without any, the run is a new one.
    They are looked for where the run would have its folder.

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
    """The last checkpoint of such a run."""
    options, overrides = _options_and_overrides(arguments)
    place = [o.partition("=")[2].strip("'\"") for o in options if o.startswith(CONFIG_DIR)]
    place += [after for o, after in pairwise(options) if o in CONFIG_DIR]
    further = [f"hydra.searchpath=[{quoted(folder)}]" for folder in place if folder]
    config = compose([*prepare_arguments(overrides), *further])
    typed = {*as_typed(config)}
    usual = DEBUGGING if config.choices.debug else RUNS
    started = processes.launch()
    alone = started is None or started.total == 1  # several must choose the same
    folders = sorted(_candidates(overrides, usual), key=lambda folder: folder.age, reverse=True)
    for folder in folders:
        run = folder.read()
        later = {o for some in run.resumed for o in some if key_of(o) != "resume"}
        if (
            folder.can_be_resumed()
            and {*run.overrides} == typed
            and later <= typed
            and not (alone and folder.is_locked())
        ):
            return folder.last
    return None


def _candidates(overrides: Sequence[str], usual: Path) -> list[RunFolder]:
    """The folders that the run could have begun in: below the usual one, if none was typed."""
    typed = [o.partition("=")[2].strip("'\"") for o in overrides if key_of(o) == "hydra.run.dir"]
    if typed and "${" not in typed[-1]:
        return [RunFolder(Path(typed[-1]).expanduser())]
    place = Path(typed[-1]).expanduser().parent if typed else usual
    return [RunFolder(folder) for folder in place.glob("*") if folder.is_dir()]


def in_run_folder(arguments: Sequence[str]) -> list[str]:
    """Have Hydra use the folder of the run that resume=PATH names.

    Raises:
        UserError: if the checkpoint is not there, or not in its run's folder.
    """
    found = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "resume" and value not in ("", "null"):
            folder = RunFolder.to_resume(Path(value.strip("'\"")).expanduser()).path
            # .hydra/ keeps what the run began with; the run's own record tells of its resumes.
            found += [f"hydra.run.dir={quoted(str(folder))}", "hydra.output_subdir=null"]
        found.append(argument)
    return found


def _options_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's options with what belongs to them, and the overrides."""
    options: list[str] = []
    overrides: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_override = "=" in argument or argument.startswith("~")
        of_option = argument.startswith("-") or before in CONFIG_DIR or not is_override
        (options if of_option else overrides).append(argument)
    return options, overrides
