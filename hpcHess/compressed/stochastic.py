r"""Traces of functions of H̃ + λI by stochastic Lanczos quadrature, with intervals.

tr f(A) = E zᵀf(A)z for random signs z; Lanczos from z gives Gauss quadrature of zᵀf(A)z = ‖z‖² Σ_k τ_k² f(θ_k), θ_k the Ritz values, τ_k the
first components of their vectors (Golub & Meurant 2010, §6; Ubaru, Chen & Saad, SIMAX 2017). Random signs make what is diagonal exact.
"""

import numpy as np
from scipy.linalg import eigh_tridiagonal, solve_banded
from scipy.special import stdtrit

from hpcHess.compressed.damping import check_damping
from hpcHess.parallel.agree import on_root
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError

PROBES, STEPS = 16, 80
ROUNDING = 64  # ε λ_max of the stored type: Ritz values below minus that are negative
CONFIDENCE = 0.95
_COLUMNS_BYTES = 1 << 30  # of the Lanczos vectors of a group of probes on a rank


class LogDet(tuple):
    """(sign, log|det|), a pair; `low` … `high` a 95 % interval of log|det|, both the value itself where it is exact.

    sign is NaN where only an indefinite estimate is known.
    """

    def __new__(cls, sign, log_abs, low=None, high=None):
        made = super().__new__(cls, (sign, log_abs))
        made.low, made.high = (log_abs if each is None else each for each in (low, high))
        return made

    def __repr__(self):
        interval = "" if self.low == self.high else f", low={self.low}, high={self.high}"
        return f"LogDet(sign={self[0]}, log_abs={self[1]}{interval})"


def logdet(matrix, damping, probes=PROBES, steps=STEPS, seed=0):
    """`LogDet` of H̃ + λI = N log λ + tr log|I + H̃/λ|, for λ > 0, from products with `probes` vectors, `steps` times. Collective.

    The interval holds the spread of the probes (Student's t, 95 %) and what the quadrature may be off: Gauss's rule is an upper and the
    Gauss–Radau rule with a node at λ (of H̃ + λI) a lower bound for a semidefinite H̃; for others, twice the difference to half the steps.
    InputError for λ = 0: the logarithm has a pole there.
    """
    check_damping(damping)
    if damping == 0:
        raise InputError("the log-determinant of a matrix without direct factors needs a damping > 0")
    rules = trace_of_function(matrix, lambda t: np.log(np.abs(1 + t / damping)), probes, steps, seed)
    base, definite = matrix.n_params * np.log(damping), rules.smallest > -damping
    if not definite:
        return LogDet(np.nan, base + rules.value, base + rules.low, base + rules.high)
    return LogDet(1.0, base + rules.value, base + rules.low, base + rules.high)


class Trace(float):
    """An estimate of tr f(H̃): the `value` with its interval `low` … `high`; `smallest` the smallest Ritz value of H̃ seen."""

    def __new__(cls, value, low, high, smallest):
        made = super().__new__(cls, value)
        made.value, made.low, made.high, made.smallest = float(value), float(low), float(high), float(smallest)
        return made


