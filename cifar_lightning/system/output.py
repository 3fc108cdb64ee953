"""Standard output that cannot end the work, whose results are in files."""

import os
from pathlib import Path
from typing import Any, TextIO, cast


class _Output:
    """Discards what is printed after its reader, as `head`, has ended."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except BrokenPipeError:
            self._discard()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def lasting(stream: TextIO | None) -> TextIO:
    """The stream, so that printing raises no error if its reader ends or its encoding is narrow.

    Args:
        stream: None where standard output was closed before the start.
    """
    if stream is None:
        stream = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return cast(TextIO, _Output(stream))
