"""Exceptions for what the user can fix."""


class UserError(Exception):
    """A mistake that the user can fix.

    The command line shows its message without a traceback and exits with code 1, so the
    message says what was wrong, where, and what to do.
    """


def how_to_install(extra: str) -> str:
    """The end of a message that a package of one of pyproject.toml's extras is not there."""
    return (
        f"make setup installs it in a checkout, pip install 'cifar-lightning[{extra}]' elsewhere."
    )


class DataUnavailable(UserError):
    """The data set is not on this machine and could not be downloaded."""
