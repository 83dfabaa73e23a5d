"""Opening HDF5 files, and errors of the disk as errors of the user."""

import os
import re
from contextlib import contextmanager, suppress

import h5py

from hpcHess.runtime.errors import InputError


def open_hdf5(path, what, mode="r"):
    """h5py.File opened by this rank alone, or an InputError that says what is wrong with the `what` at `path`. Not collective."""
    if not os.path.exists(path):
        raise InputError(f"{what} {path!s} does not exist")
    if not os.path.isfile(path):
        raise InputError(f"{what} {path!s} is not a file")
    if not os.access(path, os.R_OK if mode == "r" else os.W_OK):
        raise InputError(f"{what} {path!s} cannot be opened: permission denied")
    if not h5py.is_hdf5(path):
        raise InputError(f"{what} {path!s} is not an HDF5 file")
    try:
        return h5py.File(path, mode)
    except (OSError, RuntimeError) as error:
        reason = "it is truncated" if "truncated" in str(error) else _one_line(error)
        raise InputError(f"{what} {path!s} cannot be opened: {reason}") from error


@contextmanager
def closing(file):
    """`with closing(file):` closes an h5py.File; when it fails after another error, that one counts. Not collective."""
    try:
        yield file
    except BaseException:
        with suppress(OSError, RuntimeError):
            file.close()
        raise
    file.close()


@contextmanager
def disk_errors(path):
    """What goes wrong on the disk while `path` is written (space, quota, a lost mount) becomes an InputError. Not collective."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError) as error:  # HDF5 raises both
        said = re.search(r"error message = '([^']*)'", str(error))
        reason = said[1] if said else os.strerror(error.errno) if getattr(error, "errno", None) else _one_line(error)
        raise InputError(f"cannot write {path!s}: {reason}") from error


def _one_line(error):
    return " ".join(str(error).split())


def hdf5_versions():
    """Versions of h5py and of the HDF5 library, for provenance."""
    return {"h5py": h5py.__version__, "hdf5": h5py.version.hdf5_version}
