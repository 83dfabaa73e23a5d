"""How much memory the ranks of a host may still take."""

import os

from mpi4py import MPI

from hpcHess.parallel.agree import agree
from hpcHess.runtime.errors import InputError


def free_bytes():
    """Memory that this host can give without swapping: MemAvailable (Linux), else the free pages."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def fair_share(comm):
    """Bytes that a rank may take when the ranks of its host share what is free; the smallest of all ranks. Collective."""
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    share = host.bcast(free_bytes()) // host.size
    host.Free()
    return comm.allreduce(share, MPI.MIN)


def check_room(comm, n_bytes, what):
    """InputError on all ranks, naming `what`, where the ranks of a host are to take `n_bytes` (this rank's share) more than it has. Collective."""
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    wanted, free = host.allreduce(int(n_bytes)), host.bcast(free_bytes() if host.rank == 0 else None)
    host.Free()
    error = None
    if wanted > free:
        sizes = f"{wanted / 2**30:,.3g} GiB of memory on a host that has {free / 2**30:,.3g} GiB free"
        error = InputError(f"{what} would take {sizes}: use more hosts, a smaller problem, or another format")
    agree(comm, error)
