"""The one exception that a user's mistake ends in."""


class UserError(Exception):
    """A mistake that the user can fix.

    The command line shows its message without a traceback and exits with code 1, so the
    message says what was wrong, where, and what to do.
    """


class DataUnavailable(UserError):
    """The data set is neither on this machine nor to be had from its mirrors."""
