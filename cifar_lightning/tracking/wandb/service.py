"""W&B's own process, which does the uploading."""

import contextlib
import threading

SECONDS_TO_END = 10


def end_service() -> None:
    """End it, or what is left of it, so that a next run begins with a new one.

    Where a server is away, it may wait for an answer for ever, and Python for it at its own end.
    """
    import wandb

    def end() -> None:
        with contextlib.suppress(Exception):  # it may be dead already
            wandb.teardown(1)

    # A daemon does not keep Python from ending; without Python, W&B's process ends by itself.
    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_END)
