"""The error that a user can act on."""

from __future__ import annotations


class DataError(ValueError):
    """Bad input: names the file, line or key, what was found, what was expected and what to do.

    The command line prints its message in one line and exits with status 2.
    """


class NonFiniteError(DataError):
    """Losses, gradients, weights or maps that hold NaN or infinity: a training has diverged."""


class DataProblems(DataError):
    """Data has been looked through, and what is wrong with it has been said: status 1."""

    status = 1
