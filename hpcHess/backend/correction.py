"""Telescoping steps by the Sherman–Morrison–Woodbury formula as textbooks write it (Martinsson & Rokhlin, JCP 2005).

For a block D = A_i with basis U = Pᵀ: D̂ = (UᵀD⁻¹U)⁻¹, E = D⁻¹UD̂, G = D⁻¹ − D⁻¹UD̂UᵀD⁻¹, A⁻¹ = G + E (D̂ + B)⁻¹ Eᵀ,
log|A| = Σ log|D| − Σ log|D̂| + log|root| and the inertia likewise. G is a difference of numbers of size ‖D⁻¹‖: digits are lost like the
condition of D. It is here to be compared with `elimination` and `orthogonal`, which keep them.
"""

from dataclasses import dataclass

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.backend.elimination import cholesky_inverse, gather
from hpcHess.backend.orthogonal import bases
from hpcHess.parallel.ownership import starts_of


@dataclass
class Correction:
    """Factors of b blocks A_i [c_i × c_i], of which s_i rows are kept: `G` [c × c], `E` [c × s]; float64.

    `kept` int64 [b]; `log_abs` float64 [b] = log|D| − log|D̂|, `negative` int64 [b] likewise; `schur` Blocks [s × s], D̂
    (None when restored from arrays).
    """

    backend: object
    G: Blocks
    E: Blocks
    log_abs: np.ndarray
    negative: np.ndarray
    schur: Blocks = None

    def __post_init__(self):
        self.kept, self.delayed = self.E.cols, np.zeros_like(self.E.cols)
        self.starts, self.kept_starts = starts_of(self.E.rows), starts_of(self.kept)

    def smallest(self):
        """About the smallest |eigenvalue| of what was eliminated: min 1 / ‖G e_j‖."""
        return np.sqrt(self.backend.smallest(self.G))

    def order_of_pivots(self):
        """Largest number of rows of a block."""
        return int(self.G.rows.max(initial=0))

    def forward(self, B):
        """(Eᵀb [Σ s, k], G b) for B, stacked rows [Σ c, k]."""
        xp, multiply, k = self.backend.xp, self.backend.multiply, B.shape[1]
        B = xp.ascontiguousarray(B, dtype=np.float64)
        B_kept, state = xp.zeros((int(self.kept_starts[-1]), k)), xp.zeros((int(self.starts[-1]), k))
        multiply(self.E, B, self.starts, B_kept, self.kept_starts, transpose=True)
        multiply(self.G, B, self.starts, state, self.starts)
        return B_kept, state

    def backward(self, x_kept, state):
        """x = G b + E x_kept, stacked rows [Σ c, k]."""
        X = state.copy()
        x_kept = self.backend.xp.ascontiguousarray(x_kept, dtype=np.float64)
        self.backend.multiply(self.E, x_kept, self.kept_starts, X, self.starts)
        return X

    def arrays(self):
        """The factors as flat host arrays, for a file."""
        host = self.backend.to_host
        return {"G": host(self.G.data), "E": host(self.E.data), "log_abs": self.log_abs, "negative": self.negative}

    @classmethod
    def from_arrays(cls, backend, arrays):
        """The factors whose `arrays()` these are, with `skeleton_sizes`, `redundant_sizes` int64 [b], on `backend`."""
        s, r = (np.asarray(arrays[key], np.int64) for key in ("skeleton_sizes", "redundant_sizes"))
        G, E = Blocks.shaped(backend.asarray(arrays["G"]), s + r, s + r), Blocks.shaped(backend.asarray(arrays["E"]), s + r, s)
        return cls(backend, G, E, np.asarray(arrays["log_abs"], float), np.asarray(arrays["negative"], np.int64))


def correct(backend, A, order, T):
    """The steps of symmetric blocks A_i with bases P = [I T] in `order`. LinAlgError where D or UᵀD⁻¹U is singular."""
    xp = backend.xp
    G, E, schur, log_abs, negative = [], [], [], [], []
    for i, U in enumerate(bases(xp, order, T)):
        inverse, log_D, negative_D = _inverse(xp, A[i].astype(np.float64, copy=False))
        solved = inverse @ U
        D_hat, log_M, negative_M = _inverse(xp, U.T @ solved)
        E.append(solved @ D_hat)
        G.append(inverse - E[-1] @ solved.T)
        schur.append(D_hat)
        log_abs.append(log_D + log_M)
        negative.append(negative_D - negative_M)
    G, E, schur = (gather(xp, blocks) for blocks in (G, E, schur))
    return Correction(backend, G, E, np.array(log_abs, float), np.array(negative, np.int64), schur)


def _inverse(xp, D):
    """(D⁻¹, log|det D|, number of negative eigenvalues) of a symmetric D. LinAlgError where it is singular."""
    if not D.size:
        return D.copy(), 0.0, 0
    W = cholesky_inverse(xp, (D + D.T) / 2)
    if W is not None:
        return W @ W.T, -2 * float(xp.sum(xp.log(xp.diagonal(W)))), 0
    eigenvalues, Q = xp.linalg.eigh((D + D.T) / 2)
    if not bool(xp.all(eigenvalues != 0)) or not bool(xp.all(xp.isfinite(eigenvalues))):
        raise np.linalg.LinAlgError("a block is singular")
    return (Q / eigenvalues) @ Q.T, float(xp.sum(xp.log(xp.abs(eigenvalues)))), int(xp.sum(eigenvalues < 0))
