"""Removes the folders that Hydra has made for a start that was refused."""

import contextlib
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


class NewFolders(Callback):
    """Lists the folders that Hydra is about to make, as a callback of Hydra's in conf/train.yaml.

    Attributes:
        paths: the run's folder, and those above it, that are not there yet; the innermost first.
    """

    paths: ClassVar[list[Path]] = []

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """List them; Hydra makes them next."""
        with contextlib.suppress(OmegaConfBaseException, OSError):  # which end the command next
            folder = Path(str(config.hydra.run.dir)).absolute()
            self.paths[:] = [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty() -> None:
    """Remove the new folders to which nothing was written."""
    with contextlib.suppress(OSError):  # one is not empty
        for path in NewFolders.paths:
            path.rmdir()
    NewFolders.paths.clear()
