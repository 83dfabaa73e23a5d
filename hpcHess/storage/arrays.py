"""Whole arrays from an HDF5 file, read by one process."""

import io
import math

import h5py

from hpcHess.runtime.errors import InputError
from hpcHess.storage.archive import check_expansion
from hpcHess.storage.hdf5 import open_hdf5

_DAMAGED = (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError)


def read_arrays(path, what="HDF5 file", under="", content=None):
    """{name: ndarray} of every dataset below the group `under`, names with slashes where groups nest them. Not collective.

    content: the file as bytes, where it lies in another one, `path`. Links to other files are not followed.
    InputError, naming `what` and `path`: missing, no HDF5 file, truncated or damaged, values that lie in other files.
    """
    arrays = {}

    def take(name, item):
        name = name.decode(errors="replace") if isinstance(name, bytes) else name
        if isinstance(item, h5py.Dataset):
            if item.shape is None:
                raise ValueError(f"{name} is empty")
            if item.is_virtual or item.external:
                raise ValueError(f"{name} lies in another file")
            check_expansion(path, math.prod(map(int, item.shape)) * item.dtype.itemsize, item.id.get_storage_size())
            arrays[name] = item[()]

    with _opened(path, what, content) as file:
        try:
            group = file[under] if under else file
            if not isinstance(group, h5py.Group) or group.file.filename != file.filename:
                raise ValueError(f"{under} is no group of it")
            group.visititems(take)
        except InputError:
            raise
        except _DAMAGED as error:
            raise InputError(f"{what} {path} cannot be read: {' '.join(str(error).split())}") from None
    return arrays


def read_text_attribute(path, name, what="HDF5 file"):
    """The text of an attribute of the root group, or None where there is none. Not collective. InputError as `read_arrays`."""
    with _opened(path, what, None) as file:
        try:
            value = file.attrs.get(name)
        except _DAMAGED as error:
            raise InputError(f"{what} {path} cannot be read: {error}") from None
    return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else None


def _opened(path, what, content):
    if content is None:
        return open_hdf5(path, what)
    try:
        return h5py.File(io.BytesIO(content), "r")
    except _DAMAGED as error:
        raise InputError(f"{what} {path} cannot be read: {error}") from None
