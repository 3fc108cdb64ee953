"""Lightning's W&B logger, extended by what a run logs at its start and end."""

import contextlib
import errno
import logging
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger

from cifar_lightning.config.paths import without_paths
from cifar_lightning.data import ImageData
from cifar_lightning.models.budget import NetworkCounts
from cifar_lightning.system.typed import program
from cifar_lightning.tracking.run_logger import (
    RunLogger,
    flat_config,
    mistakes,
    of_a_test,
    with_counts,
)
from cifar_lightning.tracking.wandb.code_state import code_state
from cifar_lightning.tracking.wandb.service import Messages, end_service
from cifar_lightning.training.callbacks import TargetReached
from cifar_lightning.training.metrics import (
    TestPredictions,
    class_accuracies,
    confusion_matrix,
)
from cifar_lightning.training.module import test_predictions_of

if TYPE_CHECKING:
    import wandb  # optional: not needed with logger=csv

log = logging.getLogger(__name__)

MISTAKE_COLUMNS = ("image", "label", "prediction", "confidence", "test image")
FULL_DISK = 64 * 1024  # bytes: with less free space, something was probably not written
MAX_NAME_LENGTH = 128  # of an artifact on W&B
# Parts of a checkpoint that only a resume needs.
TRAINING_STATE = (
    *("callbacks", "optimizer_states", "lr_schedulers"),
    *("fit_scores", "random_state"),
)


