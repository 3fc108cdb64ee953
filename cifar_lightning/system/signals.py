"""Signals that end a program: Ctrl-C and SIGTERM."""

import math
import sys
import time
from types import FrameType

SAME = 1.0  # seconds within which signals are one request

_last = -math.inf


def is_repeated() -> bool:
    """Whether a signal that has just arrived repeats one of the last second.

    `timeout`, for one, sends each signal twice, to the process and to its group, and a second
    signal would end the process before it has saved its state.
    """
    global _last
    now = time.monotonic()
    if now - _last < SAME:
        return True
    _last = now
    return False


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C: raise KeyboardInterrupt, but once for signals at the same time."""
    if not is_repeated():
        raise KeyboardInterrupt


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM: raise SystemExit, so that no file is left half written."""
    if not is_repeated():
        sys.exit(128 + number)
