"""Eigenpairs of the largest magnitude by SLEPc's Krylov–Schur method, some more at a time, those found before deflated."""

import numpy as np

from hpcHess.krylov.eigen import largest_eigenpairs
from hpcHess.krylov.library import slepc
from hpcHess.lowrank.basis import Basis

FIRST, GROWTH = 16, 0.5
ACCURACY = 0.05  # of the allowed error: all residuals together


class KrylovSchur:
    """Q: converged eigenvectors, and their eigenvalues. Accuracy of a pair: a residual of ACCURACY · rtol ‖H‖_F / √(pairs), if rounding allows."""

    def __init__(self, products, steering, rtol, seed=0):
        slepc(products.comm)
        self.products, self._seed = products, seed
        self.basis, self._theta = Basis(products.comm, len(products.rows), products.dtype), np.zeros(0)
        self._scale = rtol * steering.norm()
        self.exhausted = products.n == 0

    @property
    def comm(self):
        """All ranks."""
        return self.products.comm

    @property
    def shape(self):
        """(N, N)."""
        return self.products.operator.shape

    def matmat_rows(self, V):
        """HV in parameter rows, counted. Collective."""
        self.products.count += V.shape[1]
        return self.products.operator.matmat_rows(np.ascontiguousarray(V, self.products.dtype))

    def grow(self):
        """By `FIRST` pairs, or `GROWTH` times those there are. Collective."""
        products, size = self.products, self.basis.size
        count = min(products.n - size, max(FIRST, int(GROWTH * size)))
        largest = float(np.abs(self._theta).max(initial=0)) or self._scale
        tolerance = max(ACCURACY * self._scale / np.sqrt(size + count), 20 * np.finfo(products.dtype).eps * largest)
        start = products.spread(products.gaussian(self._seed, "krylov", range(size, size + 1)))[:, 0]
        values, vectors = largest_eigenpairs(self, count, tolerance, start, products.spread(self.basis.Q))
        new = vectors[products.rows].astype(products.dtype)[:, : products.n - size]
        self.basis.append(new)
        self._theta = np.append(self._theta, values[: new.shape[1]])
        self.exhausted = self.basis.size >= products.n or not new.shape[1]

    def core(self):
        """The eigenvalues on the diagonal."""
        return np.diag(self._theta)

    def settled(self, S, allowed):
        """The pairs have converged."""
        return True
