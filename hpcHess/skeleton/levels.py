"""The level arrays of a nested-basis matrix: interpolations, couplings, near blocks, and the moves of rows between levels.

Columns c of a node: a leaf's parameters, or the stacked skeletons of an interior node's children. P = [I T] in the node's own
order (skeleton first); U = Pᵀ is nested: an interior node's P acts on its children's skeletons.
"""

from dataclasses import dataclass

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.exchange import Halo, ranges, repartition
from hpcHess.parallel.ownership import node_starts, starts_of


class PairBlocks:
    """Symmetric blocks between same-level nodes, kept by the owner of α.

    `pairs` int64 [n, 2] whole on every rank, α ≤ β, sorted; `blocks` [n_own] of shapes counts[α] × counts[β].
    """

    def __init__(self, comm, pairs, owned, counts):
        self.pairs, self.owned = pairs, owned
        self.first, self.last = np.searchsorted(pairs[:, 0], owned[comm.rank : comm.rank + 2])
        self.own = pairs[self.first : self.last]
        self.halo = Halo(comm, pairs, owned, counts)
        self.rows, self.cols = counts[self.own[:, 0]], counts[self.own[:, 1]]
        self.row_at, self.col_at = self.halo.starts(self.own[:, 0]), self.halo.starts(self.own[:, 1])
        self.blocks = None

    def set(self, data):
        """Install the flat buffer of the own blocks."""
        self.blocks = Blocks.shaped(data, self.rows, self.cols)

    def multiply(self, backend, X, Y, alpha=1.0):
        """Y += alpha·Σ over pairs (B X_β to α, and Bᵀ X_α to β when α ≠ β), in place; rows are this rank's nodes. Collective."""
        halo, k = self.halo, X.shape[1]
        if not halo.empty:
            X = backend.xp.concatenate([X, backend.exchanged(halo.comm, halo.fetch, X)])
            extra = backend.xp.zeros((halo.n_extended - halo.n_own, k), Y.dtype)
            own, Y = Y, backend.xp.concatenate([Y, extra])
        backend.multiply_symmetric(self.blocks, X, self.row_at, self.col_at, Y, alpha=alpha)
        if not halo.empty:
            own[...] = backend.exchanged(halo.comm, halo.accumulate, Y[: halo.n_own], Y[halo.n_own :])


def select(backend, blocks, which):
    """The blocks numbered `which`, copied."""
    take = ranges(blocks.offsets[which], blocks.rows[which] * blocks.cols[which])
    return Blocks.shaped(blocks.data[backend.asarray(take)], blocks.rows[which], blocks.cols[which])


@dataclass
class Level:
    """One level 1 … depth. Replicated: `columns`, `ranks` int64 [2^level]. Own nodes first … last − 1: `order` (flat, local
    positions, skeleton first), `T` Blocks [rank × (columns − rank)], `far` PairBlocks between skeletons."""

    level: int
    owned: np.ndarray
    columns: np.ndarray
    ranks: np.ndarray = None
    order: np.ndarray = None
    T: Blocks = None
    far: PairBlocks = None

    def at(self, comm):
        """Own node range (first, last)."""
        return int(self.owned[comm.rank]), int(self.owned[comm.rank + 1])

    def own(self, comm, counts):
        """The own nodes' part of a replicated array."""
        return counts[self.owned[comm.rank] : self.owned[comm.rank + 1]]

    def arrange(self, comm, backend):
        """Derive row positions from `order` and `ranks`: where skeleton and redundant rows lie in the stacked columns."""
        columns, ranks = self.own(comm, self.columns), self.own(comm, self.ranks)
        self.column_starts, self.skeleton_starts = starts_of(columns), starts_of(ranks)
        self.redundant_starts = starts_of(columns - ranks)
        rows = self.order + np.repeat(self.column_starts[:-1], columns)
        self.skeleton_rows = backend.asarray(rows[ranges(self.column_starts[:-1], ranks)])
        self.redundant_rows = backend.asarray(rows[ranges(self.column_starts[:-1] + ranks, columns - ranks)])

    def compress_rows(self, backend, rows):
        """P applied to stacked columns: [Σ c, k] → [Σ s, k], w̃ = w_J + T w_R."""
        return backend.compress_rows(self.T, self.skeleton_rows, self.redundant_rows, rows)

    def expand_rows(self, backend, rows, into=None):
        """Pᵀ applied to stacked skeleton rows: [Σ s, k] → [Σ c, k]; added to `into` where it is given."""
        return backend.expand_rows(self.T, self.skeleton_rows, self.redundant_rows, rows, into)

    def partition(self, counts):
        """Row starts [P + 1] of stacked pieces of `counts` rows a node of this level."""
        return starts_of(counts)[self.owned]


def new_level(comm, level, depth, columns):
    """An empty level with its ownership."""
    return Level(level, node_starts(level, depth, comm.size), columns)


def pair_sums(counts):
    """Children's counts → their parents' sums, int64 [2^(level − 1)]."""
    return counts.reshape(-1, 2).sum(axis=1)


def to_parents(comm, backend, rows, level, above, counts=None):
    """Stacked rows by nodes of `level` (`counts` a node, default its ranks) → the same rows held by the parents' owners."""
    counts = level.ranks if counts is None else counts
    source, target = level.partition(counts), above.partition(pair_sums(counts))
    if np.array_equal(source, target):
        return rows
    return backend.exchanged(comm, lambda rows, xp: repartition(comm, rows, source, target, xp), rows)


def to_children(comm, backend, rows, above, level, counts=None):
    """The way back: stacked rows held by the parents' owners → held by the children's owners."""
    counts = level.ranks if counts is None else counts
    source, target = above.partition(pair_sums(counts)), level.partition(counts)
    if np.array_equal(source, target):
        return rows
    return backend.exchanged(comm, lambda rows, xp: repartition(comm, rows, source, target, xp), rows)


def expand_to_children(comm, backend, rows, level, below, into):
    """`into` += Pᵀ of `level` applied to its stacked skeleton rows, held by the owners of the nodes `below`. In place, collective."""
    if comm.size == 1:
        level.expand_rows(backend, rows, into)
    else:
        into += to_children(comm, backend, level.expand_rows(backend, rows), level, below)
