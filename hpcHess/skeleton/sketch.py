"""The Gaussian sketch Y = HΩ, more columns on demand, in tree rows, and the samples of far fields that it gives.

Leaves: R_α = Y_α − Σ_{β near α} D_αβ Ω_β. After the interpolative decomposition R_α ≈ P_αᵀ R_α[α̃] (Martinsson, SIMAX 2011):
    Ŷ_α = R_α[α̃],   Ω̃_α = P_α Ω_α,   R_parent = stack of (Ŷ_c − Σ_{β far from c} B_cβ Ω̃_β),   Ω_parent = stack of Ω̃_c.
"""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel import memory
from hpcHess.parallel.exchange import reduce_rows
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.levels import to_parents

TOO_LARGE = "scale the network, the matrix or the data, or set dtype to float64"
PRODUCT_BYTES = 1 << 27  # of one N × k block; up to three live at once: Ω, HΩ, HΩ in tree order


class Sketch:
    """Ω and Y = HΩ in this rank's tree rows, [n_local, k] each, growing by `extend`; `n_products`: of these and of `fresh`.

    `row_bytes`: what its users hold of a row and column: Ω, Y, their images on a level and copies.
    Ω is standard normal and seeded by parameter index and column: the same for any number of ranks.
    """

    def __init__(self, operator, permutation, tree_starts, seed, stream="sketch"):
        self.operator, self.permutation, self.starts = operator, permutation, tree_starts
        self.seed, self.stream, self.n_products = seed, stream, 0
        self.row_bytes = 6 * operator.dtype.itemsize
        me = operator.comm.rank
        self.rows = permutation[tree_starts[me] : tree_starts[me + 1]]
        self.omega = np.zeros((len(self.rows), 0), operator.dtype)
        self.Y = np.zeros((len(self.rows), 0), operator.dtype)

    @property
    def n_columns(self):
        """k."""
        return self.Y.shape[1]

    def affordable(self):
        """How many further columns the memory allows, `row_bytes` of a row and column each. Collective."""
        free = 0.8 * memory.fair_share(self.operator.comm) - 3 * PRODUCT_BYTES
        own = int(max(0, free) // (self.row_bytes * max(1, len(self.rows))))
        return self.operator.comm.allreduce(own, MPI.MIN)

    def extend(self, n_more, advance=lambda n: None):
        """n_more further columns: returns their (Ω, Y), [n_local, n_more]. Collective; `advance(n)` after every n columns.

        Raises InputError where products are not finite.
        """
        operator, n_params = self.operator, self.operator.shape[0]
        self.n_products += n_more
        width = max(1, PRODUCT_BYTES // (n_params * operator.dtype.itemsize))
        omega, Y = (np.empty((len(self.rows), n_more), operator.dtype) for _ in range(2))
        for a in range(0, n_more, width):
            b = min(n_more, a + width)
            columns = range(self.n_columns + a, self.n_columns + b)
            whole = gaussian_rows(self.seed, self.stream, 0, n_params, columns, operator.dtype)
            omega[:, a:b] = whole[self.rows]
            product = operator.partial_matmat(whole)
            del whole
            Y[:, a:b] = reduce_rows(operator.comm, product[self.permutation], self.starts)
            del product
            if operator.comm.allreduce(int(not np.isfinite(Y[:, a:b]).all()), MPI.MAX):
                raise InputError(f"products with the curvature are not finite, its entries are too large for {operator.dtype}: {TOO_LARGE}")
            advance(b - a)
        self.omega, self.Y = np.concatenate([self.omega, omega], axis=1), np.concatenate([self.Y, Y], axis=1)
        return omega, Y

    def fresh(self, n_columns, stream):
        """(G, HG) [n_local, n_columns] in tree rows for Gaussian G of another stream: probes that this sketch has not seen. Collective."""
        self.n_products += n_columns
        return Sketch(self.operator, self.permutation, self.starts, self.seed, stream).extend(n_columns)


class SketchSamples:
    """Samples of the far fields from one `Sketch`, which grows when a rank comes near its columns (`skeletonize.Skeletonizer`)."""

    by_entries = True

    def __init__(self, sketch):
        self.sketch, self.bound = sketch, None

    @staticmethod
    def first_columns(tree, leaf_size):
        """Enough for any leaf."""
        return min(tree.n, leaf_size + 16)

    def start(self, build):
        """R and Ω of the leaves."""
        self.build, self.bound = build, None
        self.R, self.omega = self._leaf_remainder(self.sketch.omega, self.sketch.Y)

    def at(self, level, index):
        """R [Σ c, k]; k samples a node."""
        first, last = level.at(self.build.comm)
        return self.R, np.full(last - first, float(self.R.shape[1]))

    def grow(self, level, wanted):
        """As many further columns as the node that wants most. Collective."""
        k, n = self.R.shape[1], self.build.tree.n
        wanted = min(self.build.comm.allreduce(int(wanted.max(initial=0)), MPI.MAX), n)
        if wanted <= k:
            return False
        affordable = k + self.sketch.affordable()
        if affordable < wanted and affordable < k + 16:  # no memory: ranks that the columns at hand support
            self.bound = k - max(10, k // 4)
            return True
        more_R, more_omega = self._push(*self.sketch.extend(min(wanted, affordable) - k), level)
        concatenate = self.build.backend.xp.concatenate
        self.R, self.omega = concatenate([self.R, more_R], axis=1), concatenate([self.omega, more_omega], axis=1)
        return True

    def amount(self):
        """What there is, in words."""
        return f"{self.sketch.n_columns} columns of the sketch"

    def deepen(self):
        """Gaussian samples tell the tails as they are."""
        return False

    def climb(self, level, above):
        """R and Ω of the parents."""
        self.R, self.omega = self._parents(level, above, self.R, self.omega)

    def finish(self):
        """Nothing is left to do."""

    def _leaf_remainder(self, omega, Y):
        """R = Y − (near part) Ω for this rank's leaves, and Ω."""
        backend = self.build.backend
        R, omega = backend.asarray(Y.copy()), backend.asarray(omega)
        self.build.near.multiply(backend, omega, R, alpha=-1.0)
        return R, omega

    def _parents(self, level, above, R, omega):
        """The parents' R and Ω from a finished level's."""
        backend = self.build.backend
        kept, weights = R[level.skeleton_rows], level.compress_rows(backend, omega)
        level.far.multiply(backend, weights, kept, alpha=-1.0)
        return tuple(to_parents(self.build.comm, backend, rows, level, above) for rows in (kept, weights))

    def _push(self, omega, Y, level):
        """Carry new sketch columns through the finished levels up to the columns of `level`."""
        R, omega = self._leaf_remainder(omega, Y)
        for number in range(self.build.tree.depth, level.level, -1):
            above = self.build.levels[number - 1] or level
            R, omega = self._parents(self.build.levels[number], above, R, omega)
        return R, omega
