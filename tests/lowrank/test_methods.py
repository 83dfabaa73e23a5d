"""Low-rank matrices by the three methods against dense float64 eigendecompositions: rank, error, and what they say of both."""

import warnings

import numpy as np
import pytest

from hpcHess.curvature.dense import DenseMatrix
from hpcHess.formats.compress import compress
from hpcHess.runtime.errors import HpcHessWarning, InputError
from tests.reference.dense_operator import dense

N = 140
DEAD = [0, 33, 34, 139]
METHODS = ("randomized", "nystrom", "krylov")


def symmetric(spectrum, seed=0):
    """A matrix with this spectrum on the alive parameters, rows and columns of `DEAD` zero."""
    n = N - len(DEAD)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    A, alive = np.zeros((N, N)), np.setdiff1d(np.arange(N), DEAD)
    B = (Q * np.pad(np.asarray(spectrum, float), (0, n - len(spectrum)))) @ Q.T
    A[np.ix_(alive, alive)] = (B + B.T) / 2
    return A


DECAY = np.exp(-np.arange(N - len(DEAD)) / 9)
SIGNS = np.where(np.arange(len(DECAY)) % 3, 1.0, -1.0)


def made(comm, A, rtol, method, **options):
    if method == "krylov":
        pytest.importorskip("slepc4py")
    return compress(DenseMatrix(A, comm=comm), rtol, "low-rank", method=method, **options)


