"""Compression to low rank: a finder's space grows until the tolerance is met, eigenpairs are dropped as far as it allows, fresh probes certify."""

import numpy as np

from hpcHess import backend as backends
from hpcHess.compressed.certificate import certify, ratio, reported
from hpcHess.compressed.options import check_common, stored_dtype
from hpcHess.lowrank.basis import AliveProducts, summed
from hpcHess.lowrank.block_krylov import BlockKrylov
from hpcHess.lowrank.interpolative import interpolation, skeleton_rows
from hpcHess.lowrank.krylov_schur import KrylovSchur
from hpcHess.lowrank.matrix import LowRankMatrix
from hpcHess.lowrank.nystrom import Nystrom
from hpcHess.lowrank.search import RANKS_A_PROBE, Steering, search
from hpcHess.parallel.agree import tell
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.schema import METHODS
from hpcHess.runtime.progress import Silent
from hpcHess.skeleton.sketch import TOO_LARGE

ATTEMPTS = 4
ROUNDED = 0.1  # of rtol: what rounding the interpolative form to the stored precision may cost
_ROUNDING_PROBES = 4


def compress(operator, rtol=1e-2, *, method="randomized", max_rank=0, seed=0, dtype="auto", probes=32, backend="auto", progress=None, norm=None):
    """H̃ of the smallest rank with ‖H̃ − H‖_F ≤ rtol ‖H‖_F, for an operator (docs/ARCHITECTURE.md, "Operators"). Collective.

    rtol      relative to ‖H‖_F of the whole matrix, or to `norm` (a `certificate.Norm`); verified by `probes` fresh Gaussian products (rank / 8 where that is more),
              accepted where the upper end of the 95 % interval is ≤ rtol; `report["rtol_met"]` says whether it was reached
    method    randomized (`lowrank.block_krylov`), nystrom (semidefinite matrices, `lowrank.nystrom`), krylov (SLEPc, `lowrank.krylov_schur`)
    max_rank  0 for no bound
    dtype     of what is stored: auto (float64 where rtol < 1e-5), float32, float64
    Raises InputError for values out of range, an indefinite H with nystrom, and krylov without SLEPc.
    """
    check_common(rtol, seed, probes, dtype)
    if method not in METHODS:
        raise InputError(f"method must be {' or '.join(METHODS)}, not {method!r}")
    if method == "nystrom" and getattr(operator, "indefinite", False):
        raise InputError('method = "nystrom" is for semidefinite matrices, which the exact Hessian is not (indefinite): use method = "randomized" or "krylov"')
    if max_rank < 0:
        raise InputError(f"max_rank must be ≥ 0 (0: no bound), not {max_rank}")
    progress = Silent() if progress is None else progress
    kernels, dtype, tightened = backends.get(backend), stored_dtype(dtype, rtol), 1.0
    products = AliveProducts(operator)
    with progress.phase("probes"):
        steering = Steering(products, seed)
        size = steering.norm()
        if not size < np.sqrt(np.finfo(products.dtype).max) / 16:  # squares are taken in this type
            raise InputError(f"the matrix is too large for {products.dtype} (‖H‖_F ≈ {size:.1e}): {TOO_LARGE}")
        finder = _finder(method, products, steering, rtol, seed)
    given = None if norm is None else norm.value
    for attempt in range(ATTEMPTS):
        with progress.phase("range") as steps:
            cut = search(finder, steering, rtol * tightened, given, max_rank, probes, steps.advance)
        with progress.phase("basis"):
            matrix = low_rank_matrix(operator, products, finder.basis.combine(cut.S), cut.values, kernels, dtype, ROUNDED * rtol)
        with progress.phase("certificate"):
            fresh = max(probes, matrix.rank // RANKS_A_PROBE)
            error, found = certify(matrix, operator, fresh, seed, "certificate" if not attempt else f"certificate {attempt}", norm)
            products.count += fresh
        if error.high <= rtol or not cut.met:
            break
        tightened *= min(0.99, 0.995 * rtol / error.high)
    with progress.phase("spectral norms"):
        matrix.report = reported(matrix, error, rtol, found.value, operator, seed)
    matrix.operator = operator
    matrix.report |= pairs_found(matrix, method, finder, products)
    matrix.report |= {"max_rank": int(max_rank), "backend": kernels.name, "attempts": attempt + 1, "timings": progress.timings.as_dict()}
    matrix.report["warnings"] = list(_warnings(matrix, cut, error, rtol, max_rank, products.dtype))
    tell(operator.comm, matrix.report["warnings"])
    return matrix


def pairs_found(matrix, method, finder, products):
    """The part of the report on the eigenpairs and what they took."""
    values = matrix.eigenvalues
    return {
        "method": method,
        "rank": matrix.rank,
        "eigenvalue_first": float(values[0]) if matrix.rank else 0.0,
        "eigenvalue_last": float(values[-1]) if matrix.rank else 0.0,
        "columns": int(finder.basis.size),
        "exact_products": int(products.count),
    }


def _finder(method, products, steering, rtol, seed):
    if method == "nystrom":
        return Nystrom(products, steering, seed)
    if method == "krylov":
        return KrylovSchur(products, steering, rtol, seed)
    return BlockKrylov(products, seed)


def low_rank_matrix(operator, products, U, values, backend, dtype, rounding):
    """`LowRankMatrix` of U diag(values) Uᵀ, U [n, r] orthonormal alive rows: in the interpolative form, unless rounding this to `dtype` costs more
    than `rounding` ‖H̃‖_F. Collective.
    """
    comm, numbers, none = operator.comm, products.rows + products.first, np.zeros(0, np.int64)
    alive = np.asarray(operator.alive, np.int64)

    def made(stored, coefficients, skeleton, core):
        arrays = (backend.asarray(np.ascontiguousarray(each), dtype) for each in (coefficients, core))
        coefficients, core = arrays
        return LowRankMatrix(comm, backend, operator.shape[0], stored, coefficients, skeleton, core, np.asarray(values, np.float64))

    if len(values):
        skeleton = skeleton_rows(comm, U, numbers)
        found = interpolation(comm, U, numbers, skeleton, dtype)
        if found is not None:
            T, first = found
            core = (first * values) @ first.T
            matrix = made(np.setdiff1d(alive, skeleton), T, skeleton, (core + core.T) / 2)
            if comm.bcast(_rounded(matrix, products, U, values) <= rounding * np.linalg.norm(values)):
                return matrix
    return made(alive, U, none, values)


def _rounded(matrix, products, U, values):
    """‖H̃ − U diag(values) Uᵀ‖_F by a few probes: in these every direction is as large as in any other, so few suffice. Collective."""
    mine = matrix.mine
    G = np.ascontiguousarray(gaussian_rows(0, "rounding", mine.start, mine.stop, range(_ROUNDING_PROBES), np.float64))
    exact = U @ (values[:, None] * summed(matrix.comm, U.T @ G[products.rows]))
    difference = np.asarray(matrix.matmat_rows(G), np.float64)[products.rows] - exact
    return float(np.sqrt(summed(matrix.comm, np.square(difference).sum()) / _ROUNDING_PROBES))


def _warnings(matrix, cut, error, rtol, max_rank, working):
    """One line for everything that kept the tolerance from being met, or the matrix from being small."""
    n, r = matrix.n_alive, matrix.rank
    entries = matrix.report["storage_entries"]
    interval = f"{error.value:.3g} (95 % interval {error.low:.3g} … {error.high:.3g})"
    if max_rank and r == max_rank and not cut.met:
        wanted = f"; rank {cut.wanted} is enough" if cut.wanted else ""
        left = ratio(abs(matrix.eigenvalues[-1]), matrix.report["norm_frobenius"])
        yield f"rank saturation: the rank reached max_rank = {max_rank} (its last eigenvalue is {left:.3g} ‖H‖_F){wanted}"
    if n > 1 and entries >= n * (n + 1) // 2:
        yield f"no compression: {entries:,} numbers, no fewer than the symmetric matrix has; this matrix has no low rank at rtol {rtol:g}"
    if error.high > rtol:
        advice = "raise rtol"
        if max_rank and r == max_rank:
            advice = "raise max_rank"
        elif np.float32 in (matrix.dtype, working) and rtol < 1e-5:
            advice = "single precision limits it: use float64"
        yield f"rtol {rtol:g} not met: error {interval} at rank {r}; {advice}"
