"""Wall seconds of a piece of work on all ranks: barriers around it, the slowest rank counts, medians over repeats."""

import resource
import time
from dataclasses import dataclass, field

import numpy as np
from mpi4py import MPI

POLL_SECONDS = 5e-4
LEAST_SECONDS = 0.02  # shorter runs have no system share: the kernel counts by ticks


@dataclass
class Seconds:
    """Wall seconds of every repeat, the slowest rank's each, and shares [(CPU, system)]: seconds a wall second that a rank (the mean of
    them) had a core, and of these the ones inside the kernel (new memory, files); the same on every rank.

    A CPU share below the number of threads says that others had the core, that the disk was waited for, or another rank (where MPI yields
    the core while it waits, as OMPI_MCA_mpi_yield_when_idle=1 has it; else waiting keeps the core busy and does not show).
    """

    samples: list
    shares: list = field(default_factory=list)

    @property
    def median(self):
        return float(np.median(self.samples))

    def as_dict(self):
        """{median, min, max, repeats, cpu_share, system_share}; shares are None where they were not measured."""
        cpu, system = np.median(self.shares, axis=0).tolist() if self.shares else (None, None)
        found = {"median": self.median, "min": float(min(self.samples)), "max": float(max(self.samples)), "repeats": len(self.samples)}
        return found | {"cpu_share": cpu, "system_share": system if self.median >= LEAST_SECONDS else None}


def clocks():
    """(wall, user and system, system) seconds of this process, as an array: differences count."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_stime])


def idle_barrier(comm):
    """A barrier that sleeps while it waits: ranks that wait in MPI's own keep their cores busy, and others want them."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(POLL_SECONDS)


def once(comm, work):
    """(`Seconds` of one run, what `work()` returned here). Collective."""
    comm.Barrier()
    start = clocks()
    result = work()
    seconds, *shares = clocks() - start
    return Seconds([float(comm.allreduce(seconds, MPI.MAX))], [mean_shares(comm.allgather((seconds, *shares)))]), result


def mean_shares(clocked):
    """(CPU, system) share of the mean rank from every rank's (wall, CPU, system) seconds."""
    return tuple(np.mean([np.array(used) / max(wall, 1e-9) for wall, *used in clocked], axis=0).tolist())


def repeated(comm, work, repeats, budget=10.0, warm=True):
    """(`Seconds`, the last result) of `work()`, at most `repeats` times and no new one after `budget` seconds. Collective.

    warm: one run before, not counted, where a run is short enough (its seconds decide on all ranks alike).
    """
    found, result = once(comm, work)
    if warm and repeats > 1 and found.samples[0] < budget / 4:
        found = Seconds([])
    while len(found.samples) < repeats and (not found.samples or sum(found.samples) < budget):
        more, result = once(comm, work)
        found = Seconds(found.samples + more.samples, found.shares + more.shares)
    return found, result
