"""How much memory the ranks of a host may still take."""

import os

from mpi4py import MPI


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
