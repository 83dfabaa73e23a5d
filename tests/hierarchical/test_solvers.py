"""The three forms of direct factors against dense float64 algebra on H̃ + λI itself: residual, log-determinant, inertia.

Ill-conditioned cases, matrices stored in float32 and float64, definite and indefinite. Elimination and ULV must be backward stable; the
plain Woodbury formula must be accurate or say that it is not.
"""

import warnings
from functools import cache

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.hierarchical.compress import compress
from hpcHess.formats.file import load
from hpcHess.runtime.errors import InputError
from tests.hierarchical.test_damping import N, definite, indefinite, said, singular
from tests.reference.dense_operator import DenseOperator, exponential_kernel

SOLVERS = ("elimination", "ulv", "woodbury")
STABLE = 1e-14  # normwise backward error of a stable solver; measured: below 1e-16


@cache
def compressed(make, dtype):
    """(H̃, its dense form in float64), the same for every damping."""
    comm = MPI.COMM_WORLD
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        H = compress(DenseOperator(make(), comm), rtol=1e-3, leaf_size=32, distance="kernel" if make is singular else "angle", dtype=dtype)
    A = H @ np.eye(N)
    assert H.dtype == dtype and A.dtype == np.float64
    return H, (A + A.T) / 2


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("relative", [1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [definite, indefinite, singular])
def test_against_dense(comm, make, dtype, relative, solver):
    H, A = compressed(make, dtype)
    damping = relative * H.report["lambda_max"]
    A = A + damping * np.eye(N)
    eigenvalues = np.linalg.eigvalsh(A)
    magnitudes = np.abs(eigenvalues)
    B = np.random.default_rng(0).standard_normal((N, 4))
    told = said(comm, lambda: H.factorize(damping, solver))
    X, factors = H.solve(B, damping=damping, solver=solver), H.factorize(damping, solver)
    remainder = np.linalg.norm(A @ X - B)
    residual, backward = remainder / np.linalg.norm(B), remainder / (magnitudes.max() * np.linalg.norm(X) + np.linalg.norm(B))
    assert 0.01 * residual <= factors.backward_error <= max(50 * residual, 1e-12), "the probe sees what a right-hand side sees"
    lost = any("digits like 1/λ" in line for line in told)
    assert lost == (solver == "woodbury" and factors.backward_error > 1e-6)
    assert X.dtype == np.float64 and factors.solver == solver
    sign, log_abs = H.logdet(damping, solver)
    if solver == "woodbury":
        if lost:
            return
        assert residual <= 1e-5
        bound = N * 1e-5  # |Δ log det| ≤ N ‖I − AS‖
    else:
        assert backward <= STABLE
        bound = STABLE * (magnitudes.max() / magnitudes).sum() + 1e-12 * N  # first order, of a backward error of that size
    assert abs(log_abs - np.log(magnitudes).sum()) <= bound
    if magnitudes.min() > 10 * STABLE * magnitudes.max():  # else the sign of rounding decides, in the oracle too
        assert H.inertia(damping, solver) == (int((eigenvalues > 0).sum()), int((eigenvalues < 0).sum()))
        assert sign == (-1) ** (eigenvalues < 0).sum()


def test_plain_woodbury_loses_digits_where_the_others_do_not(comm):
    """What the warning is for; also that it comes with the word on inertia."""
    H, _ = compressed(singular, "float64")
    damping = 1e-12 * H.report["lambda_max"]
    errors = {}
    for solver in SOLVERS:
        told = said(comm, lambda: errors.update({solver: H.factorize(damping, solver).backward_error}))  # noqa: B023
        assert any("inertia are not trustworthy" in line for line in told) == (solver == "woodbury")
    assert errors["woodbury"] > 1e-2 > 1e-4 > max(errors["elimination"], errors["ulv"])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("make", [definite, indefinite])
def test_any_number_of_ranks_gives_the_same_factors_from_a_file(comm, shared_tmp, make, solver):
    H, _ = compressed(make, "float64")
    damping, B = 1e-6 * H.report["lambda_max"], np.random.default_rng(1).standard_normal((N, 3))
    factors = H.factorize(damping, solver)
    H.save(shared_tmp / "F.h5", factors=factors)
    X = H.solve(B, damping=damping, solver=solver)
    for each in (comm, MPI.COMM_SELF):
        G = load(shared_tmp / "F.h5", each)
        assert list(G._factors) == [(damping, solver)] and G._factors[damping, solver].backward_error == factors.backward_error
        installed = G._factors[damping, solver]
        assert np.linalg.norm(G.solve(B, damping=damping, solver=solver) - X) <= 1e-8 * np.linalg.norm(X)
        assert G.factorize(damping, solver) is installed and G.inertia(damping, solver) == H.inertia(damping, solver)
        assert G.logdet(damping, solver) == pytest.approx(H.logdet(damping, solver), rel=1e-9)


@pytest.mark.parametrize("solver", ["elimination", "ulv"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_absolute_value_of_the_factors(comm, solver, dtype):
    """(L|D|Lᵀ)⁻¹ L D Lᵀ has the eigenvalues ±1, as many −1 as H̃ + λI has negative ones, whatever was delayed."""
    H, A = compressed(indefinite, dtype)
    damping = 1e-3 * H.report["lambda_max"]
    factors = H.factorize(damping, solver)
    lo, hi = H.tree_rows(H.parameter_starts)
    assert factors.negative > 0 and not factors.definite
    absolute = factors.preconditioner()
    S = np.concatenate(comm.allgather(absolute.solve_rows(np.eye(N)[lo:hi])))
    assert absolute.definite and np.abs(S - S.T).max() <= 1e-12 * np.abs(S).max()
    assert np.linalg.eigvalsh((S + S.T) / 2).min() > 0
    values = np.sort(np.linalg.eigvals(S @ (A + damping * np.eye(N))).real)
    expected = np.sort(np.where(np.arange(N) < factors.negative, -1.0, 1.0))
    np.testing.assert_allclose(values, expected, atol=1e-7)
    positive = H.factorize(H.report["lambda_max"], solver)
    assert positive.preconditioner() is positive


def delaying():
    """Leaves [[0, 1], [1, 0]] coupled by their first parameter alone: X_RR = 0."""
    i, K = np.arange(16), np.zeros((32, 32))
    K[::2, ::2] = np.exp(-np.abs(i[:, None] - i)) * (i[:, None] != i)
    K[2 * i, 2 * i + 1] = K[2 * i + 1, 2 * i] = 1
    return K


def test_delayed_directions_of_ulv(comm, shared_tmp):
    """They go up, in the file too; the plain formula refuses what it cannot invert."""
    H = compress(DenseOperator(delaying(), comm), rtol=1e-6, leaf_size=2, dtype="float64")
    factors = H.factorize(0.0, "ulv")
    assert comm.allreduce(sum(int(e.delayed.sum()) for e in factors.eliminations)) > 0, "the case must delay something"
    A, B = H @ np.eye(32), np.random.default_rng(0).standard_normal((32, 2))
    H.save(shared_tmp / "d.h5", factors=factors)
    values = np.linalg.eigvalsh(A)
    for G in (H, load(shared_tmp / "d.h5", comm), load(shared_tmp / "d.h5", MPI.COMM_SELF)):
        X = G.solve(B, damping=0.0, solver="ulv")
        assert np.linalg.norm(A @ X - B) <= 1e-12 * np.linalg.cond(A) * np.linalg.norm(B)
        assert G.inertia(0.0, "ulv") == (int((values > 0).sum()), int((values < 0).sum()))


@pytest.mark.parametrize("solver", SOLVERS)
def test_singular_matrices_are_refused(comm, solver):
    H = compress(DenseOperator(np.ones((64, 64)), comm), rtol=1e-3, leaf_size=8, dtype="float64")
    with pytest.raises(InputError, match="singular"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        H.solve(np.ones(64), damping=0.0, solver=solver)
    assert H.solve(np.ones(64), damping=1.0, solver=solver) == pytest.approx(np.full(64, 1 / 65))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("leaf_size", [8, 1000])
def test_one_leaf_and_many(comm, solver, leaf_size):
    """A root that is a leaf, ranks that own nothing, dead parameters."""
    K = exponential_kernel(30)
    K[::7], K[:, ::7] = 0, 0
    H = compress(DenseOperator(K, comm), rtol=1e-4, leaf_size=leaf_size, dtype="float64", solver=solver)
    A = H @ np.eye(30) + 0.5 * np.eye(30)
    assert H.solver == solver and H.factorize(0.5).solver == solver
    assert np.linalg.norm(A @ H.solve(np.ones(30), 0.5) - 1) <= 1e-12
    assert H.logdet(0.5) == pytest.approx(np.linalg.slogdet(A)) and H.inertia(0.5) == (30, 0)


def test_unknown_solvers_are_refused(comm):
    H = compress(DenseOperator(np.eye(8), comm), rtol=1e-3, leaf_size=4)
    with pytest.raises(InputError, match="elimination or ulv or woodbury"):
        H.solve(np.ones(8), 0.1, solver="lu")
