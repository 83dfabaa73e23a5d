"""Exchanges of stacked rows between ranks. All functions are collective and take host arrays; those with an argument `xp` take arrays of
that namespace, which may lie on a device where MPI reads them there (`parallel.device`) and whoever wrote them has finished.

A distributed multivector [n, k] lies in contiguous row pieces: rank r holds rows starts[r] … starts[r+1] − 1.
"""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel.device import finished
from hpcHess.parallel.ownership import starts_of

_MESSAGE = 1 << 28  # numbers in one message at most, far from MPI's int32 counts


def _column_blocks(n_rows, k):
    """Column ranges such that n_rows × width stays below the message bound."""
    width = max(1, _MESSAGE // max(1, n_rows))
    return [(at, min(k, at + width)) for at in range(0, k, width)] or [(0, 0)]


def reduce_rows(comm, partial, starts):
    """Σ over ranks of `partial` [n, k] (whole on every rank); each rank gets its rows [n_local, k]."""
    if comm.size == 1:
        return partial
    n, k = partial.shape
    counts = np.diff(starts)
    local = np.empty((counts[comm.rank], k), partial.dtype)
    for a, b in _column_blocks(n, k):
        piece = np.empty((counts[comm.rank], b - a), partial.dtype)
        comm.Reduce_scatter(np.ascontiguousarray(partial[:, a:b]), piece, counts * (b - a))
        local[:, a:b] = piece
    return local


def gather_rows(comm, local, starts):
    """The whole [n, k] on every rank from the pieces [n_local, k]."""
    if comm.size == 1:
        return local
    k = local.shape[1]
    whole = np.empty((starts[-1], k), local.dtype)
    for a, b in _column_blocks(int(starts[-1]), k):
        piece = np.empty((starts[-1], b - a), local.dtype)
        comm.Allgatherv(np.ascontiguousarray(local[:, a:b]), [piece, np.diff(starts) * (b - a)])
        whole[:, a:b] = piece
    return whole


def _alltoall(comm, rows, send_counts, receive_counts, xp=np):
    """Rows ordered by destination → rows ordered by source, [Σ receive_counts, …]."""
    trailing = rows.shape[1:]
    width = int(np.prod(trailing, dtype=np.int64))
    received = xp.empty((int(receive_counts.sum()), *trailing), rows.dtype)
    largest = comm.allreduce(int(max(send_counts.sum(), receive_counts.sum())) * width, MPI.MAX)
    if largest >= _MESSAGE and width > 1:
        half = width // 2
        flat, into = rows.reshape(len(rows), width), received.reshape(len(received), width)
        into[:, :half] = _alltoall(comm, xp.ascontiguousarray(flat[:, :half]), send_counts, receive_counts, xp)
        into[:, half:] = _alltoall(comm, xp.ascontiguousarray(flat[:, half:]), send_counts, receive_counts, xp)
        return received
    rows = xp.ascontiguousarray(rows)
    finished(xp)
    comm.Alltoallv([rows, send_counts * width], [received, receive_counts * width])
    return received


def repartition(comm, rows, source_starts, target_starts, xp=np):
    """The same stacked rows from one contiguous partition to another: [n_source, …] → [n_target, …]."""
    if comm.size == 1 or np.array_equal(source_starts, target_starts):
        return rows
    me = comm.rank

    def overlaps(lo, hi, starts):
        return np.maximum(0, np.minimum(hi, starts[1:]) - np.maximum(lo, starts[:-1]))

    send = overlaps(source_starts[me], source_starts[me + 1], target_starts)
    receive = overlaps(target_starts[me], target_starts[me + 1], source_starts)
    return _alltoall(comm, rows, send, receive, xp)


def _take(rows, index):
    return np.take(rows, index, axis=0)


class RowPermutation:
    """Moves rows between parameter rows and tree rows; `take(rows, index)` of its methods gives host rows[index], by default on one thread.

    `permutation` [n_tree] (whole on every rank): tree position → parameter index; parameters outside it are dead and get
    zero rows on the way back.
    """

    def __init__(self, comm, permutation, parameter_starts, tree_starts):
        self.comm, me = comm, comm.rank
        lo, hi = parameter_starts[me : me + 2]
        self.n_local = int(hi - lo)
        mine = permutation[tree_starts[me] : tree_starts[me + 1]]
        source = np.searchsorted(parameter_starts, mine, side="right") - 1
        self._arrange = np.argsort(source, kind="stable")  # arriving order (by source, then position) → tree positions
        self._receive = np.bincount(source, minlength=comm.size)
        positions = np.flatnonzero((permutation >= lo) & (permutation < hi))  # tree positions of my parameters, ascending
        self._rows = permutation[positions] - lo
        self._send = np.bincount(np.searchsorted(tree_starts, positions, side="right") - 1, minlength=comm.size)
        self._inverse = np.argsort(self._rows) if comm.size == 1 and len(self._rows) == self.n_local else None  # a permutation of own rows

    def to_tree(self, rows, take=_take):
        """Parameter rows [n_local, k] → tree rows."""
        departing = take(rows, self._rows)
        if self.comm.size == 1:  # nothing to arrange
            return departing
        arrived = _alltoall(self.comm, departing, self._send, self._receive)
        result = np.empty_like(arrived)
        result[self._arrange] = arrived
        return result

    def to_parameters(self, rows, take=_take):
        """Tree rows → parameter rows [n_local, k], zero where a parameter is dead."""
        if self._inverse is not None:
            return take(rows, self._inverse)
        result = np.zeros((self.n_local, *rows.shape[1:]), rows.dtype)
        result[self._rows] = rows if self.comm.size == 1 else _alltoall(self.comm, take(rows, self._arrange), self._receive, self._send)
        return result


class Halo:
    """Rows of nodes that other ranks own, needed here for pairs (α, β) kept by the owner of α.

    `pairs` [n, 2] (all pairs of a level, whole on every rank), `owned` int64 [P + 1] first node of each rank,
    `counts` int64 [#nodes] rows of every node. Own rows come first in an extended array, then the halo's.
    """

    def __init__(self, comm, pairs, owned, counts):
        self.comm, me = comm, comm.rank
        owner = lambda node: np.searchsorted(owned, node, side="right") - 1  # noqa: E731
        needs = np.stack([owner(pairs[:, 0]), pairs[:, 1]], axis=1)
        needs = np.unique(needs[needs[:, 0] != owner(needs[:, 1])], axis=0)  # (rank, node), by rank then node
        self.empty = len(needs) == 0
        lo, hi = owned[me : me + 2]
        self.own_starts = starts_of(counts[lo:hi])
        self._first, self.n_own = int(lo), int(self.own_starts[-1])
        self.nodes = needs[needs[:, 0] == me, 1]
        self._halo_starts = self.n_own + starts_of(counts[self.nodes])
        self.n_extended = int(self._halo_starts[-1])
        self._receive = np.bincount(owner(self.nodes), weights=counts[self.nodes], minlength=comm.size).astype(np.int64)
        sent = needs[owner(needs[:, 1]) == me]
        starts = self.own_starts[sent[:, 1] - lo]
        self._rows = ranges(starts, counts[sent[:, 1]])
        self._send = np.bincount(sent[:, 0], weights=counts[sent[:, 1]], minlength=comm.size).astype(np.int64)

    def starts(self, nodes):
        """First row of each node (own or in the halo) in the extended array."""
        own = (nodes >= self._first) & (nodes < self._first + len(self.own_starts) - 1)
        at = np.searchsorted(self.nodes, nodes)
        return np.where(own, self.own_starts[np.where(own, nodes - self._first, 0)], self._halo_starts[np.where(own, 0, at)])

    def fetch(self, rows, xp=np):
        """Own rows [n_own, k] → the halo's rows [n_extended − n_own, k]."""
        return _alltoall(self.comm, rows[xp.asarray(self._rows)], self._send, self._receive, xp)

    def accumulate(self, rows, halo_rows, xp=np):
        """Add the halo rows computed here to their owners' `rows`, in place, in the order of the ranks; returns `rows`."""
        arrived, starts = _alltoall(self.comm, halo_rows, self._receive, self._send, xp), starts_of(self._send)
        for rank in np.flatnonzero(self._send):
            piece = slice(int(starts[rank]), int(starts[rank + 1]))
            rows[xp.asarray(self._rows[piece])] += arrived[piece]  # no row twice from one rank
        return rows


def ranges(starts, counts):
    """Concatenated ranges starts[i] … starts[i] + counts[i] − 1."""
    total = int(counts.sum())
    ends = np.cumsum(counts)
    return np.arange(total, dtype=np.int64) + np.repeat(np.asarray(starts, np.int64) - (ends - counts), counts)
