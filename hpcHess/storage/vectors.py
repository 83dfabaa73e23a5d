"""Vectors and multivectors in files: `V.npy`, or a dataset `file.h5:/name` of any HDF5 file; [N] or [N, k] in parameter order.

Every rank reads its own rows. Writing goes through rank 0, rank by rank in bounded messages: a single writer needs neither a
parallel HDF5 nor a file system that keeps several writers of one file apart, and vectors are small beside the factors.
"""

import os
from contextlib import contextmanager

import h5py
import numpy as np

from hpcHess.parallel.agree import agree, on_root, together
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.storage.atomic import replacing, writable_target
from hpcHess.storage.factor_file import FORMAT
from hpcHess.storage.hdf5 import disk_errors, open_hdf5

__all__ = ["check_finite", "check_output", "read_rows", "write_rows"]

MESSAGE_BYTES = 64 << 20
PARTIAL = ".partial"  # in the name of a dataset that is being written into a file that holds others


def read_rows(spec, comm, n_params, what="right-hand side"):
    """(rows, one_dimensional): this rank's parameter rows of the vectors at `spec`, [n_local, k], and whether the file holds [N].

    float32 and float64 stay as they are, half precision becomes float32, integers and long doubles float64. Collective; raises
    InputError, naming `what` and `spec`, where they are missing, unreadable, pickled, not real numbers, not [N] or [N, k], have not
    N = n_params rows, no columns, or hold NaN or Inf.
    """
    low, high = row_starts(n_params, comm.size)[comm.rank : comm.rank + 2]
    with together(comm), _opened(spec, what) as source:
        _check_source(source, n_params, f"{what} {spec}")
        rows = _read(source, int(low), int(high), f"{what} {spec}")
        one_dimensional = len(source.shape) == 1
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            raise InputError(f"{what} {spec} holds NaN or Inf (row {low + row}, column {column}, counted from 0)")
    return rows, one_dimensional


@contextmanager
def _opened(spec, what):
    """The array at `spec`, not yet read: a memory map or an h5py.Dataset."""
    path, name = _split(spec, what)
    if name is None:
        try:
            source = np.lib.format.open_memmap(path, mode="r")
        except FileNotFoundError as error:
            raise InputError(f"{what} {path} does not exist") from error
        except (OSError, ValueError, EOFError) as error:
            objects = "Python objects" in str(error)
            reason = "it holds Python objects, which are never unpickled" if objects else "it is no .npy file of one array, or truncated"
            raise InputError(f"{what} {path} cannot be read: {reason}") from error
        yield source
        return
    with open_hdf5(path, what) as file:
        found = file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise InputError(f"{what} {path} has no dataset /{name}")
        yield found


def _split(spec, what):
    """(path, dataset), or (path, None) of a .npy file."""
    path, mark, name = os.fspath(spec).rpartition(":/")
    if mark and path and name.strip("/"):
        return path, name.strip("/")
    if os.fspath(spec).endswith(".npy"):
        return os.fspath(spec), None
    raise InputError(f"{what} {spec}: give a file name that ends in .npy, or a dataset as file.h5:/name")


def _check_source(source, n_params, label):
    shape, dtype = source.shape, source.dtype
    if dtype.kind not in "fiu":
        raise InputError(f"{label} holds {dtype} instead of real numbers")
    if shape is None or len(shape) not in (1, 2):
        raise InputError(f"{label} has shape {shape}; [{n_params}] or [{n_params}, k] is wanted")
    if shape[0] != n_params:
        raise InputError(f"{label} has {shape[0]} rows, but there are {n_params} parameters")
    if shape[-1] == 0:
        raise InputError(f"{label} has no columns")


