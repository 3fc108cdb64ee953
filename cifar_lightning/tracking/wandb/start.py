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
    import wandb  # optional: not needed with logger=csv

log = logging.getLogger(__name__)

INIT_TIMEOUT = 20  # seconds
MAX_TAG_LENGTH = 64  # characters, on W&B
MAX_NAME_LENGTH = (
    100  # characters of groups and ids; artifact names, which contain ids, have up to 128
)


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
        mode: `auto` is online if the user is logged in, and else offline; if the environment
            variable WANDB_MODE is set, it decides instead. `online` warns if nobody is logged in.
        project: of the W&B run.
        entity: the user or team that the project belongs to; None is the user's default.
        group: name of a group of runs, such as those of a sweep; shortened, like `run_id`, to the
            length that W&B allows.
        job_type: the kind of run, such as `train`.
        name: of the run on W&B.
        notes: a description of the run.
        tags: for filtering runs; None is left out.
        run_id: of the run to resume or to create; None for a random one.
        save_dir: the folder in which W&B creates its folder `wandb`.
        run_dir: the run folder; if `save_dir` is not writable, `wandb` is created beside it.
        log_code: whether to log the commit and the uncommitted changes.
        log_images: whether to log the plots, and the most confident mistakes with their images.
        log_checkpoint: whether to log the best checkpoint.
        finish_timeout: seconds to wait at the end for uploads.

    Returns:
        The logger; None with `disabled`, or if W&B cannot start a run, after a warning.

    Raises:
        ValueError: if `finish_timeout` is not positive.
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

    # W&B's telemetry, whose failures do not matter.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    messages = Messages()
    settings = _settings(finish_timeout)
    online = wanted not in ("offline", "dryrun") and _is_logged_in(settings, messages)
    if wanted == "online" and online is False:
        log.warning("W&B: not logged in, so this run is offline. To log in, type wandb login.")
    # If the server is down, the run is offline, and `wandb sync` can upload it later.
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
                id=run_id and run_id[-MAX_NAME_LENGTH:],  # the end, which is random
                resume="allow",
                reinit="create_new",  # even if this process has another run open
                # Absolute, because W&B's service process keeps its first working directory.
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
        console="off",  # the run folder has its own log
        # No names and paths of this machine; `log_code` logs the code.
        x_disable_meta=True,
        host="",
        program="cifar_lightning",
        disable_git=True,
        disable_code=True,
        init_timeout=INIT_TIMEOUT,
        finish_timeout=finish_timeout,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=2.0,  # seconds that a killed run loses at most
    )


def _is_logged_in(settings: "wandb.Settings", messages: Messages) -> bool | None:
    """Whether W&B has credentials, without a prompt; None if they are refused."""
    import wandb

    try:
        # With WANDB_MODE=offline W&B would answer no, but mode=online has precedence.
        wandb.setup().settings.mode = "online"
        wandb.termsetup(settings, messages)
        return bool(wandb.login(prompt=False))
    except (
        Exception
    ) as error:  # such as a malformed key or no network, which must not stop a training
        _warn_of_start("online", error)
        return None


def _warn_of_start(mode: str, error: Any) -> None:
    """Warn that a W&B run could not start, and say what happens instead."""
    then = ", so this run is offline" if mode == "online" else ", so this run has none"
    log.warning("W&B could not start an %s run%s: %s", mode, then, error)
    end_service()
