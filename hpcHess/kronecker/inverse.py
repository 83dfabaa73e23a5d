r"""(A ⊗ S + λI)⁻¹ layer by layer, by two small eigendecompositions each.

With A = U_A diag(a) U_Aᵀ and S = U_S diag(s) U_Sᵀ, the product with a matrix V [d, c] is U_A [(U_Aᵀ V U_S) / (a_p s_q + λ)] U_Sᵀ, and
log det = Σ_pq log(a_p s_q + λ). Exact for sums of one term a layer; of others the leading term of each diagonal block, whose eigenvalues are made
nonnegative (of a semidefinite block they are so up to rounding: Van Loan & Pitsianis 1993, §5), is a positive definite preconditioner.
"""

import numpy as np

from hpcHess.compressed.factors import DirectFactors
from hpcHess.parallel.exchange import gather_rows, reduce_rows


class KroneckerInverse(DirectFactors):
    """The inverse of λI + ⊕_ℓ A_ℓ ⊗ S_ℓ of a `KroneckerSum`; where `exact`, the direct factors of H̃ + λI. The layers are dealt out to the ranks.

    Layers without terms and dead parameters contribute λ alone. Eigendecompositions are made once a matrix, not for every λ.
    """

    solver = "kronecker"

    def __init__(self, matrix, damping, exact=False):
        self._pieces = [each if exact else tuple(np.maximum(part, 0) if part.ndim == 1 else part for part in each) for each in _eigen(matrix)]
        self._layers = [matrix.layers[each.layers[0]] for each in matrix.terms if each.symmetric]
        sums = [np.multiply.outer(a, s) + damping for a, _, s, _ in self._pieces]
        n_other = matrix.n_params - sum(each.size for each in sums)
        with np.errstate(divide="ignore"):
            logarithms = sum(float(np.log(np.abs(each)).sum()) for each in sums) + (n_other * float(np.log(damping)) if n_other else 0.0)
        negative = sum(int((each < 0).sum()) for each in sums)
        zero = sum(int((each == 0).sum()) for each in sums) + (n_other if damping == 0 else 0)
        super().__init__(matrix, damping, logarithms, negative, zero, None if exact else 0.0)

    def solve_rows(self, B, absolute=False):
        """X in parameter rows, float64 [n_local, k]; absolute: with |a_p s_q + λ|. Collective."""
        matrix, comm = self.matrix, self.comm
        xp, k = matrix.backend.xp, B.shape[1]
        V = gather_rows(comm, np.ascontiguousarray(B, np.float64), matrix.parameter_starts)
        X = xp.zeros((matrix.n_params, k))
        touched = np.zeros(matrix.n_params, bool)
        whole = matrix.backend.asarray(V)
        for at, (layer, pieces) in enumerate(zip(self._layers, self._pieces, strict=True)):
            touched |= _mask(layer, matrix.n_params)
            if at % comm.size != comm.rank:
                continue
            a, U, s, W = (matrix.backend.asarray(each) for each in pieces)
            Z = xp.matmul(U.T, layer.gather(xp, whole).reshape(len(U), -1)).reshape(-1, k, len(W))
            Z = xp.matmul(Z, W)
            sums = a[:, None, None] * s + self.damping
            Z = _divided(xp, Z, abs(sums) if absolute else sums)
            Z = xp.matmul(U, xp.matmul(Z, W.T).reshape(len(U), -1)).reshape(-1, k, len(W))
            layer.scatter(xp, Z, X)
        result = reduce_rows(comm, matrix.backend.to_host(X), matrix.parameter_starts)
        rest = ~touched[matrix.mine]
        if rest.any():
            result[rest] = B[rest] / self.damping if self.damping else 0.0
        return result


def _divided(xp, Z, sums):
    """Z / sums, 0 where sums is 0."""
    zero = sums == 0
    return xp.where(zero, 0.0, Z / xp.where(zero, 1.0, sums))


def _mask(layer, n_params):
    """Which parameters lie in living rows and columns of a layer."""
    V = np.zeros((n_params, 1))
    layer.scatter(np, np.ones((layer.shape[0], 1, layer.shape[1])), V)
    return V[:, 0] > 0


def _eigen(matrix):
    """[(a, U_A, s, U_S), …] of the leading terms of the diagonal pairs, S with a trace ≥ 0; kept by the matrix."""
    if matrix.eigen is None:
        found = []
        for each in matrix.terms:
            if each.symmetric:
                A, S = each.lefts(slice(0, 1))[0].astype(np.float64), each.right[0].astype(np.float64)
                sign = -1.0 if np.trace(S) < 0 else 1.0
                (a, U), (s, W) = np.linalg.eigh(sign * A), np.linalg.eigh(sign * S)
                found.append((a, U, s, W))
        matrix.eigen = found
    return matrix.eigen
