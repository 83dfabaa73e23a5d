"""Telescoping steps by orthogonal rotations (ULV; Chandrasekaran, Gu & Pals, SIMAX 2006), for symmetric blocks.

A block D = A_i couples to the rest of the matrix through a basis U [c × s] only. With Q = [Q₁ Q₂] orthogonal and U = Q₁Ũ (Householder
QR) the rows Q₂ᵀ of X = QᵀDQ couple to nothing outside, and eliminating them is `backend.elimination` with T = 0. det Q² = 1, so log|det| and
inertia are plain sums. The parent sees D̂ and Ũ in place of U: its coupling is Ũ_l B Ũ_rᵀ, its basis blockdiag(Ũ_l, Ũ_r) Pᵀ.
"""

from dataclasses import dataclass

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.backend.elimination import gather
from hpcHess.parallel.ownership import starts_of


@dataclass
class OrthogonalElimination:
    """Factors of b blocks A_i [c_i × c_i], of which s_i + δ_i rows are kept; float64.

    With X_RR⁻¹ = W σ Wᵀ: `E` = Q₂W [c × a], `F` = [Q₁ Q₂V] [c × (s + δ)], `K` = X_JR W [s × a], a = c − s − δ; `sign` [Σ a]. `kept`, `delayed`,
    `negative` int64 [b], `log_abs` float64 [b], `schur` Blocks [kept × kept] as of `backend.elimination.Elimination`; `basis` Blocks
    [s × s], Ũ (both None when restored from arrays).
    """

    backend: object
    E: Blocks
    F: Blocks
    K: Blocks
    sign: object
    log_abs: np.ndarray
    negative: np.ndarray
    schur: Blocks = None
    basis: Blocks = None

    def __post_init__(self):
        self.kept, self.delayed = self.F.cols, self.F.cols - self.K.rows
        self.starts, self.kept_starts, self._a_starts = starts_of(self.E.rows), starts_of(self.kept), starts_of(self.E.cols)

    def smallest(self):
        """About the smallest |eigenvalue| of what was eliminated, as of `Elimination.smallest`."""
        return self.backend.smallest(self.E)

    def forward(self, B):
        """Eliminate in B, stacked rows [Σ c, k]: z = σ Eᵀb, b_kept = Fᵀb − K z. Returns (B_kept [Σ kept, k], z)."""
        xp, multiply, k = self.backend.xp, self.backend.multiply, B.shape[1]
        B = xp.ascontiguousarray(B, dtype=np.float64)
        z, B_kept = xp.zeros((int(self._a_starts[-1]), k)), xp.zeros((int(self.kept_starts[-1]), k))
        multiply(self.E, B, self.starts, z, self._a_starts, transpose=True)
        z *= self.sign[:, None]
        multiply(self.F, B, self.starts, B_kept, self.kept_starts, transpose=True)
        multiply(self.K, z, self._a_starts, B_kept, self.kept_starts, alpha=-1.0)
        return B_kept, z

    def backward(self, x_kept, state):
        """The stacked rows [Σ c, k] of the solution from its kept rows: x = F x_kept + E (z − σ Kᵀx_J)."""
        xp, multiply = self.backend.xp, self.backend.multiply
        x_kept = xp.ascontiguousarray(x_kept, dtype=np.float64)
        z = xp.zeros_like(state)
        multiply(self.K, x_kept, self.kept_starts, z, self._a_starts, transpose=True)
        z = state - self.sign[:, None] * z
        X = xp.zeros((int(self.starts[-1]), x_kept.shape[1]))
        multiply(self.F, x_kept, self.kept_starts, X, self.starts)
        multiply(self.E, z, self._a_starts, X, self.starts)
        return X

    def order_of_pivots(self):
        """Largest number of rows eliminated at once."""
        return int((self.E.rows - self.K.rows).max(initial=0))

    def arrays(self):
        """The factors as flat host arrays, for a file."""
        parts = {name: self.backend.to_host(block.data) for name, block in (("E", self.E), ("F", self.F), ("K", self.K))}
        return parts | {"sign": self.backend.to_host(self.sign), "log_abs": self.log_abs, "negative": self.negative}

    @classmethod
    def from_arrays(cls, backend, arrays):
        """The factors whose `arrays()` these are, with `skeleton_sizes`, `redundant_sizes`, `delayed` int64 [b], on `backend`."""
        s, r, delayed = (np.asarray(arrays[key], np.int64) for key in ("skeleton_sizes", "redundant_sizes", "delayed"))
        shapes = {"E": (s + r, r - delayed), "F": (s + r, s + delayed), "K": (s, r - delayed)}
        blocks = [Blocks.shaped(backend.asarray(arrays[name]), *shape) for name, shape in shapes.items()]
        negative = np.asarray(arrays["negative"], np.int64)
        return cls(backend, *blocks, backend.asarray(arrays["sign"]), np.asarray(arrays["log_abs"], float), negative)


