"""Begins a W&B run: online, offline, or not at all."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning.utilities import rank_zero_only

from cifar_lightning.tracking.wandb.logger import BoardLogger
from cifar_lightning.tracking.wandb.messages import Messages
from cifar_lightning.tracking.wandb.service import end_service

if TYPE_CHECKING:
    import wandb  # the package works without it, with logger=csv

Mode = Literal["auto", "online", "offline", "disabled"]

log = logging.getLogger(__name__)

SECONDS_TO_BEGIN = 20  # that a server has to answer in
LONGEST_TAG = 64  # characters, on W&B


@rank_zero_only
def open_board(
    mode: Mode = "auto",
    project: str = "cifar-lightning",
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    name: str | None = None,
    notes: str | None = None,
    tags: Sequence[str | None] = (),
    run_id: str | None = None,
    save_dir: str = "runs",
    log_code: bool = True,
    log_images: bool = True,
    log_checkpoint: bool = True,
    finish_timeout: float = 60.0,
) -> BoardLogger | None:
    """Begin or continue a W&B run.

    Args:
        mode: `auto` is online where the user is logged in, else offline; the environment variable
            WANDB_MODE, where set, decides instead. `online` warns where nobody is logged in.
        project: of the board.
        entity: the user or team that the project belongs to; None is the user's default.
        group: what the board shows together, such as the runs of a sweep.
        job_type: what kind of work it is.
        name: of the run on the board.
        notes: on the run.
        tags: words to filter runs by; None among them is left out.
        run_id: of the run to continue, or of the new one; None draws one.
        save_dir: W&B's files go to its folder `wandb`.
        log_code: whether the board gets the commit, and what differs from it.
        log_images: whether it gets pictures, and the mistakes with their images.
        log_checkpoint: whether it gets the best checkpoint.
        finish_timeout: seconds to wait at the end for what is not uploaded yet.

    Returns:
        None with `disabled`, or if W&B could not begin the run at all; that is a warning.

    Raises:
        ValueError: if `mode` is none of the four, or `finish_timeout` not above 0.
    """
    wanted = _wanted(mode)
    if finish_timeout <= 0:
        raise ValueError(f"finish_timeout must be above 0 seconds, not {finish_timeout}")
    if wanted == "disabled":
        return None
    messages = Messages()
    settings = _settings(finish_timeout)
    online = wanted != "offline" and _can_be_online(settings, messages, wanted == "online")
    # W&B's reports on itself, whose failures are of no interest.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    # The server may be down: then offline, and `wandb sync` uploads the run later.
    attempts: list[Literal["online", "offline"]] = ["online", "offline"] if online else ["offline"]
    for attempt in attempts:
        try:
            run = _begin(
                attempt,
                save_dir,
                settings,
                messages,
                project=project,
                entity=entity,
                group=group,
                job_type=job_type,
                name=name,
                notes=notes,
                tags=list(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags if tag)),
                id=run_id,
            )
        except Exception as error:  # whatever W&B meets, the training is worth more
            _say_that_not(attempt, error)
        else:
            return BoardLogger(run, messages, log_code, log_images, log_checkpoint)
    return None


def _wanted(mode: Mode) -> str:
    """What was typed, or with `auto` what the environment says."""
    if mode not in ("auto", "online", "offline", "disabled"):
        raise ValueError(f"mode must be auto, online, offline or disabled, not {mode!r}")
    wanted = os.environ.get("WANDB_MODE", "auto") if mode == "auto" else mode
    return {"dryrun": "offline", "run": "online"}.get(wanted, wanted)  # W&B's older names


def _begin(
    mode: Literal["online", "offline"],
    save_dir: str,
    settings: "wandb.Settings",
    messages: Messages,
    **description: Any,
) -> "wandb.Run":
    """Begin or continue a run.

    Args:
        mode: of it.
        save_dir: gets W&B's folder.
        settings: of W&B in this process.
        messages: take what W&B would print.
        description: of the run, as `wandb.init` takes it.

    Raises:
        Exception: of any kind, whatever W&B meets.
    """
    import wandb

    Path(save_dir).mkdir(parents=True, exist_ok=True)
    wandb.setup()
    wandb.termsetup(settings, messages)
    return wandb.init(
        mode=mode,
        resume="allow",
        reinit="create_new",  # whatever other run this process has open
        # Absolute: W&B's own process keeps the working directory that it began with.
        dir=str(Path(save_dir).absolute()),
        settings=settings,
        **description,
    )


def _settings(finish_timeout: float) -> "wandb.Settings":
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",  # the run's folder has its own log
        # Names and paths of the machine are nobody's business; which code it is, `log_code` says.
        x_disable_meta=True,
        host="",
        program="cifar_lightning",
        disable_git=True,
        disable_code=True,
        init_timeout=SECONDS_TO_BEGIN,
        finish_timeout=finish_timeout,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=2.0,  # seconds; what a killed run has not on the disk
    )


def _can_be_online(settings: "wandb.Settings", messages: Messages, was_typed: bool) -> bool:
    """Whether somebody is logged in; says it if nobody is though online was typed."""
    try:
        if _is_logged_in(settings, messages):
            return True
        if was_typed:
            log.warning("W&B: not logged in (wandb login), so this run is offline.")
    except Exception as error:  # a malformed key, no network: neither may stop a training
        _say_that_not("online", error)
    return False


def _say_that_not(mode: str, error: Exception) -> None:
    """Say that a run could not begin, and what comes instead."""
    then = "; it is offline" if mode == "online" else ", so there is no board"
    log.warning("W&B could not begin a run %s%s: %s", mode, then, error)
    end_service()


def _is_logged_in(settings: "wandb.Settings", messages: Messages) -> bool:
    """Whether there are credentials, without asking for any.

    Raises:
        Exception: of any kind, if the server does not answer or refuses them.
    """
    import wandb

    # With WANDB_MODE=offline it would answer no, but what is typed goes before that.
    wandb.setup().settings.mode = "online"
    wandb.termsetup(settings, messages)
    return bool(wandb.login(prompt=False))
