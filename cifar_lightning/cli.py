"""Hydra's main with messages that help; imports no torch, so it answers at once."""

import contextlib
import difflib
import errno
import logging
import os
import re
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning import processes
from cifar_lightning.errors import UserError
from cifar_lightning.jobs import Ask, JobDied, JobFailed, Surroundings, alone_in, run_job
from cifar_lightning.places import names_a_place
from cifar_lightning.runs import read_config_dir, read_sweep

PACKAGE = Path(__file__).resolve().parent
# Inside the package where it was installed, beside it in a checkout.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

# Paths that people type: Hydra's grammar wants them quoted where they hold =, spaces or brackets.
PATH_KEYS = (
    "checkpoint",
    "data.cache_dir",
    "data.mirror",
    "data.path",
    "data.root",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "images",
    "logger.wandb.save_dir",
    "output",
    "resume",
    "run",
    "storage",
)

# Overrides that a run's title has in other words, that do not change what is trained, or that every
# trial of a search has.
NOT_IN_TITLE = (
    *("data", "experiment", "seed", "trainer", "trainer.gpus", "trainer.num_nodes"),
    *("target_accuracy", "trainer.limit_test_batches"),
)
LONGEST_TITLE = 100  # W&B has room for 128

CONFIG_DIR = ("--config-dir", "-cd")  # Hydra's options for a further folder of configurations

log = logging.getLogger(__name__)

SECONDS_FOR_THE_FIRST = 5  # to come to the same mistake; torchrun then ends the others

SET_BY_US = "CIFAR_LIGHTNING_SETS_FULL_ERROR"

# What ends in one message; anything else is a fault of ours or of a network, with its traceback.
# OSError too: it is the disk's or the machine's, and its message says where to find the traceback.
MISTAKES = (UserError, JobFailed, CompactHydraException, OmegaConfBaseException, OSError)

# conf/hydra/launcher/submitit_slurm.yaml goes before the plugin's values, which is what it is for.
warnings.filterwarnings(
    "ignore", message=r"\s*'hydra/launcher/submitit_slurm' is validated against"
)

OmegaConf.register_new_resolver(
    "run_name",
    lambda experiment, model: re.sub(r"[^\w.-]+", "-", str(experiment or model)),
    replace=True,
)


def title(choices: Mapping[str, Any], seed: int, overrides: Sequence[str]) -> str:
    """A run's name on W&B: what it trains, what was typed that changes it, and its seed."""
    experiment, model = choices.get("experiment"), str(choices.get("model"))
    words = [experiment or model]
    for override in overrides:
        key = _key_of(override)
        said = key in NOT_IN_TITLE or (key == "model" and not experiment)
        if not said and not key.startswith("hydra") and not names_a_place(override):
            words.append(override.lstrip("+"))
    name, ending = " ".join(words), f" seed {seed}"
    room = LONGEST_TITLE - len(ending)
    return (name if len(name) <= room else f"{name[: room - 1]}…") + ending


OmegaConf.register_new_resolver("title", title, replace=True)


def entry(config_name: str, task: Callable[[DictConfig], Any]) -> Callable[[], None]:
    """The command-line program of a task.

    Args:
        config_name: the file in conf/ whose configuration the task takes.
        task: gets the configuration as `compose` gives it.
    """
    # The processes of other devices inherit the variable, which `main` sets for reasons of its own.
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1" and SET_BY_US not in os.environ

    def exit_with(error: Exception) -> NoReturn:
        # What the disk refuses one process it may not refuse another.
        typed = isinstance(error, UserError | CompactHydraException | OmegaConfBaseException)
        if typed and not processes.is_first():
            _let_the_first_speak()
        sys.exit(f"\nError: {explain(error, config_name, sys.argv[1:])}")  # exit code 1

    def job(config: DictConfig) -> Any:
        hydra_config = HydraConfig.get()
        is_of_sweep = hydra_config.mode == RunMode.MULTIRUN
        sweep = Path(hydra_config.sweep.dir).absolute().name if is_of_sweep else None
        _complete(config, hydra_config, hydra_config.runtime.output_dir, sweep)
        if is_of_sweep:
            return _run_apart(config_name, config, hydra_config)
        try:
            return task(config)
        except MISTAKES as error:
            if not full_error:
                exit_with(error)
            raise

    def main() -> None:
        _register_sweeper()
        # Hydra then hands exceptions on to us instead of printing them its own way.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        if not full_error:
            os.environ[SET_BY_US] = "1"
        try:
            if config_name == "train":
                sys.argv[1:] = resume_sweep(sys.argv[1:])
            sys.argv[1:] = prepare_arguments(sys.argv[1:])
            started = processes.launch()
            if started is not None and started.total > 1 and _is_sweep(sys.argv[1:]):
                raise UserError(
                    f"{started.by} starts the processes of one training: leave -m out. A sweep "
                    "whose jobs have several devices is hydra/launcher=submitit_slurm's."
                )
            if not processes.is_first():
                sys.argv[1:] += _write_nothing(sys.argv[1:])
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
        except KeyboardInterrupt:
            sys.exit(130)  # as shells report it
        except SystemExit as ending:
            if ending.code == 2:  # argparse has said which option it does not know
                sys.exit(1)
            raise
        except MISTAKES as error:
            if full_error:
                raise
            exit_with(error)
        finally:
            if not full_error:
                del os.environ["HYDRA_FULL_ERROR"], os.environ[SET_BY_US]

    return main


