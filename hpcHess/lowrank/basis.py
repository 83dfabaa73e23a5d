"""Growing orthonormal bases whose rows the ranks share, and products of H with them, on the parameters that are alive."""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel.operator import check_products
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows
from hpcHess.parallel.replicated import replicated

NOISE = {np.dtype(np.float32): 3e-6, np.dtype(np.float64): 1e-12}  # of a column: less than this outside of a space is rounding
_DEPENDENT = {np.dtype(np.float32): 1e-11, np.dtype(np.float64): 1e-13}  # eigenvalues of Gram matrices of unit columns that are rounding
_OWN = 0.7  # of a unit column's norm: what a second projection leaves of a direction of its own, and not of rounding
_MESSAGE = 1 << 26  # numbers of one reduction


def summed(comm, array):
    """Σ over the ranks of an array that all of them have, float64, by messages of bounded size. Collective."""
    total = np.array(array, np.float64, order="C")
    if comm.size > 1:
        flat = total.reshape(-1)
        for at in range(0, flat.size, _MESSAGE):
            comm.Allreduce(MPI.IN_PLACE, flat[at : at + _MESSAGE])
    return total


class AliveProducts:
    """H on its alive rows, of which this rank has those among its parameter rows.

    n       number of alive parameters of all ranks; rows: this rank's, counted in its parameter rows
    count   exact products so far
    """

    def __init__(self, operator):
        self.comm, self.dtype, self.operator, self.count = operator.comm, np.dtype(operator.dtype), operator, 0
        starts = row_starts(operator.shape[0], self.comm.size)
        self.first, self.last = (int(at) for at in starts[self.comm.rank : self.comm.rank + 2])
        alive, self.n = np.asarray(operator.alive, np.int64), len(operator.alive)
        self.rows = alive[(alive >= self.first) & (alive < self.last)] - self.first

    def apply(self, W):
        """HW for W [n, k], rows that are alive. Collective. InputError where it is not finite."""
        self.count += W.shape[1]
        products = np.asarray(self.operator.matmat_rows(self.spread(W)))[self.rows]
        check_products(self.comm, products, "the operator")
        return products

    def spread(self, W):
        """Alive rows [n, k] → parameter rows [n_local, k], row-major, zero where a parameter is dead."""
        result = np.zeros((self.last - self.first, W.shape[1]), self.dtype)
        result[self.rows] = W
        return result

    def gaussian(self, seed, stream, columns):
        """Standard normal vectors, [n, len(columns)]; rows by parameter index, whoever owns them. Not collective."""
        return gaussian_rows(seed, stream, self.first, self.last, columns, self.dtype)[self.rows]


class Basis:
    """Orthonormal columns Q [n, m], column-major, to which blocks are added. `Q` is a view of what there is."""

    def __init__(self, comm, n_rows, dtype):
        self.comm, self.size, self._held = comm, 0, np.empty((n_rows, 0), dtype, order="F")

    @property
    def Q(self):
        return self._held[:, : self.size]

    def append(self, W):
        """Q ← [Q, W] for orthonormal W [n, k] orthogonal to Q. Not collective."""
        size = self.size + W.shape[1]
        if size > self._held.shape[1]:
            more = np.empty((len(W), max(size, self._held.shape[1] * 3 // 2)), self._held.dtype, order="F")
            more[:, : self.size] = self.Q
            self._held = more
        self._held[:, self.size : size] = W
        self.size = size

    def project(self, W):
        """QᵀW, [m, k]. Collective."""
        return summed(self.comm, self.Q.T @ W)

    def combine(self, coefficients):
        """QC, [n, k]. Not collective."""
        return self.Q @ coefficients.astype(self._held.dtype, copy=False)

    def extend(self, W, noise):
        """Q ← Q and orthonormal columns such that W [n, k] is in its span up to `noise` of the columns' norms. Collective.

        One pass of `added` leaves what is smaller than √ε of the block's largest direction: passes go on until nothing is left.
        """
        scale, left = self._norms(W) * (noise / NOISE[self._held.dtype]), W
        while (found := self.added(left, scale)).shape[1]:
            self.append(found)
            for _ in range(2):
                left = left - self.combine(self.project(left))

    def added(self, W, scale=None):
        """Orthonormal columns of what W [n, k] adds to the span of Q; none where that is rounding. Collective.

        scale [k]: size of W's columns before anything was taken from them, default their norms. By Gram matrices, twice (CholeskyQR2 with an
        eigendecomposition in place of Cholesky's, which bears dependent columns): Yamamoto, Nakatsukasa, Yanagisawa & Fukaya, ETNA 2015.
        """
        dtype = self._held.dtype
        for sweep, least in enumerate((NOISE[dtype], NOISE[dtype], _OWN)):
            scale = self._norms(W) if scale is None else scale
            W = W[:, scale > 0] / scale[scale > 0].astype(dtype)
            W = W - self.combine(self.project(W))
            left = self._norms(W)
            W = W[:, left > least] / left[left > least].astype(dtype)
            gram, vectors = replicated(self.comm, np.linalg.eigh, self.gram(W))
            keep = gram > _DEPENDENT[dtype]
            turn = vectors[:, keep] / np.sqrt(gram[keep])
            W, scale = W @ turn.astype(dtype), None
            if sweep and left.min(initial=1) > _OWN and gram.min(initial=1) > _OWN:
                break  # hardly anything was taken from orthonormal columns: none was rounding
        return W

    def _norms(self, W):
        return np.sqrt(summed(self.comm, np.einsum("ij,ij->j", W, W, dtype=np.float64)))

    def gram(self, W):
        """WᵀW, [k, k]. Collective."""
        return summed(self.comm, W.T @ W)
