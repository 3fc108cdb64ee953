"""Starts a W&B run: online, offline, or not at all."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning.utilities import rank_zero_only

from cifar_lightning.tracking.wandb.logger import WandbRunLogger
from cifar_lightning.tracking.wandb.service import Messages, end_service

if TYPE_CHECKING:
    import wandb  # the package works without it, with logger=csv

log = logging.getLogger(__name__)

INIT_TIMEOUT = 20  # seconds
MAX_TAG_LENGTH = 64  # characters, on W&B
MAX_NAME_LENGTH = 100  # characters, of groups and ids; artifacts, named by ids, have 128


@rank_zero_only
def start_run(
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    project: str = "cifar-lightning",
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    name: str | None = None,
    notes: str | None = None,
    tags: Sequence[str | None] = (),
    run_id: str | None = None,
    save_dir: str = "runs",
    run_dir: str | None = None,
    log_code: bool = True,
    log_images: bool = True,
    log_checkpoint: bool = True,
    finish_timeout: float = 60.0,
) -> WandbRunLogger | None:
    """Start or resume a W&B run.

    Args:
        mode: `auto` is online where the user is logged in, else offline; the environment variable
            WANDB_MODE, where set, decides instead. `online` warns where nobody is logged in.
        project: of the W&B run.
        entity: the user or team that the project belongs to; None is the user's default.
        group: of runs that W&B shows together, such as those of a sweep; it is cut to the length
            that W&B takes, as is `run_id`.
        job_type: the kind of run, as `train`.
        name: of the run on W&B.
        notes: a description of the run.
        tags: to filter runs by; None among them is left out.
        run_id: of the run to resume or to create; None makes one up.
        save_dir: the folder in which W&B makes its folder `wandb`.
        run_dir: the run's folder, beside which `wandb` is if nothing can be written to `save_dir`.
        log_code: whether to log the commit and the uncommitted changes.
        log_images: whether to log the plots, and the most confident mistakes with their images.
        log_checkpoint: whether to log the best checkpoint.
        finish_timeout: seconds to wait at the end for uploads.

    Returns:
        None with `disabled`, or, after a warning, if W&B cannot start a run.

    Raises:
        ValueError: if `finish_timeout` is not above 0.
    """
    if finish_timeout <= 0:
        raise ValueError(f"finish_timeout must be above 0 seconds, not {finish_timeout}")
    folder = Path(save_dir)
    if run_dir is not None and not _can_write(folder):
        folder = Path(run_dir).parent
    wanted = os.environ.get("WANDB_MODE", "auto") if mode == "auto" else mode
    if wanted == "disabled":
        return None
    import wandb

    # W&B's telemetry, whose failures are of no interest.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    messages = Messages()
    settings = _settings(finish_timeout)
    online = wanted not in ("offline", "dryrun") and _is_logged_in(settings, messages)
    if wanted == "online" and online is False:
        log.warning("W&B: not logged in (wandb login), so this run is offline.")
    # The server may be down: then offline, and `wandb sync` uploads the run later.
    attempts: list[Literal["online", "offline"]] = ["online", "offline"] if online else ["offline"]
    for attempt in attempts:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            wandb.setup()
            wandb.termsetup(settings, messages)
            run = wandb.init(
                mode=attempt,
                project=project,
                entity=entity,
                group=group and group[:MAX_NAME_LENGTH],
                job_type=job_type,
                name=name,
                notes=notes,
                tags=list(dict.fromkeys(tag[:MAX_TAG_LENGTH] for tag in tags if tag)),
                id=run_id and run_id[-MAX_NAME_LENGTH:],  # its end is a random number
                resume="allow",
                reinit="create_new",  # even if this process has another run open
                # Absolute: W&B's service process keeps the working directory of its start.
                dir=str(folder.absolute()),
                settings=settings,
            )
        except Exception as error:  # no failure of W&B may end a training
            _warn_of_start(attempt, error)
        else:
            return WandbRunLogger(run, messages, log_code, log_images, log_checkpoint)
    return None


def _can_write(folder: Path) -> bool:
    """Whether files can be written to a folder, which need not exist yet."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return os.access(existing, os.W_OK)


def _settings(finish_timeout: float) -> "wandb.Settings":
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",  # the run's folder has its own log
        # Without names and paths of the machine; `log_code` logs the code.
        x_disable_meta=True,
        host="",
        program="cifar_lightning",
        disable_git=True,
        disable_code=True,
        init_timeout=INIT_TIMEOUT,
        finish_timeout=finish_timeout,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=2.0,  # seconds, the most that a killed run loses
    )


def _is_logged_in(settings: "wandb.Settings", messages: Messages) -> bool | None:
    """Whether W&B has credentials, without asking for them; None if they are refused."""
    import wandb

    try:
        # With WANDB_MODE=offline W&B would say no, but mode=online takes precedence.
        wandb.setup().settings.mode = "online"
        wandb.termsetup(settings, messages)
        return bool(wandb.login(prompt=False))
    except Exception as error:  # a malformed key, no network: neither may stop a training
        _warn_of_start("online", error)
        return None


def _warn_of_start(mode: str, error: Any) -> None:
    """Warn that a run could not start, and what happens instead."""
    then = "; it is offline" if mode == "online" else ", so there is none"
    log.warning("W&B could not start a run %s%s: %s", mode, then, error)
    end_service()
