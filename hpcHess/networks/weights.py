"""Weights from files, with the keys that PyTorch's `nn.Sequential` writes: 0.weight [out, in], 0.bias [out], 2.weight, …

Nothing is ever unpickled.
"""

import os
import zipfile
import zlib

import numpy as np

from hpcHess.networks.network import Network
from hpcHess.runtime.errors import InputError
from hpcHess.storage.arrays import read_arrays

_DAMAGED = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


def read_network(path, activation=None, loss="cross-entropy", output=None):
    """The network of a .npz, .safetensors or .h5 file; biases are optional. Not collective.

    InputError: missing or unreadable file, odd or missing keys, shapes that do not chain, NaN or Inf; names file and key.
    """
    path = os.fspath(path)
    read = _READERS.get(os.path.splitext(path)[1].lower())
    if read is None:
        raise InputError(f"{path}: weights are read from {', '.join(_READERS)} files")
    if not os.path.isfile(path):
        raise InputError(f"cannot read {path}: there is no such file")
    arrays = read(path)
    try:
        return Network.from_arrays(arrays, activation or "relu", loss, output or "identity")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _read_npz(path):
    try:
        with zipfile.ZipFile(path):  # np.load would also take other formats
            pass
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except _DAMAGED as error:
        reason = "it holds Python objects" if "pickle" in str(error) else error
        raise InputError(f"cannot read {path}: {reason}") from None


def _read_safetensors(path):
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise InputError(f"cannot read {path}: the package safetensors is not installed") from None
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # the last three: dtypes NumPy lacks
        raise InputError(f"cannot read {path}: {type(error).__name__}: {error}") from None


def _read_hdf5(path):
    return read_arrays(path, "weights")


_READERS = {".npz": _read_npz, ".safetensors": _read_safetensors, ".h5": _read_hdf5, ".hdf5": _read_hdf5}
