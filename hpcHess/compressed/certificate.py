"""Certificates: the Frobenius error from fresh probes with its interval, spectral norms on block Krylov spaces."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import gammaincinv

from hpcHess.parallel.random import gaussian_rows
from hpcHess.parallel.replicated import replicated

CONFIDENCE = 0.95
_ROWS = 1 << 12  # that are in double precision at a time
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


def error_of_products(comm, exact, approximate, norm_compressed, norm=None):
    """(ErrorEstimate, Norm) from HG and H̃G, rows of which every rank holds some. Collective.

    Where the Norm is not given it follows from ‖H̃‖_F, which is exact: ‖H‖_F² = ‖H̃‖_F² + E[2⟨H̃g, (H−H̃)g⟩ + ‖(H−H̃)g‖²], with
    a sampling error of the order of the compression error itself.
    """
    sums = np.zeros((2, exact.shape[1]))
    for lo in range(0, len(exact), _ROWS):
        near = approximate[lo : lo + _ROWS].astype(np.float64, copy=False)
        difference = exact[lo : lo + _ROWS] - near
        sums += np.einsum("ij,ij->j", difference, difference), np.einsum("ij,ij->j", near, difference)
    squares, products = comm.allreduce(sums)
    if norm is None:
        shifts = squares + 2 * products
        square = norm_compressed() ** 2 + float(np.mean(shifts))
        spread = 1.96 * float(np.std(shifts, ddof=1)) / np.sqrt(len(shifts))
        norm = Norm(*(float(np.sqrt(max(0.0, square + step))) for step in (0.0, -spread, spread)))
    value, low, high = frobenius_interval(squares)
    found = ErrorEstimate(ratio(value, norm.value), ratio(low, norm.high), ratio(high, norm.low), len(squares))
    return comm.bcast((found, norm))  # decisions follow from it: bit for bit the same


def certify(matrix, operator, probes, seed, stream="certificate", norm=None):
    """(ErrorEstimate, Norm) of H̃ against the operator, from `probes` fresh Gaussian vectors of that stream. Collective."""
    mine = matrix.mine
    G = np.ascontiguousarray(gaussian_rows(seed, stream, mine.start, mine.stop, range(probes), operator.dtype))
    return error_of_products(matrix.comm, operator.matmat_rows(G), matrix.matmat_rows(G), matrix.norm_frobenius, norm)


def exact_error(value):
    """The report's `error_estimate` of a relative Frobenius error that is known, not estimated."""
    return {"value": float(value), "low": float(value), "high": float(value), "probes": 0, "confidence": 1.0, "exact": True}


def exactness(error):
    """How an `error_estimate` that no probes were needed for is told, "" for estimates."""
    if not error.get("exact"):
        return ""
    return "exact" if error["high"] == error["value"] else f"exact but for rounding, at most {error['high']:.2e}"


def ratio(a, b):
    """a / b, 0 for 0 / 0, inf for a / 0."""
    return float(a / b) if b > 0 else 0.0 if a == 0 else float("inf")


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
        previous, value = value, float(np.abs(replicated(comm, np.linalg.eigvalsh, T[:m, :m])).max())
        if abs(value - previous) <= rtol * value:
            break
    return value


def _orthonormal(comm, Q, W):
    """Orthonormal columns of what W [n_local, k] adds to the span of the orthonormal Q; none where that is rounding. Collective."""
    for _ in range(2):  # what is left of a unit column after a second projection is all of it, or the column was rounding
        before = comm.allreduce(np.einsum("ij,ij->j", W, W))
        W = W[:, before > 0] / np.sqrt(before[before > 0])
        W = W - Q @ comm.allreduce(Q.T @ W)
        gram, vectors = replicated(comm, np.linalg.eigh, comm.allreduce(W.T @ W))
        keep = gram > NOISE
        W = W @ (vectors[:, keep] / np.sqrt(gram[keep]))
    left = W - Q @ comm.allreduce(Q.T @ W)
    return W[:, comm.allreduce(np.einsum("ij,ij->j", left, left)) > 0.5]


def largest_eigenvalue(matrix, seed=0, columns=8, iterations=16):
    """λ_max(H̃) in absolute value. Collective."""
    return spectral_norm(lambda W: _product(matrix, W), matrix.comm, _start(matrix, seed, "lambda_max", columns), iterations, 1e-5)


def smallest_eigenvalue(matrix, columns=8, iterations=8):
    """λ_min(H̃) from above: a Rayleigh quotient of the part of sI − H̃ that is largest, s ≈ ‖H̃‖₂. Collective."""
    s, start = largest_eigenvalue(matrix, 0, columns, iterations), _start(matrix, 0, "lambda_min", columns)
    return s - spectral_norm(lambda W: s * W - _product(matrix, W), matrix.comm, start, iterations, 1e-2)


def extreme_eigenvalues(matrix, operator, seed=0):
    """Of the report: lambda_max and, of an operator that says it is `indefinite`, lambda_min. Collective."""
    found = {"lambda_max": largest_eigenvalue(matrix, seed)}
    return found | ({"lambda_min": smallest_eigenvalue(matrix)} if getattr(operator, "indefinite", False) else {})


def spectral_error(matrix, operator, seed=0, columns=8, products=4):
    """‖H̃ − H‖₂ from below, on the block Krylov space of the error's image of random vectors. Collective."""

    def apply(W):
        return operator.matmat_rows(W.astype(operator.dtype)).astype(np.float64) - _product(matrix, W)

    return spectral_norm(apply, matrix.comm, apply(_start(matrix, seed, "spectral error", columns)), products, 1e-2)


def _start(matrix, seed, stream, columns):
    """Random vectors in the range of H̃: rows that are zero take no part."""
    start = gaussian_rows(seed, stream, matrix.mine.start, matrix.mine.stop, range(min(columns, max(1, matrix.n_alive))), np.float64)
    return _product(matrix, start)


def _product(matrix, W):
    """H̃W in the stored precision, which is enough for norms; as float64."""
    return np.asarray(matrix.matmat_rows(np.ascontiguousarray(W, matrix.dtype)), np.float64)


def reported(matrix, error, rtol, norm, operator, seed=0, error_spectral=None):
    """The part of the report that is the same in all formats: format, rtol, rtol_met, error_estimate, norm_frobenius, lambda_max (lambda_min),
    error_spectral and storage. `error`: an `ErrorEstimate`, or a dict of `exact_error`; `norm` ‖H‖_F. Collective.
    """
    found = error if isinstance(error, dict) else error.as_dict()
    if error_spectral is None:
        error_spectral = spectral_error(matrix, operator, seed) if found["high"] > 0 else 0.0
    return {
        "format": matrix.format,
        "rtol": float(rtol),
        "rtol_met": bool(found["high"] <= rtol),
        "error_estimate": found,
        "norm_frobenius": float(norm),
        **extreme_eigenvalues(matrix, operator, seed),
        "error_spectral": error_spectral,
        "seed": int(seed),
        "warnings": [],
        **matrix.storage(),
    }
