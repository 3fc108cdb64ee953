"""Where studies are kept."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

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
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "sqlite", f"/{address}"
    with named(address):
        if scheme in ("sqlite", "journal"):
            Path(rest[1:]).absolute().parent.mkdir(parents=True, exist_ok=True)
        if scheme == "journal":
            with warnings.catch_warnings(action="ignore"):  # that it is experimental
                return JournalStorage(JournalFileBackend(rest[1:]))
        if scheme == "postgresql":
            scheme = "postgresql+psycopg"  # the driver that is installed
        options = {"timeout": SECONDS_FOR_A_LOCK} if scheme == "sqlite" else {}
        return RDBStorage(f"{scheme}://{rest}", engine_kwargs={"connect_args": options})


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
