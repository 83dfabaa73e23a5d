"""Skeletons from a sketch, bottom-up (DESIGN of the method in docs/MATHEMATICS.md; Martinsson, SIMAX 2011; GOFMM, SC 2017).

Level L: R_α = Y_α − Σ_{β near α} D_αβ Ω_β. After the interpolative decomposition R_α ≈ P_αᵀ R_α[α̃]:
    Ŷ_α = R_α[α̃],   Ω̃_α = P_α Ω_α,   R_parent = stack of (Ŷ_c − Σ_{β far from c} B_cβ Ω̃_β),   Ω_parent = stack of Ω̃_c.
"""

from dataclasses import dataclass, field

import numpy as np
from mpi4py import MPI

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.exchange import ranges
from hpcHess.parallel.ownership import starts_of
from hpcHess.skeleton.levels import PairBlocks, new_level, pair_sums, to_parents


@dataclass
class Saturation:
    """Nodes whose rank was cut by max_rank or by the sketch before their tolerance was met."""

    nodes: int = 0
    worst: float = 0.0
    levels: list = field(default_factory=list)


def entry_blocks(operator, backend, pairs, indices, dtype):
    """Fill `pairs` with exact entries H[indices of α, indices of β]; `indices` int64: the own rows' parameter indices. Collective.

    Blocks on the diagonal are symmetric to the last bit, by their lower triangle: the one that a file keeps.
    """
    if not pairs.halo.empty:
        indices = np.concatenate([indices, pairs.halo.fetch(indices[:, None])[:, 0]])
    I, J = indices[ranges(pairs.row_at, pairs.rows)], indices[ranges(pairs.col_at, pairs.cols)]
    blocks = operator.entries_batch(I, starts_of(pairs.rows), J, starts_of(pairs.cols))
    for i in np.flatnonzero(pairs.own[:, 0] == pairs.own[:, 1]):
        upper = np.triu_indices(pairs.rows[i], 1)
        blocks[i][upper] = blocks[i].T[upper]
    pairs.set(backend.asarray(blocks.data, dtype))


class Skeletonizer:
    """Builds the levels of a nested-basis matrix from a sketch; the sketch grows when a rank comes near its columns.

    `near` PairBlocks of leaves with their blocks, `far` list of pair arrays by level, `sketch` with at least a few columns.
    """

    def __init__(self, operator, tree, near, far, sketch, backend, dtype):
        self.operator, self.tree, self.near, self.far = operator, tree, near, far
        self.sketch, self.backend, self.dtype, self.comm = sketch, backend, dtype, operator.comm

    def run(self, tolerance, max_rank=0, advance=lambda level: None):
        """Levels (list over 0 … depth, entry 0 None) and Saturation; `tolerance` [depth + 1]: absolute, of a node on each level.

        Collective.
        """
        depth, comm, backend = self.tree.depth, self.comm, self.backend
        self.levels, saturation = [None] * (depth + 1), Saturation()
        R, omega = self._leaf_remainder(self.sketch.Y, self.sketch.omega)
        index, columns = self.sketch.rows, self.tree.leaf_sizes
        has_far = self._nodes_with_far_field()
        for number in range(depth, 0, -1):
            level = new_level(comm, number, depth, columns)
            R, omega, found = self._decompose(level, R, omega, np.where(has_far[number], tolerance[number], np.inf), max_rank)
            level.ranks = np.concatenate(comm.allgather(found.ranks))
            level.order, level.T = found.order, Blocks.shaped(backend.asarray(found.T.data, self.dtype), found.T.rows, found.T.cols)
            level.arrange(comm, backend)
            self._report(saturation, level, found)
            index = index[backend.to_host(level.skeleton_rows)]
            self._couple(level, index)
            self.levels[number] = level
            if number > 1:
                above, columns = new_level(comm, number - 1, depth, pair_sums(level.ranks)), pair_sums(level.ranks)
                R, omega = self._climb(level, above, R, omega)
                index = to_parents(comm, backend, backend.asarray(index[:, None]), level, above)
                index = backend.to_host(index)[:, 0]
            advance(number)
        return self.levels, saturation

    def _nodes_with_far_field(self):
        """By level, whether a node or one of its ancestors has a far pair: only then is its sample more than noise."""
        flags = [np.zeros(1, bool)]
        for number in range(1, self.tree.depth + 1):
            flag = np.repeat(flags[-1], 2)
            flag[self.far[number].ravel()] = True
            flags.append(flag)
        return flags

    def _leaf_remainder(self, Y, omega):
        """R = Y − (near part) Ω for this rank's leaves."""
        R, omega = self.backend.asarray(Y.copy()), self.backend.asarray(omega)
        self.near.multiply(self.backend, omega, R, alpha=-1.0)
        return R, omega

    def _climb(self, level, above, R, omega):
        """The parents' R and Ω from a finished level's."""
        backend = self.backend
        kept, weights = R[level.skeleton_rows], level.compress_rows(backend, omega)
        level.far.multiply(backend, weights, kept, alpha=-1.0)
        return tuple(to_parents(self.comm, backend, rows, level, above) for rows in (kept, weights))

    def _decompose(self, level, R, omega, tolerance, max_rank):
        """Interpolative decompositions of the own nodes, with as many sketch columns as their ranks need. Collective."""
        comm, backend = self.comm, self.backend
        columns = level.own(comm, level.columns)
        starts = starts_of(columns)
        enough = columns + 10
        if max_rank:  # a rank that is cut needs its oversampling too
            enough = np.minimum(enough, max_rank + max(10, max_rank // 3))
        while True:
            k = R.shape[1]
            found = backend.interpolate(R, starts, level.own(comm, tolerance), max_rank or None)
            short = (found.ranks > k - max(10, k // 4)) & (k < enough) & (found.ranks < columns)
            wanted = int(np.max(np.where(short, np.minimum(enough, k + k // 2 + 16), 0), initial=0))
            wanted = min(comm.allreduce(wanted, MPI.MAX), self.tree.n)
            if wanted > k:
                affordable = k + self.sketch.affordable()
                if affordable < wanted and affordable < k + 16:  # no memory: ranks that the columns at hand support
                    return R, omega, backend.interpolate(R, starts, level.own(comm, tolerance), min(max_rank or k, k - max(10, k // 4)))
                wanted = min(wanted, affordable)
            if wanted <= k:
                return R, omega, found
            more_R, more_omega = self._push(*self.sketch.extend(wanted - k), level)
            R, omega = backend.xp.concatenate([R, more_R], axis=1), backend.xp.concatenate([omega, more_omega], axis=1)

    def _push(self, omega, Y, level):
        """Carry new sketch columns through the finished levels up to the columns of `level`."""
        R, omega = self._leaf_remainder(Y, omega)
        for number in range(self.tree.depth, level.level, -1):
            above = self.levels[number - 1] or level
            R, omega = self._climb(self.levels[number], above, R, omega)
        return R, omega

    def _couple(self, level, index):
        """Coupling blocks B = H[α̃, β̃] of the level's far pairs."""
        level.far = pairs = PairBlocks(self.comm, self.far[level.level], level.owned, level.ranks)
        entry_blocks(self.operator, self.backend, pairs, index, self.dtype)

    def _report(self, saturation, level, found):
        cut = np.flatnonzero(found.saturated)
        nodes = self.comm.allreduce(len(cut))
        if nodes:
            saturation.nodes += nodes
            saturation.levels.append(level.level)
            worst = float(np.max(found.residual[cut][np.isfinite(found.residual[cut])], initial=0.0))
            saturation.worst = max(saturation.worst, self.comm.allreduce(worst, MPI.MAX))
