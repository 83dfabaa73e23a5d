r"""The randomized range finder with powers: a block Krylov space of a Gaussian matrix, and H's compression QᵀHQ to it.

span[Ω, HΩ, H²Ω, …] holds what subspace iteration finds with the same products, and more (Halko, Martinsson & Tropp, SIAM Review 2011, §4.5;
Musco & Musco, NeurIPS 2015): every product H Q_j of a block of the basis is both the next block and a block of columns of T = QᵀHQ, so a
space of m columns costs m products, those of the projection included.
"""

import numpy as np

from hpcHess.lowrank.basis import NOISE, Basis

BLOCK = 32
GROWTH = 1.05
SETTLED = 0.005  # of the allowed ‖·‖_F²: what more powers could still gain


class BlockKrylov:
    """Q [n, m] and T = QᵀHQ [m, m], growing by blocks; HQ = QT + [0 … 0 W], W [n, k] what leaves the space.

    A block that adds less than `BLOCK` columns is filled up with new random ones: eigenvalues of a higher multiplicity than the block
    are found, and a space that H leaves invariant grows on. `exhausted`: on what is orthogonal to Q, H is rounding.
    """

    def __init__(self, products, seed=0, block=BLOCK):
        self.products, self._seed, self._block, self._drawn = products, seed, max(1, min(block, products.n)), 0
        self.basis = Basis(products.comm, len(products.rows), products.dtype)
        self._T, self.exhausted, self._largest = np.zeros((0, 0)), products.n == 0, 0.0
        self._W, self._scale = np.zeros((len(products.rows), 0), products.dtype), np.zeros(0)

    def core(self):
        """T, float64 [m, m]."""
        return self._T[: self.basis.size, : self.basis.size]

    def grow(self):
        """By a block, and to `GROWTH` times the columns. Collective."""
        wanted = min(self.products.n, int(GROWTH * self.basis.size) + 1)
        while self.basis.size < wanted and not self.exhausted:
            self._extend()

    def _extend(self):
        basis, last = self.basis, self.basis.size
        block = basis.added(self._W, self._scale) if self._W.shape[1] else self._W
        basis.append(block)
        fresh = min(self._block, self.products.n - last) - block.shape[1]
        if fresh > 0:
            columns = range(self._drawn, self._drawn + fresh)
            self._drawn += fresh
            basis.append(basis.added(self.products.gaussian(self._seed, "range finder", columns)))
        m = basis.size
        if m == last:
            self.exhausted = True
            return
        HW = self.products.apply(np.ascontiguousarray(basis.Q[:, last:m]))
        h = basis.project(HW)
        self._largest = max(self._largest, float(np.abs(h).max()))
        if m > len(self._T):
            grown = np.zeros((2 * m, 2 * m))
            grown[:last, :last] = self._T[:last, :last]
            self._T = grown
        self._T[:m, last:m], self._T[last:m, :m] = h, h.T
        self._T[last:m, last:m] = (h[last:] + h[last:].T) / 2
        norms, noise = np.sqrt(np.diagonal(basis.gram(HW))), 5 * np.finfo(HW.dtype).eps * self._largest
        self._scale = np.maximum(norms, noise / NOISE[HW.dtype])  # rounding of the product is relative to ‖H‖₂
        self.exhausted = m >= self.products.n or (fresh == m - last and bool(np.all(norms <= noise)))
        self._W = HW - basis.combine(h)
        self._leaving = basis.gram(self._W)

    def residuals(self, S):
        """‖(HQ − QT) s_i‖² of columns s_i of S [m, r], float64 [r]: squared residual norms of Ritz vectors. Not collective."""
        last = S[self.basis.size - self._leaving.shape[0] :]
        return np.maximum(np.einsum("ij,ij->j", last, self._leaving @ last), 0)

    def settled(self, S, allowed):
        """Whether more powers would hardly change the Ritz pairs S [m, r], for an error with ‖·‖_F² = `allowed`. Not collective."""
        return self.exhausted or 2 * float(self.residuals(S).sum()) <= SETTLED * allowed
