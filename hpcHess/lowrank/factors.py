r"""Direct factors of a low-rank H̃ + λI: its eigendecomposition.

With H̃ = P M Pᵀ, P = Q R (Cholesky of PᵀP, twice) and R M Rᵀ = SΘSᵀ, U = QS is orthonormal and H̃ = U Θ Uᵀ. By the Woodbury identity

    (H̃ + λI)⁻¹ = λ⁻¹ (I − U diag(θ/(θ + λ)) Uᵀ) = U diag(1/(θ + λ)) Uᵀ + λ⁻¹ (I − UUᵀ),

the right-hand form, with b − UUᵀb projected twice, loses no digits like the middle one does where λ ≪ θ.
"""

import numpy as np

from hpcHess.compressed.factors import DirectFactors
from hpcHess.lowrank.basis import summed
from hpcHess.parallel.replicated import replicated
from hpcHess.runtime.errors import InputError

_LEAST = 8  # the r of r ε max|θ + λ|, below which an eigenvalue of H̃ + λI is singular, for small ranks r


class Woodbury(DirectFactors):
    """U float64 [n_alive_local, r] on the backend, its rows in the parameter rows, and θ [r], of a `LowRankMatrix`."""

    solver = "woodbury"

    def __init__(self, matrix, damping, rows, U, theta):
        self._rows, self._U, self._theta, self._backend = rows, U, theta, matrix.backend
        shifted = theta + damping
        log_abs = float(np.sum(np.log(np.abs(shifted))))
        if matrix.rank < matrix.n_params:
            log_abs += (matrix.n_params - matrix.rank) * np.log(damping)
        super().__init__(matrix, damping, log_abs, np.count_nonzero(shifted < 0))

    @classmethod
    def of(cls, matrix, damping):
        """The factors of H̃ + λI. Collective; InputError where that is singular."""
        if damping == 0 and matrix.rank < matrix.n_params:
            raise InputError(f"H̃ is singular: its rank is {matrix.rank} of {matrix.n_params}; use a damping > 0")
        rows, U, theta = eigenpairs(matrix)
        sizes = np.abs(np.append(theta, 0.0) + damping if matrix.rank < matrix.n_params else theta + damping)
        if not sizes.min() > max(_LEAST, matrix.rank) * np.finfo(np.float64).eps * max(np.abs(theta).max(initial=0), damping):
            raise InputError(f"H̃ + λI is singular to working precision at damping {damping:g}: use a larger damping")
        return cls(matrix, damping, rows, matrix.backend.asarray(U), theta)

    def solve_rows(self, B, absolute=False):
        """(H̃ + λI)⁻¹B, or |H̃ + λI|⁻¹B, in parameter rows, float64 [n_local, k]. Collective."""
        xp, to_device, to_host, U = self._backend.xp, self._backend.asarray, self._backend.to_host, self._U
        B = np.asarray(B, np.float64)
        outside, inside = to_device(np.ascontiguousarray(B[self._rows])), 0.0
        for _ in range(2):
            found = to_device(summed(self.comm, to_host(U.T @ outside)))
            outside, inside = outside - U @ found, inside + found
        shifted = to_device(np.abs(self._theta + self.damping) if absolute else self._theta + self.damping)
        X = U @ (inside / shifted[:, None])
        if self.damping == 0:
            result = np.zeros(B.shape)  # the rank is N: nothing is outside
            result[self._rows] = to_host(X)
            return result
        result = B / self.damping
        result[self._rows] = to_host(xp.add(X, outside / self.damping))
        return result


def eigenpairs(matrix):
    """(alive rows counted in this rank's parameter rows, U float64 [n_alive_local, r], θ [r] ascending) of a `LowRankMatrix`. Collective."""
    P, rows = matrix.basis_rows(np.float64)
    M = matrix.core_matrix()
    for sweep in range(2):
        L, inverse = replicated(matrix.comm, _cholesky, matrix.gram() if not sweep else summed(matrix.comm, P.T @ P))
        P, M = P @ inverse.T, L.T @ M @ L
    theta, S = replicated(matrix.comm, np.linalg.eigh, (M + M.T) / 2)
    return rows, P @ S, theta


def _cholesky(gram):
    """(L, L⁻¹)."""
    L = np.linalg.cholesky(gram)
    return L, np.linalg.inv(L)