def bases(xp, order, T, children=None):
    """U_i [c_i × s_i] of every block in the order of its rows: Pᵀ, P[:, order] = [I T], at a leaf, blockdiag(Ũ_l, Ũ_r) Pᵀ above.

    children: (`Blocks` of two Ũ a block, their first rows inside it int64 [2b]), or None at leaves.
    """
    starts, found = starts_of(T.rows + T.cols), []
    for i in range(len(T)):
        s, rows = int(T.rows[i]), xp.asarray(order[starts[i] : starts[i + 1]])
        U = xp.zeros((len(rows), s))
        U[rows[:s]], U[rows[s:]] = xp.eye(s), T[i].T
        for child in (2 * i, 2 * i + 1) if children is not None else ():
            basis, at = children[0][child], int(children[1][child])
            U[at : at + len(basis)] = basis @ U[at : at + len(basis)]
        found.append(U)
    return found


def eliminate_orthogonally(backend, A, order, T, children=None, delay=True):
    """The steps of symmetric blocks A_i with bases `bases(order, T, children)`, in float64; directions are delayed as in `eliminate`.

    numpy.linalg.LinAlgError where an eigenvalue is exactly zero and may not be kept (`delay` false).
    """
    xp = backend.xp
    Q, basis = [], []
    rotated = Blocks.shaped(xp.empty, A.rows, A.rows)
    for i, U in enumerate(bases(xp, order, T, children)):
        rotation, triangle = xp.linalg.qr(U, mode="complete") if U.size else (xp.eye(len(U)), U)
        Q.append(rotation)
        basis.append(triangle[: U.shape[1]])
        if U.size:
            X = rotation.T @ A[i].astype(np.float64, copy=False) @ rotation
            rotated[i][...] = (X + X.T) / 2
        else:
            rotated[i][...] = A[i]
    own_order = np.concatenate([np.arange(c) for c in A.rows] or [np.zeros(0, np.int64)])
    found = backend.eliminate(rotated, own_order, Blocks.shaped(xp.zeros, T.rows, T.cols), delay)
    E, F = [], []
    for i, rotation in enumerate(Q):
        s = int(T.rows[i])
        E.append(rotation[:, s:] @ found.W[i])
        F.append(xp.concatenate([rotation[:, :s], rotation[:, s:] @ found.V[i]], axis=1))
    E, F, basis = (gather(xp, blocks) for blocks in (E, F, basis))
    return OrthogonalElimination(backend, E, F, found.K, found.sign, found.log_abs, found.negative, found.schur, basis)


def couple(xp, basis, coupling):
    """Ũ_2i B_i Ũ_2i+1ᵀ of every block B_i, `basis` with two Ũ for each."""
    B = (coupling[i].astype(np.float64, copy=False) for i in range(len(coupling)))
    return gather(xp, [basis[2 * i] @ block @ basis[2 * i + 1].T for i, block in enumerate(B)])
