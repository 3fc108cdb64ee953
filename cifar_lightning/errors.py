"""Exceptions for what the user can fix."""


class UserError(Exception):
    """A mistake that the user can fix.

    The command line shows its message without a traceback and exits with code 1, so the
    message says what was wrong, where, and what to do.
    """


class DataUnavailable(UserError):
    """The data set is not on this machine and could not be downloaded."""
