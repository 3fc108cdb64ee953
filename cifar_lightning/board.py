"""The W&B logger: never asks, and never stops a training."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

if TYPE_CHECKING:
    import wandb  # the package works without it, with logger=csv

Mode = Literal["auto", "online", "offline", "disabled"]


class BoardLogger(WandbLogger):
    """Lightning's W&B logger over a run that is open already; its failures become one warning.

    Args:
        run: what `wandb.init` returned.
    """

    def __init__(self, run: "wandb.Run") -> None:
        super().__init__(experiment=run, id=run.id, project=run.project)
        self.run = run
        self._failed = False

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Put the run's configuration on the board."""
        self._safely(super().log_hyperparams, params, *args, **kwargs)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Put one row of metrics on the board."""
        self._safely(super().log_metrics, metrics, step)

    def log_summary(self, values: dict[str, Any]) -> None:
        """Put the run's final figures on the board."""
        self._safely(self.run.summary.update, values)

    def log_picture(self, name: str, path: str) -> None:
        """Put a picture file on the board."""
        import wandb

        self._safely(lambda: self.run.log({name: wandb.Image(path)}))

    def how_to_open(self) -> str:
        """What to type, or where to look, to see the run."""
        if self.run.offline:
            return f"wandb leet {os.path.relpath(Path(self.run.dir).parent)}"
        return str(self.run.url)

    def close(self, exit_code: int = 0) -> None:
        """End the W&B run, so that the next job of this process begins its own."""
        self._safely(self.run.finish, exit_code)

    def _safely(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if self._failed:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # whatever W&B meets, the training is worth more
            self._failed = True
            warnings.warn(
                f"W&B failed and gets no more of this run; training goes on: {error}", stacklevel=2
            )


@rank_zero_only
def open_board(
    mode: Mode = "auto",
    project: str = "cifar-lightning",
    entity: str | None = None,
    group: str | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    run_id: str | None = None,
    save_dir: str = "runs",
) -> BoardLogger | None:
    """Begin or continue a W&B run.

    Args:
        mode: `auto` is online where the user is logged in, else offline; the environment variable
            WANDB_MODE, where set, decides instead.
        project: of the board.
        entity: the user or team that the project belongs to; None is the user's default.
        group: what the board shows together, such as the runs of a sweep.
        name: of the run on the board.
        tags: words to filter runs by.
        run_id: of the run to continue, or of the new one; None draws one.
        save_dir: W&B's files go to its folder `wandb`.

    Returns:
        None with `disabled`, or if W&B could not begin the run at all; that is a warning.

    Raises:
        ValueError: if `mode` is none of the four.
    """
    if mode not in ("auto", "online", "offline", "disabled"):
        raise ValueError(f"mode must be auto, online, offline or disabled, not {mode!r}")
    if mode == "disabled":
        return None
    import wandb

    attempts = [_automatic_mode() if mode == "auto" else mode]
    if attempts == ["disabled"]:
        return None
    if attempts == ["online"]:
        attempts.append("offline")  # the server may be down; `wandb sync` uploads the run later
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    for attempt in attempts:
        try:
            return BoardLogger(
                wandb.init(
                    mode=attempt,
                    project=project,
                    entity=entity,
                    group=group,
                    name=name,
                    tags=list(tags),
                    id=run_id,
                    resume="allow",
                    dir=save_dir,
                    # The run's folder has its own log; paths and host names stay on this machine.
                    settings=wandb.Settings(
                        silent=True, console="off", x_disable_meta=True, init_timeout=30
                    ),
                )
            )
        except Exception as error:  # whatever W&B meets, the training is worth more
            warnings.warn(f"W&B could not begin a run ({attempt}): {error}", stacklevel=2)
    return None


def _automatic_mode() -> Literal["online", "offline", "disabled"]:
    import wandb

    chosen = os.environ.get("WANDB_MODE")
    if chosen in ("online", "offline", "disabled"):
        return chosen  # type: ignore[return-value]
    try:
        logged_in = bool(wandb.login(prompt=False))
    except Exception:  # no credentials, a malformed key, no network: all mean offline
        logged_in = False
    return "online" if logged_in else "offline"
