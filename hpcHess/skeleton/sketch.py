"""The Gaussian sketch Y = HΩ, more columns on demand, in tree rows."""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel import memory
from hpcHess.parallel.exchange import reduce_rows
from hpcHess.parallel.random import gaussian_rows

PRODUCT_BYTES = 1 << 27  # of one N × k block; up to three live at once: Ω, HΩ, HΩ in tree order


class Sketch:
    """Ω and Y = HΩ in this rank's tree rows, [n_local, k] each, growing by `extend`.

    Ω is standard normal and seeded by parameter index and column: the same for any number of ranks.
    """

    def __init__(self, operator, permutation, tree_starts, seed, stream="sketch"):
        self.operator, self.permutation, self.starts = operator, permutation, tree_starts
        self.seed, self.stream = seed, stream
        me = operator.comm.rank
        self.rows = permutation[tree_starts[me] : tree_starts[me + 1]]
        self.omega = np.zeros((len(self.rows), 0), operator.dtype)
        self.Y = np.zeros((len(self.rows), 0), operator.dtype)

    @property
    def n_columns(self):
        """k."""
        return self.Y.shape[1]

    def affordable(self):
        """How many further columns the memory allows (Ω, Y, their images on a level and copies: six numbers a row). Collective."""
        free = 0.8 * memory.fair_share(self.operator.comm) - 3 * PRODUCT_BYTES
        own = int(max(0, free) // (6 * self.operator.dtype.itemsize * max(1, len(self.rows))))
        return self.operator.comm.allreduce(own, MPI.MIN)

    def extend(self, n_more, advance=lambda n: None):
        """n_more further columns: returns their (Ω, Y), [n_local, n_more]. Collective; `advance(n)` after every n columns."""
        operator, n_params = self.operator, self.operator.shape[0]
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
            advance(b - a)
        self.omega, self.Y = np.concatenate([self.omega, omega], axis=1), np.concatenate([self.Y, Y], axis=1)
        return omega, Y

    def fresh(self, n_columns, stream):
        """(G, HG) [n_local, n_columns] in tree rows for Gaussian G of another stream: probes that this sketch has not seen. Collective."""
        return Sketch(self.operator, self.permutation, self.starts, self.seed, stream).extend(n_columns)
