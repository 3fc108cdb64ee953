"""The W&B logger: never asks, and never stops a training."""

import os
import shlex
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
        command = f"wandb leet {shlex.quote(os.path.relpath(Path(self.run.dir).parent))}"
        return command if self.run.offline else f"{self.run.url} or {command}"

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
            WANDB_MODE, where set, decides instead. `online` warns where nobody is logged in.
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

    attempts: list[Literal["online", "offline"]] = ["offline"]
    wanted = os.environ.get("WANDB_MODE", "auto") if mode == "auto" else mode
    if wanted == "disabled":
        return None
    if wanted != "offline":
        if _is_logged_in():
            # The server may be down: then offline, and `wandb sync` uploads the run later.
            attempts = ["online", "offline"]
        elif wanted == "online":
            warnings.warn("W&B: not logged in (wandb login), so this run is offline", stacklevel=2)
    for attempt in attempts:
        try:
            Path(save_dir).mkdir(parents=True, exist_ok=True)
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
                    # The run's folder has its own log; the machine's name is nobody's business.
                    settings=wandb.Settings(
                        silent=True, console="off", x_disable_meta=True, init_timeout=30
                    ),
                )
            )
        except Exception as error:  # whatever W&B meets, the training is worth more
            warnings.warn(f"W&B could not begin a run ({attempt}): {error}", stacklevel=2)
    return None


def _is_logged_in() -> bool:
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except Exception:  # a malformed key, no network: neither may stop a training
        return False
