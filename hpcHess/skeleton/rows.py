"""Samples of the far fields by rows of H, as GOFMM draws them (Yu, Levitt, Reiz & Biros, SC 2017, §2.2): entries alone, no products.

A node with columns I takes q = 4·max(|I|, m) rows of its far field (m: leaf size): first the parameters that are neighbours of most of I,
weight 1, at most q/4; then one row from each of equal strata of the rest (in tree order), drawn uniformly, weight √(size of its stratum).
So E ‖W H[rows, I]‖_F² = ‖H[far, I]‖_F² exactly, and with √k the columns of R are as a sketch's. All rows are taken where the far
field has no more than q.

The far field of α: all parameters outside of the nodes of its level that are near α, those with a near leaf pair below.
"""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel import memory
from hpcHess.parallel.agree import together
from hpcHess.parallel.exchange import RowPermutation, ranges
from hpcHess.parallel.ownership import row_starts, starts_of
from hpcHess.parallel.random import scramble
from hpcHess.skeleton.levels import to_parents

ROWS = 4  # rows a column (GOFMM: 2; more save attempts); a quarter of them neighbours at most: the others tell the tail of a fit
MOST_ROWS = 32
LEAST_ROWS = 16  # of a node, however little memory there is
HEADROOM = 1e-3  # weighted entries above this part of the largest float32 are sampled in float64


def lists_in_tree_rows(comm, alive, tree, tree_starts, lists):
    """Neighbour lists of this rank's piece of the alive parameters → those of its tree rows, as tree positions, [n_local, κ]. Collective."""
    moves = RowPermutation(comm, np.searchsorted(alive, tree.permutation), row_starts(len(alive), comm.size), tree_starts)
    position = np.zeros(int(tree.permutation.max(initial=-1)) + 1, np.int64)
    position[tree.permutation] = np.arange(tree.n)
    return position[moves.to_tree(lists)]


