"""Skeletons of all nodes, bottom-up, from samples of their far fields: R_α ≈ P_αᵀ R_α[α̃] by interpolative decompositions
(docs/MATHEMATICS.md; GOFMM, SC 2017). What a sample is, is said by `sketch`, `rows` or `products`.

An error in row c of an interior node's R reaches the matrix through the children's bases, as long as ‖u_c‖, the norm of
column c of U = blockdiag(U_l, U_r). So the decomposition is of diag(‖u_c‖) R: pivots and tolerances then speak of the error in H̃.
"""

from dataclasses import dataclass, field

import numpy as np
from mpi4py import MPI

from hpcHess.backend.blocks import Blocks
from hpcHess.backend.interpolate import joined
from hpcHess.parallel.agree import together
from hpcHess.parallel.exchange import ranges
from hpcHess.parallel.ownership import neighbours_within, starts_of
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.levels import PairBlocks, new_level, pair_sums, to_parents
from hpcHess.skeleton.sketch import TOO_LARGE
from hpcHess.tree.interactions import far_fields


_SIDE_BY_SIDE = 1 << 24  # numbers of R whose columns are put side by side, and scaled, at a time


@dataclass
class Saturation:
    """Nodes whose rank was cut by max_rank or by the samples before their tolerance was met; `worst`: the largest remainder, inf unknown."""

    nodes: int = 0
    worst: float = 0.0
    levels: list = field(default_factory=list)


def entry_blocks(operator, backend, pairs, indices, dtype):
    """Fill `pairs` with exact entries H[indices of α, indices of β]; `indices` int64: the own rows' parameter indices. Collective.

    Blocks on the diagonal are symmetric to the last bit, by their lower triangle: the one that a file keeps.
    """
    if not pairs.halo.empty:
        indices = np.concatenate([indices, pairs.halo.fetch(indices[:, None])[:, 0]])
    first = np.flatnonzero(np.diff(pairs.own[:, 0], prepend=-1))  # all blocks of one α at once, side by side
    I, J = indices[ranges(pairs.row_at[first], pairs.rows[first])], indices[ranges(pairs.col_at, pairs.cols)]
    side_by_side = operator.entries_batch(I, starts_of(pairs.rows[first]), J, starts_of(pairs.cols)[np.append(first, len(pairs.own))])
    blocks = side_by_side.cut(np.append(first, len(pairs.own)), pairs.cols)
    upper = {}  # by size: masks are much faster than indices
    for i in np.flatnonzero(pairs.own[:, 0] == pairs.own[:, 1]):
        size = int(pairs.rows[i])
        if size not in upper:
            upper[size] = np.triu(np.ones((size, size), bool), 1)
        np.copyto(blocks[i], blocks[i].T.copy(), where=upper[size])
    pairs.set(backend.asarray(blocks.data, dtype))


