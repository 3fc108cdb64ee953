"""The log file of a run, to which nothing is written before the run has begun."""

import logging
from collections.abc import Iterator
from pathlib import Path


class LogFile(logging.FileHandler):
    """Keeps messages in memory until `open_log_file` is called, and writes to a file from then on.

    So a start that is refused leaves the log of an earlier run in its folder as it was.

    Args:
        filename: path of the file, to which messages are appended.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, delay=True, encoding="utf-8")
        self.waiting: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, or keep it."""
        if self.waiting is None:
            super().emit(record)
        else:
            self.waiting.append(record)

    def begin(self, folder: Path | None) -> None:
        """Write the messages that were kept, to a folder's file of this name if one is given."""
        if folder is not None:
            self.baseFilename = str(folder.absolute() / Path(self.baseFilename).name)
        waiting, self.waiting = self.waiting or [], None
        for record in waiting:
            super().emit(record)


def open_log_file(folder: Path | None = None) -> None:
    """Have messages written to the log file, those so far and those to come.

    Args:
        folder: of the file, if it is another one than Hydra's, as that of a run that an experiment
            resumes.
    """
    for file in _log_files():
        file.begin(folder)


def log_failure(logger: logging.Logger, message: str, error: Exception | None = None) -> None:
    """Log an error that ends a run to its log file alone, if the run has begun.

    Args:
        logger: of the message.
        message: which the terminal gets otherwise.
        error: whose traceback is logged; None for none.
    """
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, "%s", (message,), info)
    for file in _log_files():
        if file.waiting is None:
            file.handle(record)


def _log_files() -> Iterator[LogFile]:
    return (h for h in logging.getLogger().handlers if isinstance(h, LogFile))
