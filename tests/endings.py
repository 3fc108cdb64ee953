"""How work on bad input may end: in success, or in one message and nothing half-written."""

import warnings
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings

from cifar_lightning.cli.tasks import MISTAKES
from cifar_lightning.config.messages import explain

LONGEST_MESSAGE = 3000  # characters: a screen, where the names in it are long


def cases(count: int) -> settings:
    """So many generated cases, the same in every run, however long one takes."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        # Files are made for each case, in a folder of its own below the test's.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def ends_well(work: Callable[[], object], config_name: str = "train") -> str | None:
    """The message that the command would end in; None of a success.

    Any other exception than those that the command line explains is the test's failure.
    """
    with warnings.catch_warnings(action="ignore"):  # as in the command, where none is an error
        try:
            work()
        except MISTAKES as error:
            message = explain(error, config_name)
        else:
            return None
    assert message.strip()
    assert "Traceback" not in message
    assert len(message) <= LONGEST_MESSAGE, message
    # Names may hold line ends, and commands to the terminal.
    assert all(c.isprintable() or c == "\n" for c in message), repr(message)
    return message


def leftovers(folder: Path) -> list[Path]:
    """What a file is called while it is being written, as `atomic_write` and the downloads do."""
    endings = (".tmp", ".part", ".unpacking")
    return [file for file in folder.rglob("*") if file.name.endswith(endings)]
