"""What W&B says, which would go to the terminal in the midst of the training's lines."""

import logging
import re

log = logging.getLogger("wandb_says")

GAVE_UP = "Fatal error while uploading"


class Messages:
    """Writes what W&B says to the run's log; `wandb.termsetup` takes one of these.

    Attributes:
        gave_up: what W&B said when it gave up uploading; empty if it did not.
    """

    def __init__(self) -> None:
        self.gave_up = ""

    def info(self, msg: str) -> None:
        """Take what a training needs not know."""

    def warning(self, msg: str) -> None:
        """Take what W&B could not do."""
        text = re.sub("wandb: (WARNING|ERROR)?", "", msg).strip()
        log.info(text)
        if GAVE_UP in text:
            self.gave_up = text.partition(".")[0]

    error = warning
