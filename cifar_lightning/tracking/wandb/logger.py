"""What goes to W&B, and how."""

import contextlib
import logging
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import WandbLogger

from cifar_lightning.tracking.wandb.content import save_shareable, searchable
from cifar_lightning.tracking.wandb.messages import Messages
from cifar_lightning.tracking.wandb.service import end_service
from cifar_lightning.tracking.wandb.source import code_state

if TYPE_CHECKING:
    import numpy as np
    import wandb  # the package works without it, with logger=csv
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

FULL = 64 * 1024  # bytes left on a disk, below which something was not written
LONGEST_NAME = 128  # of an artifact on W&B


class BoardLogger(WandbLogger):
    """Lightning's W&B logger over a run that is open already; its failures become one warning.

    Metrics stand over `epoch`. A validation's step is that of the optimizer.

    Args:
        run: what `wandb.init` returned.
        messages: what W&B says while the run is open.
        log_code: whether `log_code` does anything.
        log_images: whether `log_pictures` and `log_images` do anything.
        log_checkpoint: whether `log_checkpoint` does anything.
    """

    def __init__(
        self,
        run: "wandb.Run",
        messages: Messages,
        log_code: bool = True,
        log_images: bool = True,
        log_checkpoint: bool = True,
    ) -> None:
        super().__init__(experiment=run, id=run.id, project=run.project)
        self.run = run
        self._folder = Path(run.dir).parent
        self._messages = messages
        self._wants_code, self._wants_images = log_code, log_images
        self._wants_checkpoint = log_checkpoint
        self._reference: dict[str, float] = {}
        self._failed = False
        self._first_step = run.starting_step  # above 0 where the server has rows of this run
        self._safely(run.define_metric, "epoch", hidden=True)
        self._safely(run.define_metric, "*", step_metric="epoch")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Put the run's configuration on the board, flat; see `searchable`."""
        # Values may change: a run that goes on has other ones.
        self._safely(self.run.config.update, searchable(params), allow_val_change=True)

    def leave_out_below(self, step: int) -> None:
        """Have rows of earlier steps left out, if an earlier start of this run recorded them here.

        A run that goes on from a checkpoint of before its last row has such a row once more.
        """
        folders = self._folder.parent.glob(f"*-{self.run.id}")
        if any(folder.name != self._folder.name for folder in folders):
            self._first_step = max(self._first_step, step)

    def log_reference(self, values: Mapping[str, float]) -> None:
        """Have values drawn as lines beside the metrics: every row gets them."""
        self._reference = dict(values)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Put the figures of a validation on the board as a row, others as final ones."""
        final = {k: v for k, v in metrics.items() if k != "epoch"}
        if all(name.startswith("test/") for name in final):
            self.log_summary(final)
        elif "val/acc" not in metrics and "train/loss" not in metrics:  # of a callback of one's own
            self._safely(self.run.log, dict(metrics))
        elif step is None or step >= self._first_step:
            self._safely(self._log_row, {**metrics, **self._reference}, step)

    def _log_row(self, row: dict[str, float], step: int | None) -> None:
        if step is not None:
            step = max(step, self.run.step)  # rows of others may have come further
        # Committed at once: W&B would wait for the next step, and show a row an epoch late.
        self.run.log(row, step=step, commit=True)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Put the run's final figures on the board."""
        self._safely(self.run.summary.update, dict(values))

    def log_code(self) -> None:
        """Put on the board which code it is: the commit, and what differs from it as a file."""
        if not self._wants_code:
            return
        code = code_state()
        self.log_hyperparams({"code": {"commit": code.commit, "dirty": code.dirty}})
        if code.diff:
            patch = Path(self.run.dir, "diff.patch")
            self._safely(patch.write_bytes, code.diff)
            place = {"base_path": self.run.dir, "policy": "now", "glob": False}
            self._safely(self.run.save, str(patch), **place)

    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """Put picture files on the board, by their names there.

        In one row, which takes one step: what a run that goes on logs must have a later one.
        """
        if not self._wants_images or not pictures:
            return
        import wandb

        self._safely(
            lambda: self.run.log({name: wandb.Image(str(path)) for name, path in pictures.items()})
        )

    def log_images(
        self,
        name: str,
        images: "NDArray[np.uint8]",
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
    ) -> None:
        """Put a table on the board whose rows begin with an image.

        Args:
            name: of the table.
            images: [N, H, W, 3].
            columns: their headings, without the image's.
            rows: N of them.
        """
        if not self._wants_images or self._failed:
            return
        import wandb

        def log() -> None:
            cells = [[wandb.Image(image), *row] for image, row in zip(images, rows, strict=True)]
            with _kept_in(self._folder, self.run):
                self.run.log({name: wandb.Table(["image", *columns], cells)})

        self._safely(log)

    def log_checkpoint(self, path: Path, metadata: Mapping[str, Any]) -> None:
        """Put a checkpoint on the board as an artifact, as the `best` of the run.

        It goes without what only this machine's run can use; see `save_shareable`.

        Args:
            path: may be replaced later; the board gets it as it is now.
            metadata: figures that are shown beside it.
        """
        # For each artifact W&B asks the server first, and waits long where there is none.
        if not self._wants_checkpoint or self._failed:
            return
        import wandb

        def log() -> None:
            file = self._folder / "checkpoint" / path.name
            save_shareable(path, file)
            name = f"model-{self.run.id}"[:LONGEST_NAME]
            artifact = wandb.Artifact(name, type="model", metadata=dict(metadata))
            # Not another copy, in the user's home.
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
            with _kept_in(self._folder, self.run):
                self.run.log_artifact(artifact, aliases=["best"])

        self._safely(log)

    def how_to_open(self) -> str:
        """What to type, or where to look, to see the run."""
        command = f"wandb leet {shlex.quote(os.path.relpath(self._folder))}"
        return command if self.run.offline else f"{self.run.url} or {command}"

    def close(self, exit_code: int = 0) -> None:
        """End the W&B run, so that the next job of this process begins its own."""
        self._safely(self.run.finish, exit_code)
        self._safely(self._conclude)
        if self._failed:
            end_service()

    def _conclude(self) -> None:
        """Say if something was not sent or written; else mark the run as sent."""
        if self._messages.gave_up:
            self._say(self._messages.gave_up)
        elif shutil.disk_usage(self._folder).free < FULL:  # of which W&B says nothing
            self._say(f"the disk of {self._folder} is full")
        elif not self._failed and not self.run.offline:
            # As `wandb sync` marks what it has sent: a later one then leaves this run out.
            for file in self._folder.glob("*.wandb"):
                file.with_suffix(".wandb.synced").touch()

    def _safely(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:  # whatever W&B meets, the training is worth more
            self._say(error)

    def _say(self, reason: Exception | str) -> None:
        """Say what went wrong, the first time."""
        if self._failed:
            return
        self._failed = True
        text = (str(reason) or type(reason).__name__).rstrip(".")
        if self.run.offline:
            log.warning("W&B: %s. The training goes on; its board lacks something.", text)
        else:
            log.warning(
                "W&B: %s. The training goes on; what its board lacks is kept in %s, and "
                "`make wandb-sync` sends it later.",
                text,
                self._folder,
            )


@contextlib.contextmanager
def _kept_in(folder: Path, run: "wandb.Run") -> Iterator[None]:
    """Have W&B keep there, and not in the user's home, what it will upload of a table.

    And have it do without absolute paths: it would send them along.
    """
    before = os.environ.get("WANDB_DATA_DIR")
    log_artifact = run.log_artifact

    def log_relative(artifact: "wandb.Artifact", *args: Any, **kwargs: Any) -> "wandb.Artifact":
        for entry in artifact.manifest.entries.values():
            if entry.local_path is not None:
                entry.local_path = os.path.relpath(entry.local_path)
        return log_artifact(artifact, *args, **kwargs)

    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    run.log_artifact = log_relative  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del run.log_artifact
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before
