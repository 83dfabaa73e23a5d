"""What was reached: the Frobenius error from fresh probes with its interval, spectral norms on block Krylov spaces."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import gammaincinv

from hpcHess.hierarchical.evaluate import multiply_tree_rows
from hpcHess.hierarchical.norms import norm_frobenius
from hpcHess.parallel.exchange import gather_rows, reduce_rows
from hpcHess.parallel.random import gaussian_rows

CONFIDENCE = 0.95
NOISE = 1e-13  # of a unit column's ‖·‖²: less than this outside of a space is rounding


@dataclass
class ErrorEstimate:
    """‖H̃ − H‖_F / ‖H‖_F: `value` and the two-sided interval `low` … `high` at `confidence`, from `probes` Gaussian vectors."""

    value: float
    low: float
    high: float
    probes: int
    confidence: float = CONFIDENCE

    def as_dict(self):
        """Plain numbers for the report."""
        return asdict(self)


def chi2_quantile(p, freedom):
    """x with P(χ²_freedom ≤ x) = p. (All of scipy.stats takes as long to import as everything else.)"""
    return 2 * gammaincinv(freedom / 2, p)


def frobenius_interval(squares, confidence=CONFIDENCE):
    """(value, low, high) of ‖E‖_F from squares[j] = ‖E g_j‖², g_j standard normal.

    E‖Eg‖² = ‖E‖_F² and ‖Eg‖² = Σ σ_i² χ²_1, approximated by a scaled χ²_ν (Satterthwaite 1946), ν = 2 mean² / variance with
    the upper 95 % limit of the sample variance in place of the variance, and ν ≥ 1 (rank one): wide where few directions dominate.
    """
    q, mean = len(squares), float(np.mean(squares))
    if mean == 0.0:
        return 0.0, 0.0, 0.0
    variance = float(np.var(squares, ddof=1)) * (q - 1) / chi2_quantile(0.05, q - 1)
    freedom = q * max(1.0, 2 * mean**2 / variance if variance > 0 else np.inf)
    freedom = min(freedom, 1e9)
    tail = (1 - confidence) / 2
    low, high = (mean * freedom / chi2_quantile(p, freedom) for p in (1 - tail, tail))
    return np.sqrt(mean), np.sqrt(low), np.sqrt(high)


@dataclass
class Norm:
    """‖H‖_F and a 95 % interval of it."""

    value: float
    low: float
    high: float


def estimate_error(matrix, G, HG, norm=None):
    """(ErrorEstimate, Norm) from exact products HG in tree rows. Collective.

    Where the Norm is not given it follows from ‖H̃‖_F, which is exact: ‖H‖_F² = ‖H̃‖_F² + E[2⟨H̃g, (H−H̃)g⟩ + ‖(H−H̃)g‖²], with
    a sampling error of the order of the compression error itself.
    """
    comm = matrix.comm
    approximate = _product(matrix, G).astype(np.float64)
    difference = HG.astype(np.float64) - approximate
    squares = comm.allreduce(np.einsum("ij,ij->j", difference, difference))
    if norm is None:
        shifts = squares + 2 * comm.allreduce(np.einsum("ij,ij->j", approximate, difference))
        square = norm_frobenius(matrix) ** 2 + float(np.mean(shifts))
        spread = 1.96 * float(np.std(shifts, ddof=1)) / np.sqrt(len(shifts))
        norm = Norm(*(float(np.sqrt(max(0.0, square + step))) for step in (0.0, -spread, spread)))
    value, low, high = frobenius_interval(squares)
    return ErrorEstimate(_ratio(value, norm.value), _ratio(low, norm.high), _ratio(high, norm.low), len(squares)), norm


def _ratio(a, b):
    return float(a / b) if b > 0 else 0.0 if a == 0 else float("inf")


def _product(matrix, W):
    """H̃W in tree rows, host arrays. Collective."""
    backend = matrix.backend
    return backend.to_host(multiply_tree_rows(matrix, backend.asarray(np.ascontiguousarray(W))))


def spectral_norm(apply, comm, start, iterations, rtol=1e-4):
    """Largest |eigenvalue| of a symmetric operator on distributed rows, from below: Rayleigh–Ritz on the block Krylov space of `start`.

    `apply(W [n_local, k])`; `start` [n_local, k]. Stops after `iterations` products, or when the value settles to rtol. Clusters of
    eigenvalues do not slow it down as they do power iterations (Musco & Musco, NeurIPS 2015). Holds k · iterations columns. Collective.
    """
    n, k = start.shape
    Q, T = np.empty((n, k * iterations)), np.zeros((k * iterations,) * 2)
    value, m, W = 0.0, 0, start.astype(np.float64)
    for _ in range(iterations):
        W = _orthonormal(comm, Q[:, :m], W)
        if not W.shape[1]:
            break
        last, m = m, m + W.shape[1]
        Q[:, last:m] = W
        W = apply(W)
        T[:m, last:m] = comm.allreduce(Q[:, :m].T @ W)
        T[last:m, :m] = T[:m, last:m].T
        previous, value = value, float(np.abs(np.linalg.eigvalsh(T[:m, :m])).max())
        if abs(value - previous) <= rtol * value:
            break
    return value


def _orthonormal(comm, Q, W):
    """Orthonormal columns of what W [n_local, k] adds to the span of the orthonormal Q; none where that is rounding. Collective."""
    for _ in range(2):  # what is left of a unit column after a second projection is all of it, or the column was rounding
        before = comm.allreduce(np.einsum("ij,ij->j", W, W))
        W = W[:, before > 0] / np.sqrt(before[before > 0])
        W = W - Q @ comm.allreduce(Q.T @ W)
        gram, vectors = np.linalg.eigh(comm.allreduce(W.T @ W))
        keep = gram > NOISE
        W = W @ (vectors[:, keep] / np.sqrt(gram[keep]))
    left = W - Q @ comm.allreduce(Q.T @ W)
    return W[:, comm.allreduce(np.einsum("ij,ij->j", left, left)) > 0.5]


def largest_eigenvalue(matrix, seed=0, columns=8, iterations=16):
    """λ_max(H̃) in absolute value. Collective."""
    rows = matrix.tree.permutation[slice(*matrix.tree_rows(matrix.leaf_rows))]
    start = gaussian_rows(seed, "lambda_max", 0, matrix.n_params, range(min(columns, max(1, matrix.n_alive))), np.float64)[rows]

    return spectral_norm(lambda W: _product(matrix, W), matrix.comm, start, iterations, 1e-5)


def smallest_eigenvalue(matrix, columns=8, iterations=8):
    """λ_min(H̃) from above: a Rayleigh quotient of the part of sI − H̃ that is largest, s ≈ ‖H̃‖₂. Collective."""
    rows = matrix.tree.permutation[slice(*matrix.tree_rows(matrix.leaf_rows))]
    start = gaussian_rows(0, "lambda_min", 0, matrix.n_params, range(min(columns, max(1, matrix.n_alive))), np.float64)[rows]
    s = largest_eigenvalue(matrix, 0, columns, iterations)
    return s - spectral_norm(lambda W: s * W - _product(matrix, W), matrix.comm, start, iterations, 1e-2)


def spectral_error(matrix, operator, G, HG, columns=8, products=4):
    """‖H̃ − H‖₂ from below, on the block Krylov space of the error's image of the probes. Collective."""
    comm = matrix.comm

    def apply(W):
        whole = np.zeros((matrix.n_params, W.shape[1]), operator.dtype)
        whole[matrix.tree.permutation] = gather_rows(comm, np.ascontiguousarray(W, operator.dtype), matrix.leaf_rows)
        exact = reduce_rows(comm, operator.partial_matmat(whole)[matrix.tree.permutation], matrix.leaf_rows)
        return exact.astype(np.float64) - _product(matrix, W)

    start = HG.astype(np.float64) - _product(matrix, G.astype(np.float64))
    return spectral_norm(apply, comm, start[:, :columns], products, 1e-2)
