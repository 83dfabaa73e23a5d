"""Arrays held once per host, in MPI shared windows."""

import atexit
import ctypes
import weakref

import numpy as np
from mpi4py import MPI

_PIECE = 1 << 29  # bytes of one broadcast
_CACHE = MPI.Comm.Create_keyval()  # comm → (its ranks of this host, the windows open on them in the order they were made)
_living = []  # the window lists, for the end of the program


class _Window:
    """A shared window, and whether this rank still has an array on it."""

    def __init__(self, host_comm, n_bytes):
        self.window = MPI.Win.Allocate_shared(n_bytes if host_comm.rank == 0 else 0, 1, comm=host_comm)
        address = self.window.Shared_query(0)[0]
        self.memory = (ctypes.c_char * n_bytes).from_address(np.frombuffer(address, np.uint8).ctypes.data)
        # freeing is collective, so collected arrays only leave a mark: the ranks agree at the next allocation
        self.done = weakref.finalize(self.memory, bool)
        self.done.atexit = False

    def array(self, shape, dtype):
        """The window's memory as an array; every view of it keeps the memory marked as used."""
        memory, self.memory = self.memory, None
        return np.frombuffer(memory, dtype).reshape(shape)

    def free(self):
        if self.window is not None:
            self.window.Free()
            self.window = None


def _host(comm):
    """(host_comm, windows) of a communicator, made once. Collective the first time."""
    found = comm.Get_attr(_CACHE)
    if found is None:
        found = comm.Split_type(MPI.COMM_TYPE_SHARED), []
        comm.Set_attr(_CACHE, found)
        _living.append(found[1])
    return found


def _collect(host_comm, windows):
    """Free the windows on which no rank of the host has an array any more. Collective over the host."""
    if not windows:
        return
    unused = np.array([not window.done.alive for window in windows], np.uint8)
    host_comm.Allreduce(MPI.IN_PLACE, unused, MPI.MIN)
    for window, free in zip(list(windows), unused, strict=True):
        if free:
            windows.remove(window)
            window.free()


@atexit.register
def _free_all():
    """Before MPI is finalized: the windows left, in the order they were made, which is the same on all ranks of each."""
    if not MPI.Is_finalized():
        for windows in _living:
            while windows:
                windows.pop(0).free()


class HostArray:
    """One array per host, which the host's ranks fill by slices and read together.

    `array` [shape], writable, uninitialized; `host_comm` the ranks of `comm` on this host. Making, `fence` and `close` are
    collective. Unclosed memory is freed at a later allocation on the same communicator once no rank of the host has
    an array or view on it, else when MPI is finalized. A host with one rank uses ordinary memory.
    """

    def __init__(self, comm, shape, dtype):
        self.host_comm, windows = _host(comm)
        _collect(self.host_comm, windows)
        dtype = np.dtype(dtype)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._window, self._windows = None, windows
        if self.host_comm.size == 1 or n_bytes == 0:
            self.array = np.empty(shape, dtype)
        else:
            self._window = _Window(self.host_comm, n_bytes)
            windows.append(self._window)
            self.array = self._window.array(shape, dtype)

    def fence(self):
        """What any rank of the host wrote before is seen by all after. Collective over the host."""
        if self._window is not None:
            self._window.window.Sync()
            self.host_comm.Barrier()
            self._window.window.Sync()

    def share_of(self, n):
        """The slice of n items that this rank fills among its host's ranks."""
        rank, size = self.host_comm.rank, self.host_comm.size
        return slice(n * rank // size, n * (rank + 1) // size)

    def close(self):
        """Free the memory now: no view of `array` may be used any more. Collective over the host; a second call does nothing."""
        self.array = None
        if self._window is not None and self._window.window is not None:
            self.host_comm.Barrier()  # no rank is still reading
            self._windows.remove(self._window)
            self._window.free()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def share(comm, array=None):
    """Rank 0's `array` (the others give None) as a read-only array on every rank, one copy per host. Collective.

    One process gets a read-only view of `array` itself (row-major). Memory is freed as a `HostArray`'s.
    """
    shape, dtype = comm.bcast(None if comm.rank else (array.shape, array.dtype))
    if comm.size == 1:
        view = np.ascontiguousarray(array).reshape(shape).view()
        view.flags.writeable = False
        return view
    held = HostArray(comm, shape, dtype)
    leaders = comm.Split(0 if held.host_comm.rank == 0 else MPI.UNDEFINED, comm.rank)
    if leaders != MPI.COMM_NULL:
        if comm.rank == 0:
            held.array[...] = array
        if leaders.size > 1:
            data = held.array.reshape(-1).view(np.uint8)
            for at in range(0, data.size, _PIECE):
                leaders.Bcast(data[at : at + _PIECE], root=0)
        leaders.Free()
    held.fence()
    view = held.array.view()
    view.flags.writeable = False
    return view
