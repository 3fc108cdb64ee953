"""A command's work in a process of its own, as a job of a sweep is."""

import contextlib
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.config.messages import explain
from cifar_lightning.errors import UserError
from cifar_lightning.system import processes
from cifar_lightning.system.jobs import JobDied, JobEnvironment, JobFailed, run_job
from cifar_lightning.system.locks import run_lock
from cifar_lightning.tracking.run_folder import RunFolder

log = logging.getLogger(__name__)

# What ends in one message; anything else is a fault of ours or of a network, with its traceback.
# OSError too: it is the disk's or the machine's, and its message says where to find the traceback.
MISTAKES = (UserError, JobFailed, CompactHydraException, OmegaConfBaseException, OSError)


def run_apart(
    task: Callable[[DictConfig], Any], config_name: str, config: DictConfig, hydra_config: Any
) -> Any:
    """Run a job of a sweep in a process of its own: whatever ends it, the others go on."""
    launcher = hydra_config.launcher
    at_once = launcher.get("n_jobs", 1)  # a count, which the sweeper has made of -1
    # Submitit starts a job again that was preempted, or ran out of its time.
    goes_on = hydra_config.sweeper.get("resume", False) or "SUBMITIT_EXECUTOR" in os.environ
    environment = JobEnvironment(
        threads=launcher.get("cpus_per_task"),  # joblib divides the cores by OMP_NUM_THREADS
        own_gpu=OmegaConf.select(config, "trainer.gpus") in ("auto", 1),
        output=None if at_once == 1 else Path(config.run_dir, "output.log"),
        log=OmegaConf.to_container(hydra_config.job_logging, resolve=True),  # type: ignore[arg-type]
    )
    ending = "failed"
    # The jobs of other commands share a folder; of a job of several processes the first has it.
    in_its_own = config_name == "train" and processes.is_first()
    try:
        with run_lock(Path(config.run_dir)) if in_its_own else contextlib.nullcontext():
            if config_name == "train":
                _go_on(config, goes_on)
            # Plain: Hydra executes its plugins' modules twice, whose classes no pickle can tell.
            plain = OmegaConf.to_container(hydra_config)
            result = run_job(partial(_work, task, config_name, config, plain), environment)
        ending = "finished"
    except JobDied as error:  # what it raised, it has logged itself
        log.error(str(error))
        raise
    finally:
        if environment.output is not None:  # which nobody watches
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


def _work(
    task: Callable[[DictConfig], Any], config_name: str, config: DictConfig, hydra_config: Any
) -> Any:
    setup_globals()  # for `${now:…}` and `${hydra:…}` in what was typed
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": hydra_config})  # type: ignore[assignment]
    return run_task(task, config_name, config)


def run_task(task: Callable[[DictConfig], Any], config_name: str, config: DictConfig) -> Any:
    """Run a command's function in the process of a job; its errors are logged there.

    Args:
        task: the function.
        config_name: of the command, for its messages.
        config: for it.

    Raises:
        JobFailed: with the message that the command line would show.
    """
    try:
        return task(config)
    except Exception as error:
        message = explain(error, config_name)
        log.error(message, exc_info=not isinstance(error, MISTAKES))
        raise JobFailed(message) from None
