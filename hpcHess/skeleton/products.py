"""HSS matrices from products alone: no entries, the null spaces of Ω isolate the far fields (Levitt & Martinsson, 2024,
"Linear-complexity black-box randomized compression of rank-structured matrices"), here with interpolation, U_α = P_αᵀ, J the skeleton.

Upward, with Z an orthonormal basis of the null space of Ω_α: Y_α Z = H[α, far] (ΩZ)_far is a Gaussian sample of the far field, from
which P_α is made. With F = Y_α Ω_α^†
    K = (I − U Jᵀ) F,   D_α = K + U JᵀKᵀ  (≈ H_αα − U H_JJ Uᵀ; symmetrized),   Ω̃ = UᵀΩ_α,   Ỹ = Jᵀ(Y_α − D_α Ω_α)
and (Ω̃, Ỹ) are the samples of the compressed matrix Ã between skeletons, stacked for the parents. At the root Ã = Y Ω^†.
Downward: the off-diagonal part of a node's A is the coupling of its two children, the diagonal parts are their Ã, and
    A_α = D_α + U Ã_α Uᵀ,   at a leaf the near block.
All in float64. Blocks of a level are stacked rows [Σ c, width], padded with zeros.
"""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.agree import together
from hpcHess.parallel.ownership import starts_of
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.levels import PairBlocks, new_level, pair_sums, to_children, to_parents
from hpcHess.tree.interactions import near_self

SPARE = 16  # columns of Ω beyond the rows of a node at least: F is well conditioned, the tail of a fit means something


