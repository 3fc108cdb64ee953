"""A command's work in a process of its own, as a job of a sweep is."""

import contextlib
import logging
import os
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.config.messages import explain
from cifar_lightning.errors import UserError
from cifar_lightning.system import processes
from cifar_lightning.system.jobs import Ask, JobDied, JobFailed, Surroundings, run_job
from cifar_lightning.system.locks import alone_in
from cifar_lightning.tracking.run_folder import RunFolder

log = logging.getLogger(__name__)

# What ends in one message; anything else is a fault of ours or of a network, with its traceback.
# OSError too: it is the disk's or the machine's, and its message says where to find the traceback.
MISTAKES = (UserError, JobFailed, CompactHydraException, OmegaConfBaseException, OSError)


def run_apart(config_name: str, config: DictConfig, hydra_config: Any) -> Any:
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
    last = RunFolder(Path(config.run_dir)).last
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
