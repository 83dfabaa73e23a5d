"""Whole arrays from an HDF5 file, read by one process."""

import h5py

from hpcHess.runtime.errors import InputError
from hpcHess.storage.hdf5 import open_hdf5


def read_arrays(path, what="HDF5 file"):
    """{name: ndarray} of every dataset, names with slashes where groups nest them. Not collective.

    InputError, naming `what` and `path`: missing, no HDF5 file, truncated or damaged.
    """
    arrays = {}

    def take(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with open_hdf5(path, what) as file:
        try:
            file.visititems(take)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"{what} {path} cannot be read: {error}") from None
    return arrays