class ProductSamples:
    """Samples of the far fields from a `Sketch` alone (`skeletonize.Skeletonizer`); HSS only. The sketch has about twice as many columns
    as any node has rows, and grows when a rank comes near what its null space supports. Couplings and near blocks follow at the end."""

    by_entries = False

    def __init__(self, sketch):
        self.sketch, self.bound, single = sketch, None, sketch.operator.dtype.itemsize < 8
        sketch.row_bytes = 6 * 8 + sketch.operator.dtype.itemsize * single  # Y in float32 stays beside that in float64

    @staticmethod
    def first_columns(tree, leaf_size):
        """Enough for any leaf; for all of H where the root is a leaf."""
        return min(tree.n, 2 * leaf_size) + SPARE

    def start(self, build):
        """Ω and Y of the leaves."""
        self.build, self.R, self.D = build, None, [None] * (build.tree.depth + 1)
        most = self.sketch.n_columns + self.sketch.affordable()  # where memory ends: ranks r for whose parents 3r + SPARE columns are enough
        self.bound = max(1, (most - SPARE) // 3) if most < build.tree.n + SPARE else None
        self.omega, self.Y = (self._wide(rows) for rows in zip(*self.sketch.omegas(), strict=True))

    def at(self, level, index):
        """Y (I − QQᵀ) of the own nodes, as triangular factors [Σ c, max c]; p − c samples a node. Collective."""
        if self.R is None:
            self._enough_for(level)
            columns = level.own(self.build.comm, level.columns)
            with together(self.build.comm):
                R, self.F = self.build.backend.isolate(self.omega, self.Y, starts_of(columns))
            self.counts = (self.omega.shape[1] - columns).astype(float)
            scale = np.sqrt(R.shape[1] / np.repeat(self.counts, columns))
            self.R = R * self.build.backend.asarray(scale[:, None])
        return self.R, self.counts

    def grow(self, level, wanted):
        """As many further columns as the node that wants most. Collective."""
        columns = level.own(self.build.comm, level.columns)
        wanted = int(np.max(np.where(wanted > 0, columns + wanted, 0), initial=0))
        wanted = min(max(self.build.comm.allgather(wanted)), self.build.tree.n + SPARE)
        return wanted > self.omega.shape[1] and self._extend(wanted, level)

    def amount(self):
        """What there is, in words."""
        return f"{self.sketch.n_columns} products"

    def deepen(self):
        """Gaussian samples tell the tails as they are."""
        return False

    def climb(self, level, above):
        """Ω and Y of the parents."""
        self.D[level.level] = self._remainder(level)
        self.omega, self.Y, self.R = *self._parents(level, above, self.omega, self.Y), None

    def finish(self):
        """Couplings and near blocks, downward from the root. Collective."""
        build, comm, backend = self.build, self.build.comm, self.build.backend
        depth = build.tree.depth
        columns = pair_sums(build.levels[1].ranks) if depth else build.tree.leaf_sizes
        above = new_level(comm, 0, depth, columns)
        if depth:
            self.climb(build.levels[1], above)
        self._enough_for(above)
        with together(comm):
            _, A = backend.isolate(self.omega, self.Y, starts_of(above.own(comm, columns)))
        A = self._symmetric(A, above)
        for level in build.levels[1:]:
            rows = to_children(comm, backend, A, above, level)
            self._set_couplings(level, rows)
            A = self._expanded(level, self._diagonal(level, rows))
            above = level
        build.near = near = PairBlocks(comm, near_self(depth), build.near.owned, build.tree.leaf_sizes)
        near.set(self._blocks(A, near.rows).data.astype(build.dtype))

    def _wide(self, pieces):
        return self.build.backend.asarray(np.concatenate(pieces, axis=1, dtype=np.float64))

    def _enough_for(self, level):
        """2c columns for the nodes of a level, whose `columns` c are known everywhere, or at least c. InputError where memory ends before."""
        most, n, p = int(level.columns.max(initial=0)), self.build.tree.n, self.omega.shape[1]
        if p < min(2 * most, n) + SPARE and not self._extend(min(2 * most, n) + SPARE, level) and p < most + SPARE:
            raise InputError(f"{most + SPARE} products are needed, more than the memory holds: use more hosts, a larger rtol or max_rank")

    def _extend(self, wanted, level):
        """Up to `wanted` columns, carried to `level`; False where memory allows less than SPARE more. Collective."""
        p, backend = self.omega.shape[1], self.build.backend
        more = min(wanted - p, self.sketch.affordable())
        if more < min(SPARE, wanted - p):
            return False
        before = len(self.sketch.pieces)
        self.sketch.extend(more)
        omega, Y = (self._wide(rows) for rows in zip(*self.sketch.omegas(slice(before, None)), strict=True))
        for number in range(self.build.tree.depth, level.level, -1):
            above = self.build.levels[number - 1] or level
            omega, Y = self._parents(self.build.levels[number], above, omega, Y)
        self.omega, self.Y = (backend.xp.concatenate(pair, axis=1) for pair in ((self.omega, omega), (self.Y, Y)))
        self.R = None
        return True

    def _parents(self, level, above, omega, Y):
        """UᵀΩ and Jᵀ(Y − DΩ), with the parents' owners."""
        backend, rest = self.build.backend, Y.copy()
        backend.multiply(self.D[level.level], omega, level.column_starts, rest, level.column_starts, alpha=-1.0)
        pair = level.compress_rows(backend, omega), rest[level.skeleton_rows]
        return tuple(to_parents(self.build.comm, backend, rows, level, above) for rows in pair)

    def _remainder(self, level):
        """D of the own nodes: Blocks [c × c]."""
        backend, columns = self.build.backend, level.own(self.build.comm, level.columns)
        K = self.F - level.expand_rows(backend, self.F[level.skeleton_rows])
        D = K + level.expand_rows(backend, self._transposed(K, columns, columns)[level.skeleton_rows])
        return self._blocks((D + self._transposed(D, columns, columns)) / 2, columns)

    def _expanded(self, level, A):
        """D + U A Uᵀ of the own nodes from stacked rows A [Σ r, ≥ max r]: stacked rows [Σ c, width]."""
        backend, columns, ranks = self.build.backend, *(level.own(self.build.comm, counts) for counts in (level.columns, level.ranks))
        half = self._transposed(level.expand_rows(backend, A), columns, ranks)
        whole = level.expand_rows(backend, half)
        whole[self._inside(columns, whole.shape[1])] += self.D[level.level].data
        return self._symmetric(whole, level)

    def _symmetric(self, A, level):
        """(A + Aᵀ) / 2 of the own nodes, padded to the width of the widest node of all ranks."""
        columns = level.own(self.build.comm, level.columns)
        both = self._transposed(A, columns, columns)
        result = self.build.backend.xp.zeros((A.shape[0], int(level.columns.max(initial=0))), A.dtype)
        result[:, : both.shape[1]] = (A[:, : both.shape[1]] + both) / 2
        return result

    def _set_couplings(self, level, rows):
        """B of siblings from the parents' rows [Σ r, width]: in the left one's, right of its own columns."""
        comm, backend = self.build.comm, self.build.backend
        first, last = level.at(comm)
        node = np.repeat(np.arange(first, last), level.own(comm, level.ranks))
        own, other = level.ranks[node][:, None], level.ranks[node ^ 1][:, None]
        at = np.arange(rows.shape[1])
        inside = (node % 2 == 0)[:, None] & (at >= own) & (at < own + other)
        level.far.set(rows[backend.asarray(inside)].astype(self.build.dtype))

    def _diagonal(self, level, rows):
        """Ã of the own nodes from their parents' rows [Σ r, width]: stacked rows [Σ r, max r]."""
        comm, backend = self.build.comm, self.build.backend
        first, last = level.at(comm)
        ranks = level.own(comm, level.ranks)
        node = np.repeat(np.arange(first, last), ranks)
        shift = np.where(node % 2, level.ranks[node ^ 1], 0)
        inside = np.arange(rows.shape[1]) - shift[:, None]
        inside = (inside >= 0) & (inside < level.ranks[node][:, None])
        result = backend.xp.zeros((rows.shape[0], int(ranks.max(initial=0))), rows.dtype)
        result[self._inside(ranks, result.shape[1])] = rows[backend.asarray(inside)]
        return result

    def _inside(self, counts, width):
        """Which of the entries of stacked square blocks [Σ c, width] are not padding, a bool array of the backend."""
        return self.build.backend.asarray(np.arange(width) < np.repeat(counts, counts)[:, None])

    def _blocks(self, A, counts):
        """Stacked square blocks as `Blocks`."""
        return Blocks.shaped(A[self._inside(counts, A.shape[1])], counts, counts)

    def _transposed(self, A, rows, cols):
        """The transposes [Σ cols, max rows] of stacked blocks [Σ rows, ≥ max cols]."""
        backend, width = self.build.backend, int(rows.max(initial=0))
        piece = np.repeat(np.arange(len(rows)), cols)
        column = np.arange(len(piece)) - np.repeat(starts_of(cols)[:-1], cols)
        inside = np.arange(width) < rows[piece][:, None]
        source = np.where(inside, starts_of(rows)[:-1][piece][:, None] + np.arange(width), 0)
        if not A.size:
            return backend.xp.zeros((len(piece), width), A.dtype)
        picked = A[backend.asarray(source), backend.asarray(np.broadcast_to(column[:, None], source.shape).copy())]
        return picked * backend.asarray(inside, A.dtype)
