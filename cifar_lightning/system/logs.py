"""The log file of a run, which is not written before the run has started."""

import logging
from collections.abc import Iterator
from pathlib import Path


class LogFile(logging.FileHandler):
    """Keeps messages in memory until `open_log_file` is called, and then writes them to a file.

    Thus a start that fails its checks does not change the log of an earlier run in the folder.

    Args:
        filename: path of the file; messages are appended to it.
    """

    def __init__(self, filename: str) -> None:
        super().__init__(filename, delay=True, encoding="utf-8")
        self.waiting: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, or keep it until the file is opened."""
        if self.waiting is None:
            super().emit(record)
        else:
            self.waiting.append(record)

    def begin(self, folder: Path | None) -> None:
        """Write the kept messages; with `folder`, to the file of the same name in it."""
        if folder is not None:
            self.baseFilename = str(folder.absolute() / Path(self.baseFilename).name)
        waiting, self.waiting = self.waiting or [], None
        for record in waiting:
            super().emit(record)


def open_log_file(folder: Path | None = None) -> None:
    """Write all earlier and later messages to the log file.

    Args:
        folder: of the file; None for Hydra's run folder. It differs if an experiment resumes a run.
    """
    for file in _log_files():
        file.begin(folder)


def log_failure(logger: logging.Logger, message: str, error: Exception | None = None) -> None:
    """Log an error that ends a run, only to its log file, if the run has started.

    Args:
        logger: that the message is logged for.
        message: the text; the caller prints it.
        error: logged with its traceback; None for no traceback.
    """
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, "%s", (message,), info)
    for file in _log_files():
        if file.waiting is None:
            file.handle(record)


def _log_files() -> Iterator[LogFile]:
    return (h for h in logging.getLogger().handlers if isinstance(h, LogFile))
