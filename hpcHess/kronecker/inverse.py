r"""(A ⊗ S + λI)⁻¹ layer by layer, by two small eigendecompositions each.

With A = U_A diag(a) U_Aᵀ and S = U_S diag(s) U_Sᵀ, the product with a matrix V [d, c] is U_A [(U_Aᵀ V U_S) / (a_p s_q + λ)] U_Sᵀ, and
log det = Σ_pq log(a_p s_q + λ). Exact for sums of one term a layer; of others the leading term of each diagonal block, whose eigenvalues are made
nonnegative (of a semidefinite block they are so up to rounding: Van Loan & Pitsianis 1993, §5), is a positive definite preconditioner.
"""

import numpy as np

from hpcHess.compressed.damping import check_damping
from hpcHess.compressed.factors import DirectFactors
from hpcHess.parallel.agree import agree
from hpcHess.parallel.exchange import gather_rows, reduce_rows
from hpcHess.parallel.replicated import replicated
from hpcHess.runtime.errors import InputError

PRODUCT_BYTES = 1 << 28  # of a block of columns, whole on every rank

class KroneckerInverse(DirectFactors):
    """The inverse of λI + ⊕_ℓ A_ℓ ⊗ S_ℓ of a `KroneckerSum`; where `exact`, the direct factors of H̃ + λI. The layers are dealt out to the ranks.

    Layers without terms and dead parameters contribute λ alone. Eigendecompositions are made once a matrix, not for every λ.
    Raises InputError, where `exact`, if a layer is singular to working precision: |a_p s_q + λ| ≤ n ε max|a_p s_q + λ| of its n eigenvalues.
    A preconditioner at λ = 0 is the pseudo-inverse, 0 where a_p s_q + λ = 0: semidefinite, which `definite` tells.
    """

    solver = "kronecker"

    def __init__(self, matrix, damping, exact=False):
        check_damping(damping)
        self._pieces = [each if exact else tuple(np.maximum(part, 0) if part.ndim == 1 else part for part in each) for each in _eigen(matrix)]
        self._layers, self._exact = [matrix.layers[each.layers[0]] for each in matrix.terms if each.symmetric], exact
        sums = [np.multiply.outer(a, s) + damping for a, _, s, _ in self._pieces]
        if exact and not all(_regular(np.abs(each)) for each in sums):
            raise InputError(f"H̃ + λI is singular to working precision at damping {damping:g}: use a larger damping")
        alone = np.ones(matrix.n_params, bool)
        for layer in self._layers:
            alone &= ~_mask(layer, matrix.n_params)
        self._alone, n_other = np.flatnonzero(alone[matrix.mine]), int(alone.sum())
        with np.errstate(divide="ignore"):
            logarithms = sum(float(np.log(np.abs(each)).sum()) for each in sums) + (n_other * float(np.log(damping)) if n_other else 0.0)
        negative = sum(int((each < 0).sum()) for each in sums)
        zero = sum(int((each == 0).sum()) for each in sums) + (n_other if damping == 0 else 0)
        super().__init__(matrix, damping, logarithms, negative, zero, None if exact else 0.0)

    def solve_rows(self, B, absolute=False):
        """X in parameter rows, float64 [n_local, k], in blocks of columns; absolute: with |a_p s_q + λ|. Collective.

        Raises InputError where `exact`, at λ = 0, if b is not 0 for a parameter that H̃ leaves zero.
        """
        matrix, comm, X, error = self.matrix, self.comm, np.empty(B.shape), None
        if self.damping == 0 and self._exact and np.any(B[self._alone]):
            error = InputError("H̃ is singular: dead parameters have zero rows, where the right-hand side is not zero; use a damping > 0")
        agree(comm, error)
        own = [(layer, each) for at, (layer, each) in enumerate(zip(self._layers, self._pieces, strict=True)) if at % comm.size == comm.rank]
        own = [(layer, [matrix.backend.asarray(part) for part in each]) for layer, each in own]
        width = max(1, PRODUCT_BYTES // (8 * max(1, matrix.n_params)))
        for first in range(0, B.shape[1], width):
            part = np.ascontiguousarray(B[:, first : first + width], np.float64)
            whole = self._solved(gather_rows(comm, part, matrix.parameter_starts), own, absolute)
            X[:, first : first + width] = reduce_rows(comm, whole, matrix.parameter_starts)
        X[self._alone] = B[self._alone] / self.damping if self.damping else 0.0
        return X

    def _solved(self, V, own, absolute):
        """The rows of the `own` layers (layer, pieces) for V [N, k] whole, 0 elsewhere. Not collective."""
        xp, asarray, k = self.matrix.backend.xp, self.matrix.backend.asarray, V.shape[1]
        X, V = xp.zeros(V.shape), asarray(V)
        for layer, (a, U, s, W) in own:
            Z = xp.matmul(U.T, layer.gather(xp, V).reshape(len(U), -1)).reshape(-1, k, len(W))
            sums = a[:, None, None] * s + self.damping
            Z = _divided(xp, xp.matmul(Z, W), abs(sums) if absolute else sums)
            Z = xp.matmul(U, xp.matmul(Z, W.T).reshape(len(U), -1)).reshape(-1, k, len(W))
            layer.scatter(xp, Z, X)
        return self.matrix.backend.to_host(X)


def _regular(sizes):
    """Whether no |eigenvalue| of one block is rounding."""
    return not sizes.size or bool(sizes.min() > sizes.size * np.finfo(np.float64).eps * sizes.max())


def _divided(xp, Z, sums):
    """Z / sums, 0 where sums is 0: the pseudo-inverse, of preconditioners at λ = 0 alone."""
    zero = sums == 0
    return xp.where(zero, 0.0, Z / xp.where(zero, 1.0, sums))


def _mask(layer, n_params):
    """Which parameters lie in living rows and columns of a layer."""
    V = np.zeros((n_params, 1))
    layer.scatter(np, np.ones((layer.shape[0], 1, layer.shape[1])), V)
    return V[:, 0] > 0


def _eigen(matrix):
    """[(a, U_A, s, U_S), …] of the leading terms of the diagonal pairs, S with a trace ≥ 0; kept by the matrix. Collective."""
    if matrix.eigen is None:
        found = []
        for each in matrix.terms:
            if each.symmetric:
                A, S = each.lefts(slice(0, 1))[0].astype(np.float64), each.right[0].astype(np.float64)
                sign = -1.0 if np.trace(S) < 0 else 1.0
                (a, U), (s, W) = (replicated(matrix.comm, np.linalg.eigh, sign * each) for each in (A, S))
                found.append((a, U, s, W))
        matrix.eigen = found
    return matrix.eigen
