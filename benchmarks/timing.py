"""Wall seconds of a piece of work on all ranks: barriers around it, the slowest rank counts, medians over repeats."""

import time
from dataclasses import dataclass, field

import numpy as np
from mpi4py import MPI

POLL_SECONDS = 5e-4


@dataclass
class Seconds:
    """Wall seconds of every repeat, the slowest rank's each, and CPU seconds a wall second (mean of the ranks); the same on every rank.

    A CPU share below the number of threads says that others had the core, that the disk was waited for, or another rank (where MPI yields
    the core while it waits, as OMPI_MCA_mpi_yield_when_idle=1 has it; else waiting keeps the core busy and does not show).
    """

    samples: list
    shares: list = field(default_factory=list)

    @property
    def median(self):
        return float(np.median(self.samples))

    def as_dict(self):
        """{median, min, max, repeats, cpu_share}; the share is None where it was not measured."""
        share = float(np.median(self.shares)) if self.shares else None
        return {
            "median": self.median,
            "min": float(min(self.samples)),
            "max": float(max(self.samples)),
            "repeats": len(self.samples),
            "cpu_share": share,
        }


def idle_barrier(comm):
    """A barrier that sleeps while it waits: ranks that wait in MPI's own keep their cores busy, and others want them."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(POLL_SECONDS)


def once(comm, work):
    """(`Seconds` of one run, what `work()` returned here). Collective."""
    comm.Barrier()
    start, cpu_start = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    share = comm.allreduce(cpu_seconds / max(seconds, 1e-9)) / comm.size
    return Seconds([float(comm.allreduce(seconds, MPI.MAX))], [share]), result


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
