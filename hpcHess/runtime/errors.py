"""Errors and exit statuses of every driver."""

DONE, INTERNAL_ERROR, BAD_INPUT, RTOL_NOT_MET, NOT_CONVERGED = 0, 1, 2, 3, 4


class InputError(ValueError):
    """The user's input is wrong; the message is one line that says what and what to do. Exit status 2."""


class HpcHessWarning(UserWarning):
    """A result that is correct but may not be what the user wants (damping below the error, rank saturation)."""
