"""Telescoping Woodbury steps by interpolative elimination, stable for small damping and for indefinite matrices.

A block D = A_i, permuted to skeleton J and redundant rows R, couples to the rest of the matrix through U = [I; Tᵀ] only.
M = [[I, 0], [−Tᵀ, I]] has determinant one and M U = [I; 0]: in X = M D Mᵀ the rows R couple to nothing outside,

    X_RR = D_RR − TᵀD_JR − D_RJ T + TᵀD_JJ T,   X_JR = D_JR − D_JJ T,   D̂ = D_JJ − X_JR X_RR⁻¹ X_RJ,

so log|A| = Σ log|X_RR| + log|root| and the inertia is a plain sum (Haynsworth). With X_RR⁻¹ = W σ Wᵀ, σ = ±1
(Cholesky: W = L⁻ᵀ; otherwise eigenvectors over √|λ|) and K = X_JR W every sweep is a batch of products.
"""

from dataclasses import dataclass

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.ownership import starts_of

NEGLIGIBLE = 1e-10  # eigenvalues of X_RR below this times max|A| are delayed
GROWTH = 1e3  # so are directions by which D̂ would outgrow max|A| by this factor (there are none where A is semidefinite)


@dataclass
class Elimination:
    """Factors of b blocks A_i [c_i × c_i], of which s_i + δ_i rows are kept; float64.

    `kept` = s + δ, `delayed` = δ, `negative` (negative eigenvalues eliminated) int64 [b]; `log_abs` float64 [b], log|det|
    of what was eliminated; `schur`: Blocks [kept × kept], D̂ with the delayed directions after the skeleton (None when
    restored from arrays). `order` [Σ c], `T` as given; `W` [r × a], `K` [s × a], `V` [r × δ] with r = c − s, a = r − δ;
    `sign` [Σ a]. `inspected`: (whether W is upper triangular uint8 [b], max_j ‖We_j‖² [b]), where the
    backend has looked.
    """

    backend: object
    order: np.ndarray
    T: Blocks
    W: Blocks
    K: Blocks
    V: Blocks
    sign: object
    log_abs: np.ndarray
    negative: np.ndarray
    schur: Blocks = None
    inspected: tuple = None

    def __post_init__(self):
        s, r = self.T.rows, self.T.cols
        self.delayed = self.V.cols
        self.kept = s + self.delayed
        self.starts, self.kept_starts = starts_of(s + r), starts_of(self.kept)
        self._r_starts, self._a_starts = starts_of(r), starts_of(self.W.cols)
        # of the rows in order: which are of J; where those lie inside the stacked kept rows
        local = np.arange(self.starts[-1]) - np.repeat(self.starts[:-1], s + r)
        in_skeleton = self._in_skeleton = local < np.repeat(s, s + r)
        owner = np.repeat(np.arange(len(s)), s + r)
        self._J_kept = self.kept_starts[owner[in_skeleton]] + local[in_skeleton]

    def smallest(self):
        """About the smallest |eigenvalue| of what was eliminated, over all blocks: min 1 / ‖W e_j‖² ≥ min |λ| (inf for nothing).

        Exact where eigenvectors were used; a near-singular Cholesky factor has its tiny pivot in one column of W.
        """
        return self.backend.smallest(self.W, self.inspected)

    def order_of_pivots(self):
        """Largest number of rows eliminated at once."""
        return int(self.W.rows.max(initial=0))

    def rows(self, starts=None):
        """Where the rows of all blocks lie, each block's in its `order`, int64 [Σ c]: block i at row starts[i], default one after another."""
        return np.repeat((self.starts if starts is None else np.asarray(starts))[: len(self.kept)], np.diff(self.starts)) + self.order

    def forward(self, B, starts=None, rows=None):
        """Eliminate in B, stacked rows [Σ c, k] (block i at row starts[i]; default one after another), or [n, k] with theirs at `rows` (as of `rows()`).

        Returns (B_kept, state): b_R' = b_R − Tᵀb_J, z = Wᵀb_R', b_J' = b_J − K σ z, b_δ = Vᵀb_R' in the rows
        [Σ kept, k], block i at kept_starts[i]; the state is z.
        """
        return self.backend.forward(self, B, self.starts if starts is None else np.asarray(starts, np.int64), rows)

    def backward(self, x_kept, state, rows=None, into=None):
        """The stacked rows [Σ c, k] of the solution, in the order the blocks had before permuting, from its kept rows; or `into` [n, k], in place, at `rows`.

        x_R = W σ (z − Kᵀx_J') + V x_δ, x_J = x_J' − T x_R.
        """
        return self.backend.backward(self, x_kept, state, rows, into)

    def arrays(self):
        """Everything but `schur` as flat host arrays, for a file."""
        host = self.backend.to_host
        return {
            "skeleton_sizes": self.T.rows, "redundant_sizes": self.T.cols, "delayed": self.delayed, "order": self.order,
            "T": host(self.T.data), "W": host(self.W.data), "K": host(self.K.data), "V": host(self.V.data),
            "sign": host(self.sign), "log_abs": self.log_abs, "negative": self.negative,
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, backend, arrays):
        """The factors whose `arrays()` these are, on `backend`."""
        s, r, delayed = (np.asarray(arrays[key], np.int64) for key in ("skeleton_sizes", "redundant_sizes", "delayed"))
        data = {key: backend.asarray(arrays[key]) for key in ("T", "W", "K", "V", "sign")}
        return cls(
            backend,
            np.asarray(arrays["order"], np.int64),
            Blocks.shaped(data["T"], s, r),
            Blocks.shaped(data["W"], r, r - delayed),
            Blocks.shaped(data["K"], s, r - delayed),
            Blocks.shaped(data["V"], r, delayed),
            data["sign"],
            np.asarray(arrays["log_abs"], float),
            np.asarray(arrays["negative"], np.int64),
        )


