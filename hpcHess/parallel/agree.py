"""Collective decisions about errors: what one rank finds wrong, all ranks raise. Warnings come from rank 0 alone."""

import warnings
from contextlib import contextmanager

from hpcHess.runtime.errors import HpcHessWarning, InputError


def agree(comm, error=None):
    """Raise on every rank the lowest rank's `error` (an exception or None). Collective.

    An `InputError` stays an `InputError` everywhere; any other exception is raised as it is on its own rank and as a
    RuntimeError that quotes it elsewhere.
    """
    found = comm.allgather(None if error is None else (isinstance(error, InputError), f"{error}" or type(error).__name__))
    first = next((item for item in found if item is not None), None)
    if first is None:
        return
    is_input, message = first
    if is_input:
        raise InputError(message) from error
    if error is not None:
        raise error
    raise RuntimeError(f"another rank failed: {message}")


@contextmanager
def together(comm):
    """`with together(comm): …` for work that is not collective inside but may fail: at the end all ranks agree."""
    error = None
    try:
        yield
    except Exception as caught:  # every kind of failure must reach the other ranks
        error = caught
    agree(comm, error)


def on_root(comm, function, *arguments, **keywords):
    """`function(…)` on rank 0; its result, or its error, on every rank (small picklable results). Collective."""
    result = error = None
    if comm.rank == 0:
        try:
            result = function(*arguments, **keywords)
        except Exception as caught:
            error = caught
    agree(comm, error)
    return comm.bcast(result)


def tell(comm, lines):
    """Each of the lines as an HpcHessWarning on rank 0. Not collective."""
    if comm.rank == 0:
        for line in lines:
            warnings.warn(line, HpcHessWarning, stacklevel=3)