def trace_of_function(matrix, function, probes=PROBES, steps=STEPS, seed=0):
    """tr f(H̃) as a `Trace`, f of the eigenvalues (an array in, an array out), e.g. lambda t: t / (t + λ). Collective.

    Quadrature bounds assume what `logdet` says: exact for functions whose even derivatives are negative on t ≥ 0; for others the
    difference of the two rules is an indication.
    """
    if probes < 2 or steps < 2:
        raise InputError(f"stochastic Lanczos quadrature needs at least 2 probes and 2 steps, not {probes} and {steps}")
    n_local = int(np.diff(matrix.parameter_starts).max())
    group = max(1, min(probes, _COLUMNS_BYTES // (8 * max(1, n_local) * (steps + 2))))
    found = []
    for first in range(0, probes, group):
        found += _lanczos(matrix, _signs(seed, matrix.mine, range(first, min(probes, first + group))), steps)
    return Trace(*on_root(matrix.comm, _trace, matrix.n_params, np.finfo(matrix.dtype).eps, found, function))


def _trace(n, eps, found, function):
    """(value, low, high, smallest Ritz value) from the tridiagonal matrices [(α, β), …] of the probes."""
    ends = np.array([eigh_tridiagonal(alpha, beta[:-1], eigvals_only=True)[[0, -1]] for alpha, beta in found])
    smallest, rounding = float(ends.min()), ROUNDING * eps * float(np.abs(ends).max())
    if smallest < -rounding:
        gauss, other = n * np.array([_rules_of_halves(alpha, beta, function) for alpha, beta in found]).T
        values, off = gauss, 2 * float(np.abs(gauss - other).mean())
    else:
        gauss, other = n * np.array([_rules(alpha, beta, function, min(0.0, smallest)) for alpha, beta in found]).T
        values, off = (gauss + other) / 2, float(np.abs(gauss - other).mean()) / 2
    spread = stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2) * values.std(ddof=1) / np.sqrt(len(values))
    value = float(values.mean())
    return value, value - spread - off, value + spread + off, smallest


def eigenvalue_measure(operator, mine, probes, steps, seed=0):
    """(θ, weight) with Σ weight f(θ) ≈ tr f(H): the Ritz values of all probes and their weights N τ² / probes. Collective.

    operator: anything with `comm`, `shape`, `matmat_rows`; `mine` the slice of this rank's parameter rows.
    """
    theta, weight = [], []
    for alpha, beta in _lanczos(operator, _signs(seed, mine, range(probes)), steps, reorthogonalized=False):
        values, vectors = _eigh(alpha, beta[:-1])
        theta.append(values)
        weight.append(operator.shape[0] / probes * np.square(vectors[0]))
    return operator.comm.bcast((np.concatenate(theta), np.concatenate(weight)))


def _signs(seed, mine, columns):
    """Random signs, [n_local, len(columns)] float64."""
    Z = np.sign(gaussian_rows(seed, "trace", mine.start, mine.stop, columns, np.float64))
    Z[Z == 0] = 1
    return Z


def _rules(alpha, beta, function, node):
    """(Gauss, Gauss–Radau with that node, which no Ritz value is below) of the normalized measure."""
    gauss = _quadrature(alpha, beta[:-1], function)
    m, scale = len(alpha), float(np.abs(alpha).max())
    if beta[-1] == 0:  # the Krylov space is exhausted: exact
        return gauss, gauss
    # Golub 1973: the m + 1 nodes of T extended by β_m and α = a + δ_m, (T − a I) δ = β_m² e_m; a just below the node keeps T − a I regular
    a = node - np.finfo(np.float64).eps * scale
    bands = np.zeros((3, m))
    bands[0, 1:], bands[1], bands[2, :-1] = beta[:-1], alpha - a, beta[:-1]
    last = a + solve_banded((1, 1), bands, np.append(np.zeros(m - 1), beta[-1] ** 2))[-1]
    return gauss, _quadrature(np.append(alpha, last), beta, function)


def _rules_of_halves(alpha, beta, function):
    """(Gauss, Gauss of half the steps): what an indefinite matrix lets one say of the quadrature's error."""
    half = len(alpha) if beta[-1] == 0 else (len(alpha) + 1) // 2
    return _quadrature(alpha, beta[:-1], function), _quadrature(alpha[:half], beta[: half - 1], function)


def _quadrature(alpha, beta, function):
    theta, vectors = _eigh(alpha, beta)
    return float(np.square(vectors[0]) @ function(theta))


def _eigh(alpha, beta):
    """Eigenpairs of a tridiagonal matrix by QR steps: relatively robust representations (stemr) fail on Ritz values that come several times."""
    return eigh_tridiagonal(alpha, beta, lapack_driver="stev")


def _lanczos(matrix, Z, steps, reorthogonalized=True):
    """[(α [m], β [m]), …] of every column of Z [n_local, k], m ≤ steps; β[-1] is 0 where the Krylov space is exhausted. Collective.

    All columns go together. reorthogonalized: every one twice against all of its former vectors; else against the last two, by which Ritz
    values come several times with their weights shared: quadrature stays what it is (Greenbaum 1989).
    """
    comm, k = matrix.comm, Z.shape[1]
    norms = np.sqrt(comm.allreduce(np.einsum("ij,ij->j", Z, Z)))
    Q = [Z / norms]
    alpha, beta = np.zeros((steps, k)), np.zeros((steps, k))
    for step in range(steps):
        W = np.asarray(matrix.matmat_rows(Q[-1]), np.float64)
        scale = np.sqrt(comm.allreduce(np.einsum("ij,ij->j", W, W)))
        against = Q if reorthogonalized else Q[-2:]
        for sweep in range(1 + reorthogonalized):
            projections = comm.allreduce(np.array([np.einsum("ij,ij->j", each, W) for each in against]))
            if not sweep:
                alpha[step] = projections[-1]
            for each, row in zip(against, projections, strict=True):
                W -= each * row
        beta[step] = np.sqrt(comm.allreduce(np.einsum("ij,ij->j", W, W)))
        beta[step][beta[step] <= 1e-12 * np.maximum(scale, np.abs(alpha[: step + 1]).max(axis=0))] = 0
        Q.append(np.divide(W, beta[step], out=np.zeros_like(W), where=beta[step] > 0))
        if not beta[step].any():
            break
    ends = [int(np.argmax(column[: step + 1] == 0)) + 1 if (column[: step + 1] == 0).any() else step + 1 for column in beta.T]
    return [(alpha[:end, j], beta[:end, j]) for j, end in enumerate(ends)]
