"""Dense matrices in files, memory-mapped for reading: `K.npy`, a dataset `K.h5:/K`, any other name raw little-endian float32, row-major."""

import math
import os

import h5py
import numpy as np

from hpcHess.parallel.agree import on_root, together
from hpcHess.runtime.errors import InputError
from hpcHess.storage.atomic import check_room, replacing, writable_target
from hpcHess.storage.hdf5 import disk_errors, open_hdf5

__all__ = ["check_dense_output", "open_dense", "write_dense"]

_RAW = np.dtype("<f4")
_CONVERT = "convert it once, numpy.save('K.npy', K.astype(numpy.float32))"


def open_dense(spec, n, comm):
    """The matrix at `spec` as a read-only array [N, N], mapped, float32 or float64 in the file's byte order. Collective.

    n: N, which a raw file needs and others may confirm; None where it is not given. A Fortran-ordered .npy is mapped as its transpose: whoever
    maps a matrix here takes it for symmetric, and has to see to that. InputError: missing or unreadable, not square, of a
    wrong length, not float32 or float64, an HDF5 dataset that is not one piece of the file, `n` missing or contradicted.
    """
    path, offset, dtype, N = on_root(comm, _located, spec, n)
    with together(comm):
        try:
            mapped = np.memmap(path, dtype, "r", offset, (N, N))
        except (OSError, ValueError) as error:
            raise InputError(f"matrix file {path} cannot be mapped: {getattr(error, 'strerror', None) or error}") from None
    return np.asarray(mapped)


def write_dense(spec, matrix):
    """Write `matrix` [N, N] to `spec`, named as for `open_dense`; it appears whole or not at all. One rank; raises InputError."""
    path, name = _split(spec)
    check_dense_output(spec, matrix.dtype)
    target = writable_target(path)
    check_room(target, matrix.nbytes + 4096)
    with disk_errors(path), replacing(target) as temporary:
        if name is not None:
            with h5py.File(temporary, "w") as file:
                file.create_dataset(name, data=matrix, track_times=False)
        elif path.endswith(".npy"):
            with open(temporary, "wb") as file:
                np.save(file, matrix)
        else:
            np.asarray(matrix, _RAW).tofile(temporary)


def check_dense_output(spec, dtype):
    """InputError where a matrix of `dtype` cannot be written to `spec`; call it before the computation. One rank."""
    path, name = _split(spec)
    target = writable_target(path)
    if name is not None and os.path.exists(target):
        raise InputError(f"{path} exists: a matrix goes into an HDF5 file of its own")
    if name is None and not path.endswith(".npy") and np.dtype(dtype) != _RAW:
        raise InputError(f"{path} would be raw float32: name it .npy to keep {np.dtype(dtype)}")


def _split(spec):
    """(path, dataset or None)."""
    spec = os.fspath(spec)
    path, mark, name = spec.rpartition(":/")
    if mark and path and name.strip("/"):
        return path, name.strip("/")
    if spec.endswith((".h5", ".hdf5")):
        raise InputError(f"matrix file {spec}: name the dataset too, as {spec}:/K")
    return spec, None


def _located(spec, n):
    """(absolute path, first byte, dtype, N) of the matrix at `spec`. One rank."""
    path, name = _split(spec)
    label = f"matrix file {os.fspath(spec)}"
    if n is not None and n < 1:
        raise InputError(f"{label}: n must be at least 1, not {n}")
    if not os.path.exists(path):
        raise InputError(f"matrix file {path} does not exist")
    if not os.path.isfile(path):
        raise InputError(f"matrix file {path} is not a file")
    if not os.access(path, os.R_OK):
        raise InputError(f"matrix file {path} cannot be opened: permission denied")
    if name is not None:
        return os.path.abspath(path), *_in_hdf5(path, name, n, label)
    found = _in_npy(path, n, label) if path.endswith(".npy") else _raw(n, label, os.path.getsize(path))
    offset, dtype, N = found
    expected, size = offset + N * N * dtype.itemsize, os.path.getsize(path)
    if size < expected:
        raise InputError(f"{label} is too short: {N} × {N} numbers of {dtype} need {expected:,} bytes, it has {size:,}")
    return os.path.abspath(path), offset, dtype, N


def _raw(n, label, size):
    """(0, float32, n)."""
    if n is None:
        N = math.isqrt(size // _RAW.itemsize)
        hint = f" (its {size:,} bytes would fit n = {N})" if N * N * _RAW.itemsize == size else ""
        raise InputError(f"{label} is taken for raw float32, which needs n: the number of rows{hint}")
    expected = n * n * _RAW.itemsize
    if size != expected:
        hint = "; it may hold float64, which goes into .npy" if size == 2 * expected else ""
        raise InputError(f"{label} has the wrong length: n = {n} in float32 needs {expected:,} bytes, it has {size:,}{hint}")
    return 0, _RAW, n


def _in_npy(path, n, label):
    """(first byte, dtype, N) from the header of a .npy file."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            offset = file.tell()
    except (OSError, ValueError, EOFError):
        raise InputError(f"{label} cannot be read: it is no .npy file of one array") from None
    return offset, dtype, _order(shape, dtype, n, label)


def _in_hdf5(path, name, n, label):
    """(first byte, dtype, N) of a contiguous dataset."""
    with open_hdf5(path, "matrix file") as file:
        found = file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise InputError(f"matrix file {path} has no dataset /{name}")
        N, offset = _order(found.shape, found.dtype, n, label), found.id.get_offset()
        if offset is None or found.chunks or found.external or found.is_virtual:
            advice = f"`h5repack -l CONTI -f NONE {path} NEW.h5` makes it so"
            raise InputError(f"{label} is not one piece of the file (chunked, compressed, external or never written): {advice}")
        return offset, found.dtype, N


def _order(shape, dtype, n, label):
    """N of an array [N, N] of real floating-point numbers."""
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        what = "Python objects" if dtype.hasobject else f"numbers of type {dtype}"
        raise InputError(f"{label} holds {what}, not float32 or float64: {_CONVERT}")
    if shape is None or len(shape) != 2 or shape[0] != shape[1]:
        raise InputError(f"{label} is not square: its shape is {None if shape is None else list(shape)}")
    if shape[0] == 0:
        raise InputError(f"{label} is empty")
    if n is not None and n != shape[0]:
        raise InputError(f"{label} is {shape[0]} × {shape[0]}, which contradicts n = {n}")
    return shape[0]
