"""What ranks tell each other, counted call by call: a communicator that counts and passes on.

Volume of a call on a rank: the larger of the bytes it sends and receives, messages: those it sends; of collectives by the usual algorithms on P ranks
(Thakur, Rabenseifner & Gropp, IJHPCA 2005), with s the bytes of one rank's buffer, S of all ranks' together, L = ⌈log₂P⌉:

    Barrier, Ibarrier         0                    L
    bcast (objects)           s L  (the root's)    L
    Bcast (arrays)            2 s (P−1)/P          2 L        scatter and allgather
    allreduce (objects)       2 s L                2 L        to the root and back by trees
    Allreduce (arrays)        2 s (P−1)/P          2 L        reduce-scatter and allgather
    allgather, Allgatherv     S (less its own)     L
    gather, Gatherv           S at the root        1          S less the root's own; s elsewhere
    Reduce_scatter            S (P−1)/P            L          S: the buffer that every rank gives
    alltoall, Alltoallv       to others            destinations that get something
    Send, Isend, Recv         s                    1 (Recv 0)

Communicators made of this one (`Split_type` for the ranks of a host) do not count: what they share is memory.
"""

import pickle
import sys
import tracemalloc
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mpi4py import MPI

ROOT = Path(__file__).parents[1]
SKIPPED = ("traffic.py", "exchange.py", "agree.py", "replicated.py", "contextlib.py")  # a call is filed under who called these


class Traffic:
    """`sites[phase][(file:line, call)] = [calls, bytes, messages]` and `peaks[phase]`, largest Python allocations in bytes, of this rank."""

    def __init__(self):
        self.sites = defaultdict(lambda: defaultdict(lambda: [0, 0, 0]))
        self.peaks = {}
        self._phase = "before"

    @contextmanager
    def phase(self, name, total=None):
        """As `runtime.progress.Silent.phase`: what follows is counted under this name; traced memory where `tracemalloc` runs. Phases nest."""
        before, self._phase = self._phase, name
        traced = tracemalloc.is_tracing()
        if traced:
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
        try:
            yield self
        finally:
            if traced:
                self.peaks[name] = max(self.peaks.get(name, 0), tracemalloc.get_traced_memory()[1] - held)
            self._phase = before

    def advance(self, steps=1):
        """Of a phase: nothing."""

    def write(self, text):
        """As `Silent.write`."""

    def count(self, call, n_bytes, messages):
        """One call, from the innermost frame outside of this module and of `parallel/exchange.py`, where all exchanges lie."""
        frame = sys._getframe(1)
        while frame is not None and Path(frame.f_code.co_filename).name in SKIPPED:
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
        found = self.sites[self._phase][f"{where}:{frame.f_lineno}", call]
        for i, more in enumerate((1, int(n_bytes), int(messages))):
            found[i] += more


class CountingComm(MPI.Intracomm):
    """A duplicate of a communicator that counts into `traffic`. Collective."""

    def __new__(cls, comm, traffic):
        return super().__new__(cls, comm.Dup())

    def __init__(self, comm, traffic):
        self.traffic, self.steps = traffic, int(np.ceil(np.log2(comm.size)))
        self.part = (comm.size - 1) / comm.size

    def _count(self, call, n_bytes, messages):
        if self.size > 1:
            self.traffic.count(call, n_bytes, messages)

    def Barrier(self):
        self._count("Barrier", 0, self.steps)
        return super().Barrier()

    def Ibarrier(self):
        self._count("Ibarrier", 0, self.steps)
        return super().Ibarrier()

    def bcast(self, obj=None, root=0):
        result = super().bcast(obj, root)
        self._count("bcast", size_of(result) * self.steps, self.steps)
        return result

    def Bcast(self, buf, root=0):
        self._count("Bcast", 2 * buffer_size(buf) * self.part, 2 * self.steps)
        return super().Bcast(buf, root)

    def allreduce(self, sendobj, op=MPI.SUM):
        self._count("allreduce", 2 * size_of(sendobj) * self.steps, 2 * self.steps)
        return super().allreduce(sendobj, op)

    def Allreduce(self, sendbuf, recvbuf, op=MPI.SUM):
        self._count("Allreduce", 2 * buffer_size(recvbuf) * self.part, 2 * self.steps)
        return super().Allreduce(sendbuf, recvbuf, op)

    def allgather(self, sendobj):
        result = super().allgather(sendobj)
        self._count("allgather", sum(map(size_of, result)) - size_of(sendobj), self.steps)
        return result

    def Allgather(self, sendbuf, recvbuf):
        self._count("Allgather", buffer_size(recvbuf) * self.part, self.steps)
        return super().Allgather(sendbuf, recvbuf)

    def Allgatherv(self, sendbuf, recvbuf):
        own = 0 if sendbuf is MPI.IN_PLACE else buffer_size(sendbuf)
        self._count("Allgatherv", buffer_size(recvbuf) - own, self.steps)
        return super().Allgatherv(sendbuf, recvbuf)

    def gather(self, sendobj, root=0):
        result = super().gather(sendobj, root)
        at_root = sum(map(size_of, result)) - size_of(sendobj) if self.rank == root else 0
        self._count("gather", at_root or size_of(sendobj), 1)
        return result

    def Gatherv(self, sendbuf, recvbuf, root=0):
        self._count("Gatherv", buffer_size(recvbuf) if self.rank == root else buffer_size(sendbuf), 1)
        return super().Gatherv(sendbuf, recvbuf, root)

    def Reduce_scatter(self, sendbuf, recvbuf, recvcounts=None, op=MPI.SUM):
        self._count("Reduce_scatter", buffer_size(sendbuf) * self.part, self.steps)
        return super().Reduce_scatter(sendbuf, recvbuf, recvcounts, op)

    def alltoall(self, sendobj):
        result = super().alltoall(sendobj)
        others = [i for i in range(self.size) if i != self.rank]
        sizes = [sum(size_of(each[i]) for i in others) for each in (sendobj, result)]
        self._count("alltoall", max(sizes), len(others))
        return result

    def Alltoallv(self, sendbuf, recvbuf):
        sizes = []
        for array, counts in (sendbuf, recvbuf):
            elsewhere = np.array(counts, np.int64)
            elsewhere[self.rank] = 0
            sizes.append(int(elsewhere.sum()) * np.asarray(array).itemsize)
            messages = np.count_nonzero(elsewhere) if len(sizes) == 1 else messages  # noqa: F821
        self._count("Alltoallv", max(sizes), messages)
        return super().Alltoallv(sendbuf, recvbuf)

    def Send(self, buf, dest, tag=0):
        self._count("Send", buffer_size(buf), 1)
        return super().Send(buf, dest, tag)

    def Isend(self, buf, dest, tag=0):
        self._count("Isend", buffer_size(buf), 1)
        return super().Isend(buf, dest, tag)

    def Recv(self, buf, source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG, status=None):
        self._count("Recv", buffer_size(buf), 0)
        return super().Recv(buf, source, tag, status)


def size_of(thing):
    """Bytes of an array, else of the pickled object."""
    return thing.nbytes if isinstance(thing, np.ndarray) else len(pickle.dumps(thing, -1))


def buffer_size(buffer):
    """Bytes of what MPI gets as an array or as [array, counts, …]."""
    return memoryview(buffer[0] if isinstance(buffer, (list, tuple)) else buffer).nbytes
