"""Where studies are kept."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from cifar_lightning.errors import UserError

SECONDS_FOR_A_LOCK = 60  # SQLite has one writer at a time, the others wait


def open_storage(address: str) -> BaseStorage:
    """Open the storage at an address, or make it.

    Args:
        address: `sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE`, another address that
            SQLAlchemy knows, or `journal:///FILE` for Optuna's journal; a file's path without a
            scheme is SQLite's.

    Raises:
        UserError: if it cannot be opened.
    """
    with named(address):
        scheme, _, rest = address.partition("://")
        if (file := file_of(address)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            if "://" not in address:
                scheme, rest = "sqlite", f"/{address}"
        if scheme == "journal":
            with warnings.catch_warnings(action="ignore"):  # that it is experimental
                return JournalStorage(JournalFileBackend(str(file)))
        if scheme == "postgresql":
            scheme = "postgresql+psycopg"  # the driver that is installed
        if scheme == "sqlite":
            options: dict[str, Any] = {"connect_args": {"timeout": SECONDS_FOR_A_LOCK}}
        else:
            # A server has some hundred connections for all workers, who seldom need theirs.
            options = {"poolclass": NullPool}
        return RDBStorage(f"{scheme}://{rest}", engine_kwargs=options)


def file_of(address: str) -> Path | None:
    """The file that a storage is; None if it is a server."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return Path(address).absolute()
    return Path(rest[1:]).absolute() if scheme in ("sqlite", "journal") else None


def lock_of(address: str, folder: Path) -> Path:
    """A file beside a storage that is one; in the search's folder for a server's."""
    file = file_of(address) or folder / "study"
    return file.with_name(f"{file.name}.claims")  # Optuna has a FILE.lock of its own


@contextmanager
def named(address: str) -> Iterator[None]:
    """Turn what a storage refuses into a message that names it, without its password.

    Raises:
        UserError: for whatever the storage raises.
    """
    try:
        yield
    except (
        SQLAlchemyError,
        ImportError,
        OSError,
        optuna.exceptions.StorageInternalError,
    ) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
        raise UserError(f"storage={without_password(address)}: {reason}") from error


def without_password(address: str) -> str:
    """The address as it may be shown."""
    try:
        return sqlalchemy.make_url(address).render_as_string(hide_password=True)
    except ArgumentError:
        return address