def _register_sweeper() -> None:
    """Hydra looks for plugins in folders, which an editable install has not."""
    plugins = Plugins.instance()
    # Not before Hydra has looked: it executes the modules that it finds, its own too, once more.
    from hydra_plugins.cifar_lightning_sweeper import GridSweeper

    plugins.register(GridSweeper)


def _run_apart(config_name: str, config: DictConfig, hydra_config: Any) -> Any:
    """Run a job of a sweep in a process of its own: whatever ends it, the others go on."""
    launcher = hydra_config.launcher
    at_once = launcher.get("n_jobs", 1)  # a count, which the sweeper has made of -1
    # Submitit starts a job again that was preempted, or ran out of its time.
    goes_on = hydra_config.sweeper.get("resume", False) or "SUBMITIT_EXECUTOR" in os.environ
    surroundings = Surroundings(
        threads=launcher.get("cpus_per_task"),  # joblib divides the cores by OMP_NUM_THREADS
        own_gpu=OmegaConf.select(config, "trainer.gpus") in ("auto", 1),
        output=None if at_once == 1 else Path(config.run_dir, "output.log"),
        log=OmegaConf.to_container(hydra_config.job_logging, resolve=True),  # type: ignore[arg-type]
    )
    ending = "failed"
    # The jobs of other commands share a folder; of a job of several processes the first has it.
    in_its_own = config_name == "train" and processes.is_first()
    try:
        with alone_in(Path(config.run_dir)) if in_its_own else contextlib.nullcontext():
            if config_name == "train":
                _go_on(config, goes_on)
            # Plain: Hydra executes its plugins' modules twice, whose classes no pickle can tell.
            plain = OmegaConf.to_container(hydra_config)
            result = run_job(partial(_work, config_name, config, plain), surroundings)
        ending = "finished"
    except JobDied as error:  # what it raised, it has logged itself
        log.error(str(error))
        raise
    finally:
        if surroundings.output is not None:  # which nobody watches
            print(f"{ending:<11}{config.run_dir}", flush=True)
    return result


def _go_on(config: DictConfig, allowed: bool) -> None:
    """Have a job go on from the last checkpoint in its folder, if there is one.

    Raises:
        JobFailed: if there is one that it may not go on from.
    """
    last = Path(config.run_dir, "checkpoints", "last.ckpt")
    if not last.is_file():
        return
    if not allowed:
        raise JobFailed(
            f"{config.run_dir} has a run already, which was left as it is: of another job with the "
            "same hydra.sweep.subdir, or of another process that works on this sweep."
        )
    # With the checkpoint's configuration, which is this one.
    config.resume, config.overrides = str(last), []


def _work(config_name: str, config: DictConfig, hydra_config: Any, ask: Ask) -> Any:
    setup_globals()  # for `${now:…}` and `${hydra:…}` in what was typed
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": hydra_config})  # type: ignore[assignment]
    return run_task(config_name, config)


def run_task(config_name: str, config: DictConfig, **options: Any) -> Any:
    """Do what a command does, in a process of its own; what goes wrong is logged there.

    Args:
        config_name: the command.
        config: for it.
        options: further arguments of its function.

    Raises:
        JobFailed: with the message that the command line would show.
    """
    # By its name: in the program that was typed, the task is one of `__main__`.
    task = resolve_name(f"cifar_lightning.{config_name}:{config_name}")
    try:
        return task(config, **options)
    except Exception as error:
        message = explain(error, config_name)
        log.error(message, exc_info=not isinstance(error, MISTAKES))
        raise JobFailed(message) from None


def compose(
    overrides: Sequence[str] = (),
    run_dir: str | Path | None = None,
    config_name: str = "train",
    sweep: str | None = None,
) -> DictConfig:
    """The configuration that the command line would give, for notebooks and tests.

    Args:
        overrides: as typed after the command.
        run_dir: the run's folder; by default a new one below runs/.
        config_name: the file in conf/.
        sweep: the name of the sweep or search that it is a run of.
    """
    running = GlobalHydra.instance().is_initialized()  # a command composes for others, as a search
    with (
        contextlib.nullcontext()
        if running
        else hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF))
    ):
        config = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    hydra_config = config.hydra
    if run_dir is None:
        run_dir = f"runs/{config_name}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_composed"
    with open_dict(config):
        del config["hydra"]
    _complete(config, hydra_config, run_dir, sweep)
    return config


