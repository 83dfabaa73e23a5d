"""How much memory the ranks of a host may still take."""

import os
from contextlib import contextmanager

from mpi4py import MPI

from hpcHess.parallel.agree import agree
from hpcHess.runtime.errors import InputError


_given = []  # (bytes that a rank may take, what it held before), the innermost `at_most` last


@contextmanager
def at_most(comm, n_bytes):
    """Inside, all ranks together take `n_bytes` beyond what they hold already, as far as `fair_share`, `check_room` and `block_bytes` can see
    to it; 0: what is free. Not collective.
    """
    _given.append((int(n_bytes) // comm.size if n_bytes else 0, resident_bytes()))
    try:
        yield
    finally:
        _given.pop()


def limit():
    """Bytes that a rank may take, 0 where no number was given. The same on all ranks."""
    return _given[-1][0] if _given else 0


def block_bytes(most, parts=16):
    """Bytes of a block of which smaller ones would do: `most`, or the given limit's part."""
    return min(most, limit() // parts) if limit() else most


def resident_bytes():
    """What this process holds now (Linux; elsewhere 0: the limit then counts what is asked for alone)."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _left():
    """Bytes that this rank may still take of its limit, infinite without one."""
    return max(0, limit() - max(0, resident_bytes() - _given[-1][1])) if limit() else float("inf")


def free_bytes():
    """Memory that this host can give without swapping: MemAvailable (Linux), else the free pages."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def fair_share(comm):
    """Bytes that a rank may still take when the ranks of its host share what is free, within its limit; the smallest of all ranks. Collective."""
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    share = host.bcast(free_bytes()) // host.size
    host.Free()
    return int(comm.allreduce(min(share, _left()), MPI.MIN))


def check_room(comm, n_bytes, what):
    """InputError on all ranks, naming `what`, where a rank is to take more than its limit leaves, or the ranks of a host together more than it has.

    n_bytes: this rank's share. Collective.
    """
    host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    wanted, free = host.allreduce(int(n_bytes)), host.bcast(free_bytes() if host.rank == 0 else None)
    host.Free()
    error, left = None, _left()
    if n_bytes > left:
        held = f"{left / 2**30:,.3g} GiB of the {limit() / 2**30:,.3g} GiB that it may take"
        error = InputError(f"{what} would take {n_bytes / 2**30:,.3g} GiB of a rank that has {held} left: raise --memory, or use more hosts")
    elif wanted > free:
        sizes = f"{wanted / 2**30:,.3g} GiB of memory on a host that has {free / 2**30:,.3g} GiB free"
        error = InputError(f"{what} would take {sizes}: use more hosts, a smaller problem, or another format")
    agree(comm, error)
