"""The Gaussian sketch Y = HΩ, more columns on demand, in tree rows, and the samples of far fields that it gives.

Leaves: R_α = Y_α − Σ_{β near α} D_αβ Ω_β. After the interpolative decomposition R_α ≈ P_αᵀ R_α[α̃] (Martinsson, SIMAX 2011):
    Ŷ_α = R_α[α̃],   Ω̃_α = P_α Ω_α,   R_parent = stack of (Ŷ_c − Σ_{β far from c} B_cβ Ω̃_β),   Ω_parent = stack of Ω̃_c.
"""

import numpy as np
from mpi4py import MPI

from hpcHess.backend.normal import gaussian
from hpcHess.parallel import memory
from hpcHess.parallel.exchange import reduce_rows
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.threads import by_rows
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.levels import to_parents

TOO_LARGE = "scale the network, the matrix or the data, or set dtype to float64"
SPARE = 16  # columns beyond the rows of a node
OVERSAMPLED = 16  # columns a rank, of a pass that knows ranks: fits to so many samples overestimate their tails little
PIECE = 72  # columns that are carried up together
PRODUCT_BYTES = 1 << 27  # of one N × k block; up to three live at once: Ω, HΩ, HΩ in tree order (and the operator's own)


class Sketch:
    """Y = HΩ in this rank's tree rows, in `pieces` [n_local, k_i] of at most `PIECE` columns, growing by `extend`.

    Ω is standard normal, determined by seed, parameter index and column: the same for any number of ranks, and drawn anew where it is needed
    (`omega`), which takes less than reading it twice would. `n_products`: of Y and of `fresh`; `squares`: ‖Y‖_F² of the own rows;
    `row_bytes`: what its users hold of a row and a further column: Y, its images on a level and copies.
    """

    def __init__(self, operator, permutation, tree_starts, seed, stream="sketch"):
        self.operator, self.permutation, self.starts = operator, permutation, tree_starts
        self.seed, self.stream, self.n_products = seed, stream, 0
        self.row_bytes = 2.5 * operator.dtype.itemsize
        me = operator.comm.rank
        self.rows = permutation[tree_starts[me] : tree_starts[me + 1]]
        self.pieces, self.n_columns, self.squares = [], 0, 0.0

    def affordable(self):
        """How many further columns the memory allows, `row_bytes` of a row and column each. Collective."""
        free = 0.8 * memory.fair_share(self.operator.comm) - 3 * memory.block_bytes(PRODUCT_BYTES)
        own = int(max(0, free) // (self.row_bytes * max(1, len(self.rows))))
        return self.operator.comm.allreduce(own, MPI.MIN)

    def extend(self, n_more, advance=lambda n: None):
        """n_more further columns of Y, in pieces. Collective; `advance(n)` after every n columns.

        Raises InputError where products are not finite.
        """
        n_pieces = -(-n_more // PIECE)
        for width in np.diff(row_starts(n_more, n_pieces)).tolist() if n_pieces else ():
            self.pieces.append(self._drawn(width, advance))
            self.n_columns, self.n_products = self.n_columns + width, self.n_products + width

    def release(self):
        """Let go of Y, for good."""
        self.pieces = []

    def omega(self, first, width):
        """Ω of the own rows and of `width` columns from `first`, [n_local, width]."""
        return gaussian(self.seed, self.stream, self.rows, range(first, first + width), self.operator.dtype)

    def omegas(self, pieces=None):
        """(Ω_i, Y_i) of the pieces numbered `pieces` (a slice), one after the other."""
        first = np.cumsum([0, *(Y.shape[1] for Y in self.pieces)]).tolist()
        for at in range(len(self.pieces))[slice(None) if pieces is None else pieces]:
            yield self.omega(first[at], self.pieces[at].shape[1]), self.pieces[at]

    def fresh(self, n_columns, stream):
        """(G, HG) [n_local, n_columns] in tree rows for Gaussian G of another stream: probes that this sketch has not seen. Collective."""
        self.n_products += n_columns
        probes = Sketch(self.operator, self.permutation, self.starts, self.seed, stream)
        return probes.omega(0, n_columns), probes._drawn(n_columns, lambda n: None)

    def _drawn(self, n_more, advance):
        """HΩ for the next n_more columns, [n_local, n_more], a few columns at a time. Collective."""
        operator, n_params = self.operator, self.operator.shape[0]
        width = max(1, min(n_more, memory.block_bytes(PRODUCT_BYTES) // (n_params * operator.dtype.itemsize)))
        Y, everyone = np.empty((len(self.rows), n_more), operator.dtype), np.arange(n_params)
        for a in range(0, n_more, width):
            columns = range(a, min(n_more, a + width))
            whole = gaussian(self.seed, self.stream, everyone, range(self.n_columns + a, self.n_columns + columns.stop), operator.dtype)
            self._product(whole, Y[:, a : columns.stop])
            advance(len(columns))
        return Y

    def _product(self, whole, Y):
        """Columns of HΩ in the own tree rows from Ω `whole` [N, k] on every rank. Collective."""
        comm, k = self.operator.comm, whole.shape[1]
        product = self.operator.partial_matmat(whole)
        if comm.size > 1:
            product = reduce_rows(comm, in_order(product, self.permutation), self.starts)

        def arrange(rows):
            Y[rows] = piece = product[rows] if comm.size > 1 else product[self.rows[rows]]
            return float(np.sum(np.square(piece, dtype=np.float64)))

        squares = float(np.sum(by_rows(len(self.rows), k, arrange)))
        self.squares += squares
        if comm.allreduce(int(not np.isfinite(squares)), MPI.MAX):
            raise InputError(f"products with the curvature are not finite, its entries are too large for {self.operator.dtype}: {TOO_LARGE}")


def in_order(rows, order):
    """rows[order], on the threads of this rank."""
    result = np.empty((len(order), rows.shape[1]), rows.dtype)

    def arrange(piece):
        result[piece] = rows[order[piece]]

    by_rows(len(order), rows.shape[1], arrange)
    return result


class SketchSamples:
    """Samples of the far fields from one `Sketch`, which grows when a rank comes near its columns (`skeletonize.Skeletonizer`).

    The pieces' Y become R = Y − (near part) Ω of the leaves, in place, once for all passes. A decomposition sees as many columns as suffice
    for its level. `images`: pieces (Ω, R) [Σ c, k_i] on the level at hand, None at the leaves: those of the sketch, with Ω drawn piece by piece.
    """

    by_entries = True

    def __init__(self, sketch):
        self.sketch, self.bound, self.near, self.remainders, self.enough = sketch, None, None, 0, {}

    @staticmethod
    def first_columns(tree, leaf_size):
        """Enough for any leaf."""
        return min(tree.n, leaf_size + SPARE)

    def start(self, build):
        """R and Ω of the leaves."""
        self.build, self.bound = build, None
        if build.near is not self.near:  # Y again, for other near pairs
            self._add_near(slice(self.remainders), 1.0)
            self.near, self.remainders = build.near, 0
        self._leaf_remainders()
        self.images = None

    def at(self, level, index):
        """Pieces of R [Σ c, k]; k samples a node, enough for any node of this level if there are so many."""
        wanted, parts = max(int(level.columns.max(initial=0)) + SPARE, self.enough.get(level.level, 0)), []
        for R in self.sketch.pieces if self.images is None else [R for _, R in self.images]:
            parts.append(self.build.backend.asarray(R)[:, : max(0, wanted)])
            wanted -= R.shape[1]
            if wanted <= 0:
                break
        first, last = level.at(self.build.comm)
        return parts, np.full(last - first, float(sum(R.shape[1] for R in parts)))

    def grow(self, level, wanted):
        """As many further columns as the node that wants most. Collective."""
        k, n = self.sketch.n_columns, self.build.tree.n
        wanted = min(self.build.comm.allreduce(int(wanted.max(initial=0)), MPI.MAX), n)
        if wanted <= k:
            return False
        affordable = k + self.sketch.affordable()
        if affordable < wanted and affordable < k + SPARE:  # no memory: ranks that the columns at hand support
            self.bound = k - max(10, k // 4)
            return True
        before = len(self.sketch.pieces)
        self.sketch.extend(min(wanted, affordable) - k)
        self._leaf_remainders()
        if self.images is not None:
            images = self.sketch.omegas(slice(before, None))
            for number in range(self.build.tree.depth, level.level, -1):
                images = self._parents(self.build.levels[number], self.build.levels[number - 1] or level, images)
            self.images += images
        return True

    def amount(self):
        """What there is, in words."""
        return f"{self.sketch.n_columns} columns of the sketch"

    def deepen(self):
        """Gaussian samples tell the tails as they are."""
        return False

    def climb(self, level, above):
        """R and Ω of the parents."""
        self.enough[level.level] = int(OVERSAMPLED * np.sum(level.ranks**2) / max(1, np.sum(level.ranks)))
        self.images = self._parents(level, above, self.sketch.omegas() if self.images is None else self.images)

    def finish(self):
        """The sketch alone is kept."""
        self.images = None

    def _leaf_remainders(self):
        """R = Y − (near part) Ω in the place of Y, for pieces that are new."""
        self._add_near(slice(self.remainders, None), -1.0)
        self.remainders = len(self.sketch.pieces)

    def _add_near(self, pieces, alpha):
        backend = self.build.backend
        for omega, Y in self.sketch.omegas(pieces):
            R = backend.asarray(Y)
            self.near.multiply(backend, backend.asarray(omega), R, alpha=alpha)
            if backend.to_host(R) is not Y:
                Y[...] = backend.to_host(R)

    def _parents(self, level, above, images):
        """The parents' pieces from a finished level's."""
        backend, comm, result = self.build.backend, self.build.comm, []
        for omega, R in images:
            kept, weights = backend.asarray(R)[level.skeleton_rows], level.compress_rows(backend, backend.asarray(omega))
            level.far.multiply(backend, weights, kept, alpha=-1.0)
            result.append(tuple(to_parents(comm, backend, rows, level, above) for rows in (weights, kept)))
        return result