class RowSamples:
    """Rows of the far fields (`skeletonize.Skeletonizer`), the same for any number of ranks.

    `sketch`: a `Sketch` without columns, for probes; `lists` int64 [n_local, κ]: neighbours of the own tree rows, as tree positions;
    None for uniform rows only.
    """

    by_entries = True

    def __init__(self, sketch, leaf_size, seed, lists=None):
        self.sketch, self.leaf_size, self.seed = sketch, leaf_size, seed
        self.lists, self.ratio = np.zeros((len(sketch.rows), 0), np.int64) if lists is None else lists, ROWS

    def start(self, build):
        """At the leaves."""
        self.build, self.own_lists, self.R, self.more, self.bound = build, self.lists, None, 0, None

    def at(self, level, index):
        """Weighted H[I_α, rows of α] of the own nodes, [Σ c, k], padded with zero columns. Collective."""
        if self.R is None:
            self._evaluate(level, index)
        return self.R, self.counts

    def grow(self, level, wanted):
        """More rows for the nodes that want them and may have them. Collective."""
        more = np.maximum(self.more, np.where(self.cut, 0, wanted))
        if not self.build.comm.allreduce(int((more > self.more).any()), MPI.MAX):
            return False
        self.more, self.R = more, None
        return True

    def amount(self):
        """What there is, in words."""
        return "rows of the far fields"

    def deepen(self):
        """Twice as many rows from the next pass on; False where there are enough. For a pass whose tails were too optimistic."""
        if 2 * self.ratio > MOST_ROWS:
            return False
        self.ratio *= 2
        return True

    def climb(self, level, above):
        """The neighbours of the skeletons go to the parents."""
        build = self.build
        kept = build.backend.asarray(self.own_lists[build.backend.to_host(level.skeleton_rows)])
        self.own_lists = build.backend.to_host(to_parents(build.comm, build.backend, kept, level, above))
        self.R, self.more = None, 0

    def finish(self):
        """Nothing is left to do."""

    def _evaluate(self, level, index):
        build = self.build
        columns = level.own(build.comm, level.columns)
        rows, weights, counts, self.counts = self._rows(level, columns)
        with together(build.comm):
            blocks = build.operator.entries_batch(index, starts_of(columns), build.tree.permutation[rows], starts_of(counts))
        k = build.comm.allreduce(int(counts.max(initial=0)), MPI.MAX)
        largest = max(float(np.max(blocks.data, initial=0)), -float(np.min(blocks.data, initial=0)))
        largest = build.comm.allreduce(largest * float(np.max(weights, initial=0)) * np.sqrt(k), MPI.MAX)
        dtype = blocks.dtype if largest < HEADROOM * np.finfo(blocks.dtype).max else np.dtype(np.float64)
        padded = np.zeros((len(counts), k), dtype)
        inside = np.arange(k) < counts[:, None]
        padded[inside] = weights * np.sqrt(k)
        R, node = np.zeros((int(columns.sum()), k), dtype), np.repeat(np.arange(len(columns)), columns)
        R[inside[node]] = blocks.data
        R *= padded[node]
        self.R = build.backend.asarray(R)

    def _rows(self, level, columns):
        """(tree positions, weights, number a node, independent samples a node) of the own nodes' rows."""
        own, n, near = Near(level, self.build), self.build.tree.n, None
        total = np.maximum(self.ratio * np.maximum(columns, self.leaf_size), 4 * self.more // 3)
        total = self._held(np.minimum(total, own.n_far), columns)
        everything = own.n_far <= total
        near, important = self._important(own, columns, np.where(everything, 0, total // 4))
        rest = own.n_far - np.bincount(near, minlength=own.count)
        drawn = np.minimum(total - (own.n_far - rest), rest)
        node, stratum = np.repeat(np.arange(own.count), drawn), ranges(0 * drawn, drawn)
        low, high = (j * rest[node] // drawn[node] for j in (stratum, stratum + 1))
        code = ((1 << level.level) + own.first + node) << 32 | stratum
        number = low + (scramble(code, self.seed) % (high - low).astype(np.uint64)).astype(np.int64)
        position = own.outside(node, number, near, important)
        nodes = np.concatenate([near, node])
        order = np.argsort(nodes, kind="stable")
        weights = np.concatenate([np.ones(len(near)), np.sqrt(high - low)])
        taken = own.n_far - rest
        with np.errstate(divide="ignore", invalid="ignore"):  # Kish's effective number of the weights
            effective = np.where(everything, np.inf, own.n_far**2 / (taken + rest.astype(float) ** 2 / drawn))
        assert (position < n).all()
        return np.concatenate([important, position])[order], weights[order], drawn + taken, effective

    def _held(self, total, columns):
        """The part of `total` rows that the memory holds (entries, samples, copies: six numbers each); `cut`, `bound`. Collective."""
        comm, numbers = self.build.comm, 6 * self.build.operator.dtype.itemsize * max(1, int(columns.sum()))
        most = max(LEAST_ROWS, comm.allreduce(int(0.8 * memory.fair_share(comm)) // numbers, MPI.MIN))
        self.cut = total > most
        self.bound = most - max(10, most // 4) if comm.allreduce(int(self.cut.any()), MPI.MAX) else None
        return np.minimum(total, most)

    def _important(self, own, columns, most):
        """(nodes, tree positions) of the up to most[α] parameters in the far field of α that are neighbours of most of its columns."""
        n, width = self.build.tree.n, self.own_lists.shape[1]
        node = np.repeat(np.arange(own.count), columns * width)
        keys, votes = np.unique(node * n + self.own_lists.ravel(), return_counts=True)
        node, position = np.divmod(keys, n)
        far = own.is_far(node, position)
        node, position, votes = node[far], position[far], votes[far]
        order = np.lexsort((scramble(position, self.seed), -votes, node))
        node, position = node[order], position[order]
        taken = np.arange(len(node)) - np.searchsorted(node, node) < most[node]
        return node[taken], position[taken]


class Near:
    """Near nodes of a level's own nodes, as intervals of tree positions; `n_far` int64 [own nodes]: parameters outside of them."""

    def __init__(self, level, build):
        depth, self.level = build.tree.depth, level.level
        self.first, last = level.at(build.comm)
        self.count, self.starts = last - self.first, build.tree.leaf_starts[:: 1 << (depth - level.level)]
        pairs = build.near.pairs >> (depth - level.level)
        codes = np.unique(np.concatenate([pairs, pairs[:, ::-1]]) @ np.array([1 << level.level, 1], np.int64))
        node, other = np.divmod(codes, 1 << level.level)
        mine = (node >= self.first) & (node < last)
        self.codes, self.node, other = codes[mine], node[mine] - self.first, other[mine]
        self.begin, self.length = self.starts[other], np.diff(self.starts)[other]
        self.n_far = self.starts[-1] - np.bincount(self.node, self.length, self.count).astype(np.int64)

    def is_far(self, node, position):
        """Whether tree positions lie in the far fields of own nodes (counted from 0)."""
        other = np.searchsorted(self.starts, position, side="right") - 1
        return ~np.isin((node + self.first) << self.level | other, self.codes)

    def outside(self, node, number, skipped_node, skipped):
        """Tree position of the number-th parameter that is far from its node and not among `skipped`, for every (node, number)."""
        holes = np.concatenate([self.node, skipped_node])
        begin = np.concatenate([self.begin, skipped])
        length = np.concatenate([self.length, np.ones(len(skipped), np.int64)])
        order = np.lexsort((begin, holes))
        holes, begin, length = holes[order], begin[order], length[order]
        before, first = np.append(0, np.cumsum(length)), np.searchsorted(holes, np.arange(self.count))
        shifted = begin - (before[:-1] - before[first[holes]])  # how many that are no holes come before a hole
        n = self.starts[-1] + 1
        at = np.searchsorted(holes * n + shifted, node * n + number, side="right")
        return number + before[at] - before[first[node]]