class Skeletonizer:
    """Builds the levels of a nested-basis matrix bottom-up from samples of the nodes' far fields.

    `near` PairBlocks of leaves with their blocks, `far` list of pair arrays by level. `samples` says what a node's sample is
    (`sketch.SketchSamples`, `rows.RowSamples`, `products.ProductSamples`):

        start(skeletonizer)      begin a pass at the leaves
        at(level, index)         (R [Σ c, k] or a list of its columns' pieces, counts): stacked samples of the own nodes, columns scaled such that ‖R_α‖_F²/k estimates the far
                                 field's ‖·‖_F²; counts float64 [own nodes]: the independent samples in them, inf where R_α is all there is
        grow(level, wanted)      more samples for the nodes with wanted > 0 (int64 [own nodes]); True when another decomposition is worthwhile
        bound                    rank that the samples at hand support where no memory is left for more, else None
        deepen()                 after a pass whose tails were too optimistic: whether the next one has better samples
        climb(level, above)      go on to the parents of a finished level
        finish()                 after level 1
        amount()                 what there is, in words: for warnings
        by_entries               whether couplings are exact entries; else `finish` makes them
    """

    def __init__(self, operator, tree, near, far, samples, backend, dtype):
        self.operator, self.tree, self.near, self.far = operator, tree, near, far
        self.samples, self.backend, self.dtype, self.comm = samples, backend, dtype, operator.comm

    def run(self, tolerance, max_rank=0, advance=lambda level: None):
        """Levels (list over 0 … depth, entry 0 None) and Saturation; `tolerance` [depth + 1]: absolute, of a node on each level.

        Collective.
        """
        depth, comm, backend = self.tree.depth, self.comm, self.backend
        self.levels, saturation = [None] * (depth + 1), Saturation()
        columns, owned = self.tree.leaf_sizes, self.near.owned
        index = self.tree.permutation[self.tree.leaf_starts[owned[comm.rank]] : self.tree.leaf_starts[owned[comm.rank + 1]]]
        self.samples.start(self)
        has_far = far_fields(self.far)
        squares = backend.xp.ones((len(index), 1))  # ‖u_c‖² of the own nodes' columns
        for number in range(depth, 0, -1):
            level = new_level(comm, number, depth, columns)
            lengths = None if number == depth else backend.xp.sqrt(squares)
            found = self._decompose(level, index, lengths, np.where(has_far[number], tolerance[number], np.inf), max_rank)
            level.ranks = np.concatenate(comm.allgather(found.ranks))
            level.order, level.T = found.order, Blocks.shaped(backend.asarray(found.T.data, self.dtype), found.T.rows, found.T.cols)
            level.arrange(comm, backend)
            if lengths is not None:
                _unscale(backend, level, lengths)
            squares = _skeleton_squares(backend, level, squares)
            self._report(saturation, level, found)
            index = index[backend.to_host(level.skeleton_rows)]
            self._couple(level, index)
            self.levels[number] = level
            if number > 1:
                above, columns = new_level(comm, number - 1, depth, pair_sums(level.ranks)), pair_sums(level.ranks)
                self.samples.climb(level, above)
                squares = to_parents(comm, backend, squares, level, above)
                index = to_parents(comm, backend, backend.asarray(index[:, None]), level, above)
                index = backend.to_host(index)[:, 0]
            advance(number)
        self.samples.finish()
        return self.levels, saturation

    def _decompose(self, level, index, lengths, tolerance, max_rank):
        """Interpolative decompositions of the own nodes' diag(lengths) R, with as many samples as their ranks need. Collective."""
        samples, columns, tolerance = self.samples, level.own(self.comm, level.columns), level.own(self.comm, tolerance)
        enough = columns + 10
        if max_rank:  # a rank that is cut needs its oversampling too
            enough = np.minimum(enough, max_rank + max(10, max_rank // 3))
        while True:
            R, counts = samples.at(level, index)
            limit = min((bound for bound in (max_rank, samples.bound) if bound), default=None)
            with together(self.comm):
                found = self._interpolated(R if isinstance(R, list) else [R], lengths, columns, tolerance, limit, counts)
            short = (found.ranks > np.minimum(counts - 10, np.ceil(0.75 * counts))) & (counts < enough) & (found.ranks < columns)
            wanted = np.where(short, np.minimum(enough, np.floor(1.5 * counts) + 16), 0).astype(np.int64)
            if not samples.grow(level, wanted):
                return found

    def _interpolated(self, pieces, lengths, columns, tolerance, limit, counts):
        """Decompositions of diag(lengths) R, R = `pieces` side by side, of as many nodes at a time as `_SIDE_BY_SIDE` allows."""
        backend, starts, found = self.backend, starts_of(columns), []
        width = sum(R.shape[1] for R in pieces)
        for first, last in list(neighbours_within(columns * width, _SIDE_BY_SIDE)) or [(0, 0)]:
            rows = slice(int(starts[first]), int(starts[last]))
            R = pieces[0][rows] if len(pieces) == 1 else backend.xp.concatenate([each[rows] for each in pieces], axis=1)
            if lengths is not None:
                R = R * lengths[rows].astype(R.dtype)
            nodes = slice(first, last)
            try:
                found.append(backend.interpolate(R, starts[first : last + 1] - starts[first], tolerance[nodes], limit, counts[nodes]))
            except FloatingPointError:
                raise InputError(f"samples of the curvature are not finite: entries or products hold NaN or Inf, or overflow; {TOO_LARGE}") from None
        return joined(backend.xp, found)

    def _couple(self, level, index):
        """Coupling blocks B = H[α̃, β̃] of the level's far pairs."""
        level.far = pairs = PairBlocks(self.comm, self.far[level.level], level.owned, level.ranks)
        if self.samples.by_entries:
            entry_blocks(self.operator, self.backend, pairs, index, self.dtype)

    def _report(self, saturation, level, found):
        cut = np.flatnonzero(found.saturated)
        nodes = self.comm.allreduce(len(cut))
        if nodes:
            saturation.nodes += nodes
            saturation.levels.append(level.level)
            worst = float(np.max(found.residual[cut], initial=0.0))
            saturation.worst = max(saturation.worst, self.comm.allreduce(worst, MPI.MAX))


def _unscale(backend, level, lengths):
    """From T of diag(l) R to T of R, in place: T_jr l_j / l_r."""
    counts = np.repeat(level.T.cols, level.T.rows)  # redundant columns beside each skeleton row
    columns = backend.asarray(ranges(np.repeat(level.redundant_starts[:-1], level.T.rows), counts))
    rows = backend.asarray(np.repeat(np.arange(len(counts)), counts))
    level.T.data *= (lengths[level.skeleton_rows, 0][rows] / lengths[level.redundant_rows, 0][columns]).astype(level.T.dtype)


def _skeleton_squares(backend, level, squares):
    """‖u_j‖² of the skeletons' columns, [Σ s, 1]: ‖u_j‖² + Σ_r T_jr² ‖u_r‖², redundant columns taken for orthogonal."""
    T = Blocks(backend.xp.square(level.T.data, dtype=np.float64), level.T.rows, level.T.cols, level.T.offsets)
    result = squares[level.skeleton_rows]
    backend.multiply(T, squares[level.redundant_rows], level.redundant_starts[:-1], result, level.skeleton_starts[:-1])
    return result