def smallest_rank(A, rtol):
    squares = np.sort(np.linalg.eigvalsh(A) ** 2)
    return len(A) - int(np.count_nonzero(np.cumsum(squares) <= rtol**2 * squares.sum()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [1e-1, 1e-3])
def test_semidefinite(comm, method, rtol):
    A = symmetric(DECAY)
    H = made(comm, A, rtol, method)
    error = np.linalg.norm(dense(H) - A) / np.linalg.norm(A)
    report, best = H.report, smallest_rank(A, rtol)
    assert error <= rtol and report["rtol_met"] and not report["warnings"]
    assert 0.7 * error <= report["error_estimate"]["value"] <= 1.3 * error
    assert best <= H.rank == report["rank"] <= best + 4
    assert report["method"] == method and report["format"] == H.format == "low-rank"
    r, n = H.rank, N - len(DEAD)
    assert H.n_alive == n and report["storage_entries"] == n * r - r * (r - 1) // 2
    assert np.isclose(report["eigenvalue_first"], 1, rtol=1e-2) and report["exact_products"] >= H.rank
    assert report["timings"]


@pytest.mark.parametrize("method", ["randomized", "krylov"])
def test_indefinite(comm, method):
    A = symmetric(DECAY * SIGNS)
    H = made(comm, A, 1e-2, method)
    assert np.linalg.norm(dense(H) - A) <= 1e-2 * np.linalg.norm(A)
    assert H.rank <= smallest_rank(A, 1e-2) + 4
    values = np.sort(np.linalg.eigvalsh(A))
    assert np.isclose(H.eigenvalues.min(), values[0], rtol=1e-3) and np.isclose(H.eigenvalues.max(), values[-1], rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_tight_tolerance_in_double_precision(comm, method):
    A = symmetric(np.exp(-np.arange(60) / 1.5))
    H = made(comm, A, 1e-9, method)
    assert H.dtype == np.float64 and H.report["rtol_met"]
    assert np.linalg.norm(dense(H) - A) <= 1e-9 * np.linalg.norm(A)
    assert H.rank <= smallest_rank(A, 1e-9) + 3


@pytest.mark.parametrize("method", METHODS)
def test_exact_rank(comm, method):
    """Nothing but rounding is left, and no rounding is taken for an eigenpair."""
    A = symmetric(np.linspace(1, 3, 17))
    H = made(comm, A, 1e-6, method)
    assert H.rank == 17
    assert np.linalg.norm(dense(H) - A) <= (1e-12 if method != "krylov" else 1e-7) * np.linalg.norm(A)
    assert np.allclose(np.sort(H.eigenvalues), np.linspace(1, 3, 17), rtol=1e-12 if method != "krylov" else 1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_multiple_eigenvalues(comm, method):
    """More equal eigenvalues than a block has columns."""
    A = symmetric(np.r_[np.full(70, 2.0), np.full(30, 1e-6)])
    H = made(comm, A, 1e-3, method)
    assert H.rank == 70 and np.linalg.norm(dense(H) - A) <= 1e-5 * np.linalg.norm(A)


@pytest.mark.parametrize("method", METHODS)
def test_zero_matrix(comm, method, shared_tmp):
    H = made(comm, np.zeros((30, 30)), 1e-2, method)
    assert H.rank == 0 and not dense(H).any() and H.report["rtol_met"] and H.report["storage_entries"] == 0
    assert np.allclose(H.solve(np.eye(30), 0.5), 2 * np.eye(30)) and np.isclose(H.logdet(0.5)[1], 30 * np.log(0.5))
    H.save(shared_tmp / "zero.h5")


@pytest.mark.parametrize("method", METHODS)
def test_saturated_rank_is_told(comm, method):
    A = symmetric(DECAY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        H = made(comm, A, 1e-3, method, max_rank=12)
    best = np.sqrt(np.sum(np.sort(np.linalg.eigvalsh(A))[:-12] ** 2))
    error = np.linalg.norm(dense(H) - A)
    assert H.rank == 12 and not H.report["rtol_met"]
    assert best <= error <= (1.15 if method == "nystrom" else 1.01) * best, "the leading pairs, well converged"
    told = H.report["warnings"]
    assert any("max_rank = 12" in line for line in told) and any("not met" in line and "raise max_rank" in line for line in told)


def test_no_low_rank_is_told(comm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        H = made(comm, np.eye(50), 1e-3, "randomized")
    assert H.report["rtol_met"] and any("no compression" in line for line in H.report["warnings"])
    assert np.abs(dense(H) - np.eye(50)).max() <= 1e-6


@pytest.mark.parametrize("spectrum", [DECAY * SIGNS, np.r_[DECAY[:40], -1e-3], -DECAY])
def test_nystrom_refuses_indefinite_matrices(comm, spectrum):
    with pytest.raises(InputError, match=r'indefinite .*use method = "randomized"') as refused:
        made(comm, symmetric(spectrum), 1e-5, "nystrom")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("options, line", [({"method": "lanczos"}, "method must be"), ({"max_rank": -1}, "max_rank")])
def test_bad_options(comm, options, line):
    with pytest.raises(InputError, match=line):
        compress(DenseMatrix(np.eye(4), comm=comm), 1e-2, "low-rank", **options)


def test_single_precision_operator(comm):
    A = symmetric(DECAY)
    H = compress(DenseMatrix(A, comm=comm, dtype=np.float32), 1e-4, "low-rank")
    assert H.dtype == np.float32 and H.report["rtol_met"]
    assert np.linalg.norm(dense(H).astype(float) - A) <= 1e-4 * np.linalg.norm(A)


def test_too_large_for_single_precision_is_told(comm):
    with pytest.raises(InputError, match=r"the matrix is too large for float32 .*e\+20\): scale"):
        compress(DenseMatrix(1e20 * symmetric(DECAY), comm=comm, dtype=np.float32), 1e-2, "low-rank")


def test_any_number_of_ranks_gives_the_same(comm):
    A = symmetric(DECAY)
    alone = compress(DenseMatrix(A, comm=comm.Split(comm.rank)), 1e-3, "low-rank", dtype="float64")
    together = compress(DenseMatrix(A, comm=comm), 1e-3, "low-rank", dtype="float64")
    assert together.rank == alone.rank
    assert np.abs(dense(together) - dense(alone)).max() <= 1e-11
