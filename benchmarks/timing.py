"""Wall seconds of a piece of work on all ranks: barriers around it, the slowest rank counts, medians over repeats."""

import time
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

POLL_SECONDS = 5e-4


@dataclass
class Seconds:
    """Wall seconds of every repeat, the slowest rank's each; the same on every rank."""

    samples: list

    @property
    def median(self):
        return float(np.median(self.samples))

    def as_dict(self):
        """{median, min, max, repeats}."""
        return {"median": self.median, "min": float(min(self.samples)), "max": float(max(self.samples)), "repeats": len(self.samples)}


def idle_barrier(comm):
    """A barrier that sleeps while it waits: ranks that wait in MPI's own keep their cores busy, and others want them."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(POLL_SECONDS)


def once(comm, work):
    """(seconds of the slowest rank, what `work()` returned here). Collective."""
    comm.Barrier()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    return float(comm.allreduce(seconds, MPI.MAX)), result


def repeated(comm, work, repeats, budget=10.0, warm=True):
    """(Seconds, the last result) of `work()`, at most `repeats` times and no new one after `budget` seconds. Collective.

    warm: one run before, not counted, where a run is short enough (its seconds decide on all ranks alike).
    """
    seconds, result = once(comm, work)
    samples = [seconds]
    if warm and repeats > 1 and seconds < budget / 4:
        samples = []
    while len(samples) < repeats and (not samples or sum(samples) < budget):
        seconds, result = once(comm, work)
        samples.append(seconds)
    return Seconds(samples), result