class WandbRunLogger(RunLogger, WandbLogger):
    """Lightning's W&B logger for an open W&B run. If W&B fails, there is one warning.

    The x axis of metrics is `epoch`, and W&B's step is the optimizer's. (Lightning's `log_metrics`
    uses `trainer/global_step` as x axis, and logs rows of a resumed run twice. Its `log_model` does
    not support offline runs, and uploads paths of this machine and the training state.)

    Args:
        run: what `wandb.init` returned; Lightning would set WANDB_MODE for later runs too.
        messages: receives W&B's messages.
        log_code: whether to log the commit and the uncommitted changes.
        log_images: whether to log the plots, and the most confident mistakes with their images.
        log_checkpoint: whether to log the best checkpoint.
    """

    label = "W&B"
    shown_as = "W&B run"

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
        self._log_code, self._log_images = log_code, log_images
        self._log_checkpoint = log_checkpoint
        self._reference: dict[str, float] = {}
        self.first_step = run.starting_step  # above 0 if the server has rows of this run
        with self.failure_as_warning():
            run.define_metric("epoch", hidden=True)
            run.define_metric("*", step_metric="epoch")

    def log_hyperparams(self, params: Any) -> None:
        """Add to the configuration of the W&B run, with flat keys; see `flat_config`."""
        with self.failure_as_warning():
            super().log_hyperparams(flat_config(params))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log validation metrics as a row, and test metrics to the summary."""
        with self.failure_as_warning():
            if of_a_test(metrics):
                self.run.summary.update({k: v for k, v in metrics.items() if k != "epoch"})
            elif "val/acc" not in metrics and "train/loss" not in metrics:  # logged by a user
                self.run.log(dict(metrics))
            elif not self.is_logged(step):
                if step is not None:
                    step = max(step, self.run.step)  # rows that a user logged may have a later step
                # Without commit, W&B would wait for the next step, and show the row an epoch late.
                self.run.log({**metrics, **self._reference}, step=step, commit=True)

    def skip_before(self, step: int) -> None:
        """Skip rows before `step` if this run logged them on this machine before its resume.

        If the checkpoint is older than the last logged row, that row is logged again.
        """
        folders = self._folder.parent.glob(f"*-{self.run.id}")
        if any(folder.name != self._folder.name for folder in folders):
            self.first_step = max(self.first_step, step)

    def log_start(
        self, config: Mapping[str, Any], counts: NetworkCounts, target: TargetReached | None
    ) -> None:
        """Log the configuration, the network's counts and the code.

        The target is logged with each row, so that it is a line in plots of accuracy.
        """
        self.log_hyperparams(with_counts(config, counts))
        if target is not None and target.target is not None and target.threshold is not None:
            self._reference = {
                "target_accuracy": target.target,
                "target_val_acc": target.threshold,
            }
        if not self._log_code:
            return
        commit, diff = code_state()
        self.log_hyperparams({"code": {"commit": commit, "dirty": bool(diff) if commit else None}})
        if diff:
            with self.failure_as_warning():
                patch = Path(self.run.dir, "diff.patch")
                patch.write_bytes(diff)
                self.run.save(str(patch), base_path=self.run.dir, policy="now", glob=False)

    def log_end(
        self,
        metrics: Mapping[str, Any],
        figures: Mapping[str, Path],
        module: pl.LightningModule,
        data: ImageData,
        checkpoint: Path | None,
    ) -> None:
        """Log final metrics, plots, accuracy by class, mistakes, and the best checkpoint."""
        import wandb

        tested = test_predictions_of(module)
        with self.failure_as_warning():
            self.run.summary.update(dict(metrics))
            if tested is not None:
                self.run.summary.update(_accuracy_by_class(tested, data))
            if self._log_images and figures:
                # All in one row, so one step: rows of a resumed run need later steps.
                self.run.log({name: wandb.Image(str(path)) for name, path in figures.items()})
        # For an artifact W&B first asks the server, and waits long if there is none.
        if self.failed:
            return
        with self.failure_as_warning(), _artifacts_kept_in(self._folder, self.run):
            if self._log_images and (found := mistakes(module, data)):
                rows = [[wandb.Image(mistake.image), *mistake[1:]] for mistake in found]
                self.run.log({"mistakes": wandb.Table([*MISTAKE_COLUMNS], rows)})
            if self._log_checkpoint and checkpoint is not None:
                file = self._folder / "checkpoint" / checkpoint.name
                save_shareable(checkpoint, file)
                name = f"model-{self.run.id}"[:MAX_NAME_LENGTH]
                artifact = wandb.Artifact(name, type="model", metadata=dict(metrics))
                # skip_cache: without a second copy in the user's home.
                artifact.add_file(str(file), policy="immutable", skip_cache=True)
                self.run.log_artifact(artifact, aliases=[checkpoint.stem])

    def how_to_open(self) -> str:
        """The URL of an online run, and the command of W&B's terminal viewer."""
        command = shlex.join([*program("wandb"), "leet", os.path.relpath(self._folder)])
        return command if self.run.offline else f"{self.run.url} or {command}"

    def close(self, exit_code: int = 0) -> None:
        """Finish the W&B run, so that the next run in this process can start its own."""
        with self.failure_as_warning():
            self.run.finish(exit_code)
            if self._messages.gave_up:
                raise ConnectionError(self._messages.gave_up)
            if shutil.disk_usage(self._folder).free < FULL_DISK:  # W&B does not report this
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
            if not self.failed and not self.run.offline:
                # As `wandb sync` marks uploaded runs, so that it skips them.
                for file in self._folder.glob("*.wandb"):
                    file.with_suffix(".wandb.synced").touch()
        if self.failed:
            end_service()

    def after_failure(self) -> str:
        """The end of the warning; what an online run could not upload is kept."""
        if self.run.offline:
            return super().after_failure()
        return (
            f". Data that was not uploaded is kept in {self._folder}; `make wandb-sync` uploads it "
            "later."
        )


def save_shareable(checkpoint: Path, file: Path) -> None:
    """Copy a checkpoint without training state and paths of this machine, so that it can be shared.

    Args:
        checkpoint: written by this package.
        file: to write.
    """
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = {key: value for key, value in content.items() if key not in TRAINING_STATE}
    info = kept["hyper_parameters"]
    kept["hyper_parameters"] = info | {"network": without_paths(info["network"])}
    file.parent.mkdir(exist_ok=True)
    torch.save(kept, file)


def _accuracy_by_class(tested: TestPredictions, data: ImageData) -> dict[str, float | None]:
    labels = data.test.labels[tested.index]
    matrix = confusion_matrix(tested.predictions, labels, len(data.classes))
    by_class = zip(data.classes, class_accuracies(matrix), strict=True)
    return {f"test/acc_by_class/{name}": accuracy for name, accuracy in by_class}


@contextlib.contextmanager
def _artifacts_kept_in(folder: Path, run: "wandb.Run") -> Iterator[None]:
    """Make W&B keep the files of artifacts in a folder, not in the user's home.

    Their paths are relative, so that an offline run can be synced from another machine.
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