def forward(e, B, starts, rows=None):
    """`Elimination.forward` in products of the backend, a level at a time."""
    rows = e.rows(starts) if rows is None else rows
    xp, multiply = e.backend.xp, e.backend.multiply
    k, kept_starts, r_starts, a_starts = B.shape[1], e.kept_starts, e._r_starts, e._a_starts
    B_kept = xp.zeros((int(kept_starts[-1]), k))
    B_kept[xp.asarray(e._J_kept)] = B[xp.asarray(rows[e._in_skeleton])]
    B_R = B[xp.asarray(rows[~e._in_skeleton])].astype(np.float64, copy=False)
    multiply(e.T, B_kept, kept_starts, B_R, r_starts, transpose=True, alpha=-1.0)
    z = xp.zeros((int(a_starts[-1]), k))
    multiply(e.W, B_R, r_starts, z, a_starts, transpose=True)
    z *= e.sign[:, None]
    multiply(e.K, z, a_starts, B_kept, kept_starts, alpha=-1.0)
    multiply(e.V, B_R, r_starts, B_kept, kept_starts[:-1] + e.T.rows, transpose=True)
    return B_kept, z


def backward(e, x_kept, state, rows=None, into=None):
    """`Elimination.backward` in products of the backend, a level at a time."""
    rows = e.rows() if rows is None else rows
    xp, multiply = e.backend.xp, e.backend.multiply
    k, kept_starts, r_starts, a_starts = x_kept.shape[1], e.kept_starts, e._r_starts, e._a_starts
    x_kept = xp.array(x_kept, dtype=np.float64, order="C")
    z = xp.zeros_like(state)
    multiply(e.K, x_kept, kept_starts, z, a_starts, transpose=True)
    z = state - e.sign[:, None] * z
    x_R = xp.zeros((int(r_starts[-1]), k))
    multiply(e.W, z, a_starts, x_R, r_starts)
    multiply(e.V, x_kept, kept_starts[:-1] + e.T.rows, x_R, r_starts)
    multiply(e.T, x_R, r_starts, x_kept, kept_starts, alpha=-1.0)
    X = xp.empty((int(e.starts[-1]), k)) if into is None else into
    X[xp.asarray(rows[e._in_skeleton])] = x_kept[xp.asarray(e._J_kept)]
    X[xp.asarray(rows[~e._in_skeleton])] = x_R
    return X


