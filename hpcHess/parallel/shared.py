"""Arrays held once per host, in MPI shared windows."""

import numpy as np
from mpi4py import MPI

_PIECE = 1 << 28  # bytes of one broadcast


class HostArray:
    """One array per host that the host's ranks fill and read together; `array` [shape] is a view on the window.

    Making, `fence` and `close` are collective over `comm`; `close` invalidates the array. A HostArray that is never closed
    lives until MPI is finalized (a window cannot be freed by garbage collection: freeing is collective).
    """

    _open = set()

    def __init__(self, comm, shape, dtype):
        self.dtype = np.dtype(dtype)
        self.host_comm = comm.Split_type(MPI.COMM_TYPE_SHARED)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self._window = MPI.Win.Allocate_shared(n_bytes if self.host_comm.rank == 0 else 0, self.dtype.itemsize, comm=self.host_comm)
        memory, _ = self._window.Shared_query(0)
        self.array = np.frombuffer(memory, self.dtype, n_bytes // self.dtype.itemsize).reshape(shape) if n_bytes else np.zeros(shape, self.dtype)
        HostArray._open.add(self)

    def fence(self):
        """Until here all ranks of the host have written. Collective."""
        self._window.Sync()
        self.host_comm.Barrier()
        self._window.Sync()

    def share_of(self, n):
        """The slice of n items that this rank fills among its host's ranks."""
        rank, size = self.host_comm.rank, self.host_comm.size
        return slice(n * rank // size, n * (rank + 1) // size)

    def close(self):
        """Free the window. Collective; a second call does nothing."""
        if self in HostArray._open:
            HostArray._open.discard(self)
            self.array = None
            self._window.Free()
            self.host_comm.Free()


def share(comm, array=None):
    """Rank 0's `array` (the others give None) as a read-only array on every rank, one copy per host. Collective.

    The memory stays until MPI is finalized.
    """
    shape, dtype = comm.bcast(None if comm.rank else (array.shape, array.dtype))
    if comm.size == 1:
        view = np.ascontiguousarray(array).view()
        view.flags.writeable = False
        return view
    held = HostArray(comm, shape, dtype)
    leaders = comm.Split(0 if held.host_comm.rank == 0 else MPI.UNDEFINED, comm.rank)
    if leaders != MPI.COMM_NULL:
        flat = held.array.reshape(-1)
        if comm.rank == 0:
            flat[...] = np.asarray(array).reshape(-1)
        step = max(1, _PIECE // held.dtype.itemsize)
        for at in range(0, flat.size, step):
            leaders.Bcast(flat[at : at + step].view(np.uint8), root=0)
        leaders.Free()
    held.fence()
    view = held.array.view()
    view.flags.writeable = False
    return view