def _complete(
    config: DictConfig, hydra_config: Any, run_dir: str | Path, sweep: str | None
) -> None:
    """Add what only Hydra knows: options chosen, overrides typed, the run's folder and names."""
    choices = hydra_config.runtime.choices
    with open_dict(config):
        config.choices = {g: o for g, o in choices.items() if not str(g).startswith("hydra/")}
        config.overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        config.sweep = sweep
        folder = Path(run_dir).absolute()
        config.run_dir = str(folder)
        # Names the run elsewhere too, as on W&B; in a sweep's folder the jobs are mere numbers.
        name = f"{folder.parent.name}-{folder.name}" if folder.name.isdigit() else folder.name
        # A folder may be used twice, a name on W&B may not.
        config.run_id = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}-{secrets.token_hex(3)}"


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Quote paths for Hydra's grammar; let a resumed run go on in its own folder.

    Raises:
        UserError: if a path is empty, the checkpoint to resume does not exist, a group is given no
            option, or there is a space before an equals sign.
    """
    is_sweep = _is_sweep(arguments)
    prepared = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if not equals and not before.startswith("-") and Path(argument).exists():
            raise UserError(
                f"{argument}: nothing says what this file is for. Arguments are KEY=VALUE; for "
                "several images, images=FOLDER or a pattern in quotes, images='photos/*.png'."
            )
        if equals and not key:
            raise UserError(f"{argument}: no space belongs before the equals sign.")
        if argument == "experiment=null":
            continue  # as it is without; Hydra does not take it
        if "null" in value.split(",") and key and (CONF / key).is_dir():
            options = ", ".join(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
            raise UserError(f"{argument}: this group needs an option: {options}.")
        if equals and key.lstrip("+") in PATH_KEYS and value != "null":
            if not value:
                raise UserError(f"{argument} names no file or folder.")
            if key == "resume":
                prepared += _in_the_folder_of(Path(value.strip("'\"")).expanduser())
            of_a_sweep = is_sweep and "," in value and not Path(value).exists()
            if value[0] not in ("'", '"') and not of_a_sweep:
                # Not pathlib's, which would make one slash of two in an address.
                argument = f"{key}={_quoted(os.path.expanduser(value))}"  # noqa: PTH111
        prepared.append(argument)
    return prepared


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
    options: list[str] = []
    typed: list[str] = []
    for before, argument in zip(["", *others], others, strict=False):
        of_option = argument.startswith("-") or before in CONFIG_DIR
        (options if of_option else typed).append(argument)
    if not _is_sweep(options):
        options.insert(0, "-m")
    names = {option.partition("=")[0] for option in options}
    if not names & set(CONFIG_DIR) and (place := read_config_dir(folder)):
        options += [CONFIG_DIR[0], place]
    left_out = {"hydra.mode", "hydra.sweep.dir", "hydra.sweeper.resume"}
    left_out |= {_key_of(argument) for argument in typed}
    recorded = [o for o in read_sweep(folder, "hydra") if _key_of(o) not in left_out]
    if "hydra/launcher" in left_out:  # another launcher has other options
        recorded = [o for o in recorded if not _key_of(o).startswith("hydra.launcher.")]
    jobs = [] if any(not a.startswith("hydra") for a in typed) else read_sweep(folder)
    goes_on = [f"hydra.sweep.dir={_quoted(str(folder))}", "hydra.sweeper.resume=true"]
    return [*options, *recorded, *jobs, *typed, *goes_on]


def _is_sweep(arguments: Sequence[str]) -> bool:
    return any(a == "-m" or a.startswith("--multi") for a in arguments)


def _key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _quoted(value: str) -> str:
    """In single quotes; before a quote, a backslash would be an escape, so it is doubled there."""
    escaped = re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'")
    return f"'{escaped}'"


def _in_the_folder_of(checkpoint: Path) -> list[str]:
    if checkpoint.is_dir():
        last = checkpoint / "checkpoints" / "last.ckpt"
        raise UserError(f"resume={checkpoint} is a folder. Name a checkpoint, such as {last}.")
    if not checkpoint.is_file():
        raise UserError(f"resume={checkpoint}: there is no such file.")
    folder = checkpoint.absolute().parent
    if folder.name != "checkpoints":
        return []  # moved away from its run: the resumed run gets a folder of its own
    return [
        f"hydra.run.dir={_quoted(str(folder.parent))}",
        # .hydra/ keeps the configuration that the run began with.
        f"hydra.output_subdir=.hydra/resumed_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}",
    ]


def _write_nothing(arguments: Sequence[str]) -> list[str]:
    """Overrides for a process that is not the first: the run's folder and its log are of that one.

    Each of torchrun's and srun's processes is a command of its own, with a time of its own in the
    name that its run folder would have.
    """
    same_for_all = any(a.startswith("hydra.run.dir=") and "${" not in a for a in arguments)
    folder = [] if same_for_all else ["hydra.run.dir=."]
    return [*folder, "hydra.output_subdir=null", "hydra/job_logging=terminal"]


def _let_the_first_speak() -> None:
    """Wait for the end that the first process's mistake brings; return if it has made none.

    A mistake in what was typed is every process's. What is wrong on one machine alone, as the
    number of its GPUs, is said late, but it is said.
    """
    if processes.launch() is None:
        sys.exit(1)  # Lightning's, on the machine of the first
    time.sleep(SECONDS_FOR_THE_FIRST)


def explain(error: Exception, config_name: str, arguments: Sequence[str] = ()) -> str:
    """One message for a mistake, with the nearest valid names where a name is wrong.

    Args:
        error: what ended the command.
        config_name: the file in conf/.
        arguments: what was typed; the options chosen in it decide which names are valid.
    """
    if isinstance(error, OSError) and not isinstance(error, CompactHydraException):
        return _explain_os(error, config_name)
    message = str(error).strip()
    if isinstance(error, UserError):
        if isinstance(error.__cause__, TypeError | ValueError):  # perhaps a fault in a network
            message += "\nHYDRA_FULL_ERROR=1 shows where it was raised."
        return message
    if cause := error.__cause__:
        message += f"\n{cause}"
    lines = [line for line in message.splitlines() if "object_type=" not in line]
    if found := re.search(r"Could not find '([^']*)/([^'/]+)'", message):
        listed = message.partition("Available options")[2].partition("Config search path")[0]
        options = [line.strip() for line in listed.splitlines()[1:] if line.strip()]
        known = f" The options of {found[1]}: {', '.join(options)}." if options else ""
        return f"There is no {found[1]}={found[2]}.{known}" + _nearest(found[2], options)
    if found := re.search(r"Could not override '([^'@]+)'", message):
        return f"There is no {found[1]!r} in the configuration.{_elsewhere(found[1])}" + _nearest(
            found[1], _known_names(config_name, arguments)
        )
    return "\n".join(lines)


def _explain_os(error: OSError, config_name: str) -> str:
    """What the operating system refuses, and where the files of a run can go instead."""
    place = error.filename2 or error.filename
    where = f" ({place})" if place else ""
    training = config_name == "train"
    option = "hydra.run.dir=FOLDER puts the run" if training else "output=PATH puts what is written"
    elsewhere = {"predict": f"{option} elsewhere.", "report": ""}.get(
        config_name,
        f"{option} elsewhere, data.root=FOLDER the official files and data.cache_dir=FOLDER the "
        "decoded images.",
    )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        resume = ", with resume=LAST_CHECKPOINT if there is one" * training
        return (
            f"The disk is full{where}. What was saved before is whole. Free some space and start "
            f"again{resume}{f'; or {elsewhere}' if elsewhere else '.'}"
        )
    shown = "HYDRA_FULL_ERROR=1 shows where it was met."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
        return f"{error.strerror}{where}. {elsewhere}\n{shown}"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"A file is where a folder is needed{where}. {elsewhere}\n{shown}"
    return f"{error}\n{shown}"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if not close:  # right in the last part, wrong in the way there
        last = name.rpartition(".")[2]
        close = [k for k in known if k.rpartition(".")[2] == last][:3]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"{hint}\n--cfg job shows the whole configuration; +KEY=VALUE adds a new key."


def _elsewhere(name: str) -> str:
    """Where a key stands in another option of its group, as `data.path` does in data=folder."""
    group, _, key = name.partition(".")
    options = [
        path.stem for path in sorted((CONF / group).glob("*.yaml")) if key in OmegaConf.load(path)
    ]
    return f" It belongs to {' and '.join(f'{group}={o}' for o in options)}." if options else ""


def _known_names(config_name: str, arguments: Sequence[str]) -> list[str]:
    """All groups and keys, with the options that were typed and exist."""
    chosen = []
    for argument in arguments:
        group, _, option = argument.partition("=")
        if (CONF / group / f"{option}.yaml").is_file():
            chosen.append(argument)
    config = compose(chosen, config_name=config_name)
    names = {str(group): None for group in config.choices}  # a dict keeps the order

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                names[f"{prefix}{key}"] = None
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(config), "")
    return list(names)