def _read(source, low, high, label):
    """Rows low … high − 1 as [high − low, k] in native byte order."""
    k = 1 if len(source.shape) == 1 else source.shape[1]
    dtype = source.dtype
    if dtype.kind != "f" or dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    rows = np.empty((high - low, k), np.float32 if dtype.itemsize < 4 else dtype.newbyteorder("="))
    step = max(1, MESSAGE_BYTES // (8 * k))
    try:
        for at in range(low, high, step):
            stop = min(high, at + step)
            rows[at - low : stop - low] = np.reshape(source[at:stop], (stop - at, k))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{label} cannot be read: it is truncated or damaged") from error
    return rows


def check_output(spec, comm, source=None, files=(), what="output"):
    """InputError on every rank where vectors cannot be written to `spec`, or would replace the vectors that are read from `source`, or one

    of `files` (datasets as file.h5:/name); call it before the computation. Collective.
    """
    on_root(comm, _check_output, spec, source, files, what)


def check_finite(rows, comm, what):
    """InputError on every rank where `rows` holds NaN or Inf on one: the input was finite, so numbers were too large. Collective."""
    error = None if np.isfinite(rows).all() else InputError(f"the {what} overflows: scale the input vectors down")
    agree(comm, error)


def _check_output(spec, source, files, what):
    path, name = _split(spec, what)
    if source is not None:
        _split(source, "input")
    for read in map(os.fspath, [*files, *([] if source is None else [source])]):
        read_path, _, read_name = read.rpartition(":/") if ":/" in read else (read, "", "")
        if os.path.realpath(path) == os.path.realpath(read_path) and read_name.strip("/") in ("", name):
            raise InputError(f"{what} {spec} would replace {read}, which is read: name another one")
    target = writable_target(path)
    if name is None or not os.path.exists(target):
        return
    with open_hdf5(path, what, "r+") as file:
        if file.attrs.get("format") == FORMAT:
            raise InputError(f"{what} {spec}: {path} is a factor file; vectors in it would belie its checksums; name another file")
        if name in file and not isinstance(file[name], h5py.Dataset):
            raise InputError(f"{what} {spec}: /{name} is a group in {path}")
        parents = name.split("/")[:-1]
        for parent in ("/".join(parents[: i + 1]) for i in range(len(parents))):
            if parent in file and not isinstance(file[parent], h5py.Group):
                raise InputError(f"{what} {spec}: /{parent} is a dataset in {path}")


def write_rows(spec, comm, local, one_dimensional, n_params):
    """Write parameter rows `local` [n_local, k] of every rank to `spec`, as [N] if `one_dimensional` (then k = 1). Collective.

    `.npy` files and new HDF5 files appear whole or not at all. In an HDF5 file that exists the dataset is written under a temporary
    name and takes its place, and a dataset of that name, when it is complete; the rest of the file stays. Raises InputError.
    """
    check_output(spec, comm)
    dtype, k = comm.bcast((np.dtype(local.dtype), local.shape[1]))
    starts = row_starts(n_params, comm.size)
    with together(comm):
        low, high = starts[comm.rank : comm.rank + 2]
        if local.shape != (high - low, k) or (one_dimensional and k != 1):
            raise ValueError(f"rows of shape {local.shape} instead of {(high - low, k)}")
        local = np.ascontiguousarray(local, dtype=dtype)
    step = max(1, MESSAGE_BYTES // (dtype.itemsize * max(1, k)))
    error = None
    if comm.rank == 0:
        received = _received(comm, local, starts, step)
        try:
            with disk_errors(spec), _destination(spec, (n_params,) if one_dimensional else (n_params, k), dtype) as put:
                for low, rows in received:
                    put(low, rows)
        except Exception as caught:
            error = caught
        for _ in received:  # after an error the other ranks' messages still have to be taken
            pass
    else:
        for at in range(0, len(local), step):
            comm.Send(local[at : at + step], 0)
    agree(comm, error)


def _received(comm, local, starts, step):
    """(first row, rows) of all ranks in order, on rank 0."""
    for rank in range(comm.size):
        for low in range(int(starts[rank]), int(starts[rank + 1]), step):
            high = min(low + step, int(starts[rank + 1]))
            if rank == 0:
                yield low, local[low:high]
                continue
            rows = np.empty((high - low, local.shape[1]), local.dtype)
            comm.Recv(rows, rank)
            yield low, rows


@contextmanager
def _destination(spec, shape, dtype):
    """put(first row, rows [·, k]), to be called in the order of the rows, for the file or dataset at `spec`. One rank."""
    path, name = _split(spec, "output")
    target = writable_target(path)
    if name is None:
        with replacing(target) as temporary, open(temporary, "wb") as file:
            described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, described)
            yield lambda _, rows: file.write(rows.data)
    elif not os.path.exists(target):
        with replacing(target) as temporary, h5py.File(temporary, "w") as file:
            yield _into(file.create_dataset(name, shape, dtype, track_times=False))
    else:
        with open_hdf5(target, "output", "r+") as file:
            partial = f"{name}{PARTIAL}-{os.getpid()}"
            try:
                yield _into(file.create_dataset(partial, shape, dtype, track_times=False))
                if name in file:
                    del file[name]
                file.move(partial, name)
            finally:
                if partial in file:
                    del file[partial]


def _into(dataset):
    def put(low, rows):
        dataset[low : low + len(rows)] = rows.reshape(len(rows), *dataset.shape[1:])

    return put
