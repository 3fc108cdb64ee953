"""W&B's service process, which uploads runs, and its messages."""

import contextlib
import logging
import re
import threading

log = logging.getLogger("wandb_messages")

SECONDS_TO_END = 10
GAVE_UP = "Fatal error while uploading"


class Messages:
    """Logs W&B's messages, so that they are not printed during training; for `wandb.termsetup`.

    Attributes:
        gave_up: W&B's message when it gave up uploading; empty if it did not.
    """

    def __init__(self) -> None:
        self.gave_up = ""

    def info(self, msg: str) -> None:
        """Ignore the message."""

    def warning(self, msg: str) -> None:
        """Log the message."""
        text = re.sub("wandb: (WARNING|ERROR)?", "", msg).strip()
        log.info(text)
        if GAVE_UP in text:
            self.gave_up = text.partition(".")[0]

    error = warning


def end_service() -> None:
    """End W&B's service process, so that a later run starts a new one.

    Without a server it may wait for an answer forever, and Python would wait for it at exit.
    """
    import wandb

    def end() -> None:
        with contextlib.suppress(Exception):  # it may be dead already
            wandb.teardown(1)

    # A daemon thread does not keep Python from exiting; W&B's process then ends by itself.
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_END)