def eliminate(backend, A, order, T, delay=True):
    """Elimination of the redundant rows of every symmetric block A_i [c_i × c_i], computed in float64.

    `order` int64 [Σ c_i] lists the rows of each block, skeleton first; T: Blocks [s_i × (c_i − s_i)]. Directions of X_RR
    with |λ| ≤ 1e-10 max|A_i|, or whose elimination would lose digits (‖X_JR v‖∞² > 1e3 |λ| max|A_i|), are kept (δ of
    them) when `delay`, else eliminated; numpy.linalg.LinAlgError where one is exactly zero and may not be kept.
    """
    xp = backend.xp
    order = np.asarray(order, np.int64)
    starts = starts_of(A.rows)
    parts = []
    for i in range(len(A)):
        rows = xp.asarray(order[starts[i] : starts[i + 1]])
        D = A[i].astype(np.float64, copy=False)[rows][:, rows]
        parts.append(eliminate_block(xp, D, T[i].astype(np.float64, copy=False), delay))
    return assemble(backend, order, T, parts)


def assemble(backend, order, T, parts):
    """The Elimination made of what `eliminate_block` returned for every block."""
    xp = backend.xp
    columns = list(zip(*parts, strict=True)) if parts else [()] * 7
    W, K, V, schur = (gather(xp, blocks) for blocks in columns[:4])
    sign = xp.concatenate([xp.zeros(0), *columns[4]])
    return Elimination(backend, order, T, W, K, V, sign, np.array(columns[5], float), np.array(columns[6], np.int64), schur)


def smallest_of(xp, W):
    """min 1 / ‖W_i e_j‖² over all columns of all blocks, inf for none."""
    largest = 0.0
    for i in range(len(W)):
        if W.rows[i] and W.cols[i]:
            largest = max(largest, float(xp.max(xp.sum(W[i] * W[i], axis=0))))
    return 1 / largest if largest else np.inf


def gather(xp, blocks):
    """`Blocks` of a list of matrices."""
    flat = xp.concatenate([xp.zeros(0), *(block.reshape(-1) for block in blocks)])
    shapes = np.array([block.shape for block in blocks], np.int64).reshape(-1, 2)
    return Blocks.shaped(flat, shapes[:, 0], shapes[:, 1])


def eliminate_block(xp, D, T, delay):
    """(W, K, V, schur, sign, log_abs, negative) of one permuted block D."""
    s, r = T.shape
    D_JJ, X_JR, X_RR = D[:s, :s], D[:s, s:], D[s:, s:]
    if bool(xp.any(T)):
        X_JR = X_JR - D_JJ @ T
        X_RR = X_RR - T.T @ D[:s, s:] - X_JR.T @ T
    X_RR = (X_RR + X_RR.T) / 2
    size = float(xp.max(xp.abs(D))) if s + r else 0.0
    W = cholesky_inverse(xp, X_RR)
    if W is not None:
        K = X_JR @ W
        update = K @ K.T
        if not delay or s == 0 or float(xp.max(xp.abs(update))) <= GROWTH * size:
            log_abs = -2 * float(xp.sum(xp.log(xp.diagonal(W))))
            return W, K, xp.zeros((r, 0)), D_JJ - update, xp.ones(r), log_abs, 0
    eigenvalues, Q = xp.linalg.eigh(X_RR)
    magnitude = xp.abs(eigenvalues)
    C = X_JR @ Q
    active = magnitude > (NEGLIGIBLE * size if delay else 0.0)
    if delay and s:
        active = active & (xp.max(xp.abs(C), axis=0) ** 2 <= GROWTH * size * magnitude)
    elif not delay and not bool(xp.all(active)):
        raise np.linalg.LinAlgError("the matrix is singular: use another damping")
    W = Q[:, active] / xp.sqrt(magnitude[active])
    sign = xp.sign(eigenvalues[active])
    V = Q[:, ~active]
    K, C = X_JR @ W, C[:, ~active]
    schur = xp.concatenate(
        [
            xp.concatenate([D_JJ - (K * sign) @ K.T, C], axis=1),
            xp.concatenate([C.T, xp.diag(eigenvalues[~active])], axis=1),
        ]
    )
    return W, K, V, schur, sign, float(xp.sum(xp.log(magnitude[active]))), int(xp.sum(sign < 0))


def cholesky_inverse(xp, X):
    """W = L⁻ᵀ with X = LLᵀ, so that X⁻¹ = WWᵀ; None where X is not positive definite."""
    if not X.size:
        return X.copy()
    try:
        W = xp.linalg.inv(xp.linalg.cholesky(X)).T
    except np.linalg.LinAlgError:
        return None
    return W if bool(xp.all(xp.isfinite(W))) else None  # CuPy returns NaN in place of an error
