"""Solves with FMM matrices: PETSc with a coarser HSS matrix as preconditioner, against dense algebra on H̃ itself."""

import warnings
from functools import cache

import numpy as np
import pytest
from mpi4py import MPI

pytest.importorskip("petsc4py")

from hpcHess.hierarchical.compress import compress
from hpcHess.hierarchical.factors import Factors
from hpcHess.formats.file import load
from hpcHess.compressed.iterative import preconditioning_factors, solve_iteratively
from hpcHess.krylov.solve import solve
from hpcHess.runtime.errors import InputError
from tests.hierarchical.test_damping import said
from tests.reference.dense_operator import DenseOperator, exponential_kernel

N = 300
COMM = MPI.COMM_WORLD


@cache
def compressed(indefinite=False, budget=0.3, dtype="float64"):
    """(H̃, its dense form)."""
    K = exponential_kernel(N, scale=1.0)
    K -= np.diag(4 * np.random.default_rng(1).random(N) + 2) if indefinite else 0
    K[::19], K[:, ::19] = 0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        H = compress(DenseOperator(K, COMM), rtol=1e-4, leaf_size=20, distance="angle", format="fmm", budget=budget, n_neighbors=8, dtype=dtype)
    assert H.format == ("fmm" if budget else "hss")
    A = H @ np.eye(N)
    return H, (A + A.T) / 2


def rows(H):
    return slice(*H.tree_rows(H.parameter_starts))


@pytest.mark.parametrize("solver", ["elimination", "ulv", "woodbury"])
@pytest.mark.parametrize("relative", [1e-2, 1e-3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_definite(dtype, relative, solver):
    """CG, to the residual asked for, in fewer steps than without the preconditioner."""
    H, A = compressed(dtype=dtype)
    damping, B = relative * H.report["lambda_max"], np.random.default_rng(0).standard_normal((N, 3))
    X = H.solve(B, damping=damping, solver=solver)
    assert (np.linalg.norm(A @ X + damping * X - B, axis=0) <= 1e-10 * np.linalg.norm(B, axis=0)).all()
    found = solve_iteratively(H, H, B[rows(H)], damping, solver)
    plain = solve(H, B[rows(H)], damping, rtol=1e-10)
    assert found.method == "cg" and found.converged and found.iterations < 0.7 * plain.iterations


@pytest.mark.parametrize("solver", ["elimination", "ulv"])
def test_indefinite(solver):
    """MINRES with the absolute value of factors that are indefinite themselves."""
    H, A = compressed(indefinite=True)
    damping, B = 1.0, np.random.default_rng(0).standard_normal((N, 2))
    values = np.linalg.eigvalsh(A + damping * np.eye(N))
    assert (values < 0).sum() > 5
    found = solve_iteratively(H, H, B[rows(H)], damping, solver)
    factors = preconditioning_factors(H, damping, solver)
    assert factors.negative > 0 and found.method == "minres" and found.converged
    X = H.solve(B, damping=damping, solver=solver)
    assert (np.linalg.norm(A @ X + damping * X - B, axis=0) <= 1e-10 * np.linalg.norm(B, axis=0)).all()
    plain = solve_iteratively(H, H, B[rows(H)], damping, "woodbury")
    assert plain.method == "fgmres" and plain.converged, "no signs to drop"


def test_indefiniteness_that_the_preconditioner_does_not_see():
    """Factors at μ > λ are definite, CG meets negative curvature and gives way to MINRES, which is told."""
    H, A = compressed()
    damping, B = 1e-3, np.ones((N, 1))
    shifted = _Shifted(H, -0.4)  # a negative eigenvalue or more of A − 0.4 I + λI
    assert 0 < (np.linalg.eigvalsh(A) - 0.4 + damping < 0).sum() < N
    results = []
    told = said(COMM, lambda: results.append(solve_iteratively(shifted, H, B[rows(H)], damping)))
    assert results[0].method == "minres" and any("MINRES instead of CG" in line for line in told)
    X = np.concatenate(COMM.allgather(results[0].X_local))
    assert results[0].converged
    assert np.linalg.norm((A + (damping - 0.4) * np.eye(N)) @ X - B) <= 1e-9 * np.linalg.norm(B)


class _Shifted:
    """H̃ + σI as an operator."""

    def __init__(self, H, shift):
        self.comm, self.shape, self._H, self._shift = H.comm, H.shape, H, shift

    def matmat_rows(self, V):
        return self._H.matmat_rows(V) + self._shift * V


def test_the_exact_operator_is_preconditioned_too():
    H, _ = compressed()
    K, B = H.operator.H, np.random.default_rng(2).standard_normal((N, 2))
    damping = 1e-2 * H.report["lambda_max"]
    exact = _Rows(H.operator)
    found = solve_iteratively(exact, H, B[rows(H)], damping, rtol=1e-9)
    assert found.iterations < 0.5 * solve(exact, B[rows(H)], damping, rtol=1e-9).iterations
    X = np.concatenate(COMM.allgather(found.X_local))
    assert found.converged and np.linalg.norm(K @ X + damping * X - B) <= 2e-9 * np.linalg.norm(B)


class _Rows:
    """A DenseOperator's products in parameter rows."""

    def __init__(self, operator):
        from hpcHess.parallel.ownership import row_starts

        self.comm, self.shape, self._H = operator.comm, operator.shape, operator.H
        self._starts = row_starts(len(operator.H), operator.comm.size)

    def matmat_rows(self, V):
        whole = np.concatenate(self.comm.allgather(V))
        return self._H[self._starts[self.comm.rank] : self._starts[self.comm.rank + 1]] @ whole


def test_the_preconditioner_is_a_coarser_hss_matrix(shared_tmp):
    """Of the same tree and leaves, its size apart; in the file too, its factors likewise."""
    H, A = compressed()
    coarse, told = H.preconditioner, H.report["preconditioner"]
    C = coarse @ np.eye(N)
    assert coarse.format == "hss" and coarse.tree is H.tree
    sizes = np.r_[0, np.cumsum(H.tree.leaf_sizes)]
    p = H.tree.permutation
    for a, b in zip(sizes[:-1], sizes[1:]):
        assert np.array_equal(C[np.ix_(p[a:b], p[a:b])], (H @ np.eye(N))[np.ix_(p[a:b], p[a:b])])
    assert np.linalg.norm(C - A) <= 1.5 * told["rtol"] * np.linalg.norm(A) and told["rtol"] > H.report["rtol"]
    error, K = told["error_estimate"], H.operator.H
    assert 0.8 * error["low"] <= np.linalg.norm(C - K) / np.linalg.norm(K) <= 1.25 * error["high"] and told["saturated_nodes"] == 0
    assert 0.5 * np.linalg.norm(C - A, 2) <= told["error_spectral"] <= 1.01 * np.linalg.norm(C - A, 2)
    own = sum(level.T.offsets[-1] + level.far.blocks.offsets[-1] for level in coarse.levels[1:])
    assert told["storage_entries"] == COMM.allreduce(int(own))
    assert H.report["preconditioner_percent"] == pytest.approx(100 * told["storage_entries"] / N**2)
    factors = preconditioning_factors(H, 0.5)
    H.save(shared_tmp / "F.h5", factors=factors)
    B = np.random.default_rng(0).standard_normal((N, 2))
    for comm in (COMM, MPI.COMM_SELF):
        G = load(shared_tmp / "F.h5", comm)
        np.testing.assert_allclose(G.preconditioner @ np.eye(N), C, rtol=0, atol=1e-13 * np.abs(C).max())
        assert G.preconditioner.report == told and list(G.preconditioner._factors) == [(factors.damping, "elimination")]
        X = G.solve(B, damping=0.5)
        assert (np.linalg.norm(A @ X + 0.5 * X - B, axis=0) <= 1e-10 * np.linalg.norm(B, axis=0)).all()


def test_a_preconditioner_that_misses_its_tolerance_is_told(shared_tmp):
    """Ranks cut by max_rank: the error is what is measured, not what was asked."""
    K = exponential_kernel(N, scale=1.0)
    results = []
    made = lambda: compress(DenseOperator(K, COMM), rtol=0.02, leaf_size=20, distance="angle", format="fmm", budget=0.3, max_rank=2)  # noqa: E731
    lines = said(COMM, lambda: results.append(made()))
    H, told = results[0], results[0].report["preconditioner"]
    true, error = np.linalg.norm(H.preconditioner @ np.eye(N) - K) / np.linalg.norm(K), told["error_estimate"]
    assert told["rtol"] == 0.02 and true > 0.06 and 0.8 * error["low"] <= true <= 1.25 * error["high"]
    assert told["saturated_nodes"] > 0
    for told_in in (lines, H.report["warnings"]):
        assert any("the preconditioner's error is" in line and "nodes were cut" in line for line in told_in)
    assert not any("preconditioner" in line for line in compressed()[0].report["warnings"])


@pytest.fixture
def made(monkeypatch):
    """Dampings that anything is factorized for."""
    dampings, plain = [], Factors.factorize.__func__
    monkeypatch.setattr(Factors, "factorize", classmethod(lambda cls, H, damping: dampings.append(damping) or plain(cls, H, damping)))
    return dampings


@pytest.mark.parametrize("budget", [0, 0.3])
@pytest.mark.parametrize("indefinite", [False, True])
def test_nothing_is_factorized_twice(shared_tmp, made, indefinite, budget):
    """λ below the error: μ > λ preconditions, or λ where μ is indefinite too, which is remembered; stored factors are used."""
    H = compressed(indefinite, budget)[0]
    H = copy_of(H, shared_tmp / "plain.h5")
    direct = H if budget == 0 else H.preconditioner
    damping, B = 1e-3 * direct.report["error_spectral"], np.ones((N, 1))[rows(H)]
    shift = 2 * direct.report["error_spectral"]
    for _ in range(3):
        factors = preconditioning_factors(H, damping)
        assert (factors.damping, factors.negative > 0) == ((damping, True) if indefinite else (shift, False))
        direct.factors(damping)
        solve_iteratively(H, H, B, damping, max_iterations=1, factors=factors)
    assert made == [shift, damping]
    direct.factors(1.0), direct.factors(2.0), direct.factors(1.0), direct.factors(3.0), direct.factors(1.0)
    assert made[2:] == [1.0, 2.0, 3.0] and len(direct._factors) == 2, "the last two that were used are kept"
    H.save(shared_tmp / "F.h5", factors=factors)
    G, made[:] = load(shared_tmp / "F.h5", COMM), []
    assert preconditioning_factors(G, damping).damping == factors.damping and made == []


def test_stored_indefinite_factors_of_a_definite_shift_do_not_precondition(shared_tmp, made):
    """H̃ + λI is indefinite by the compression alone: H̃ + μI is definite, and preferred."""
    H = copy_of(compressed(budget=0)[0], shared_tmp / "plain.h5")
    H.report["error_spectral"] = 1.0
    H.install(Indefinite(H, 0.1))
    assert preconditioning_factors(H, 0.1).damping == 2.0 and made == [2.0]


class Indefinite:
    """Stands for factors that count a negative eigenvalue."""

    solver, negative = "elimination", 1

    def __init__(self, matrix, damping):
        self.matrix, self.damping = matrix, damping


def copy_of(H, path):
    H.save(path)
    return load(path, COMM)


def test_what_fmm_matrices_do_not_have():
    H, _ = compressed()
    for refused in (lambda: H.inertia(0.1), lambda: H.factorize(0.1)):
        with pytest.raises(InputError, match="fmm has no direct factors"):
            refused()
    for wrong in (-1.0, np.nan):
        with pytest.raises(InputError, match="damping"):
            H.solve(np.ones(N), wrong)
    with pytest.raises(InputError, match="elimination or ulv"):
        H.solve(np.ones(N), 0.1, solver="lu")


def test_doubts_are_told():
    """λ below the compression error; a residual that is not reached."""
    H, _ = compressed()
    told = said(COMM, lambda: H.solve(np.ones(N), 1e-9 * H.report["lambda_max"]))
    assert any("not trustworthy" in line for line in told)
    told = said(COMM, lambda: H.solve(np.ones(N), 0.1 * H.report["lambda_max"], rtol=1e-30))
    assert any("asked 1e-30" in line for line in told)


def test_without_a_preconditioner(shared_tmp):
    """An FMM matrix that was not made by `compress` is solved with all the same."""
    H, A = compressed()
    kept, H.preconditioner = H.preconditioner, None
    try:
        X = H.solve(np.ones(N), 0.5)
        assert np.linalg.norm(A @ X + 0.5 * X - 1) <= 1e-10 * np.sqrt(N)
        H.save(shared_tmp / "F.h5")
        assert load(shared_tmp / "F.h5", COMM).preconditioner is None
    finally:
        H.preconditioner = kept


def test_the_preconditioner_follows_the_sampling():
    """Skeletons chosen from rows, without a sketch: so are those of the coarser matrix."""
    K = exponential_kernel(200)
    H = compress(DenseOperator(K, COMM), rtol=1e-3, leaf_size=20, distance="kernel", format="fmm", budget=0.3, n_neighbors=8, sampling="rows")
    error = np.linalg.norm(H.preconditioner @ np.eye(200) - K) / np.linalg.norm(K)
    assert error <= 2 * H.report["preconditioner"]["rtol"]
    damping = 0.01 * H.report["lambda_max"]
    X = H.solve(np.ones(200), damping)
    assert np.linalg.norm(H @ X + damping * X - 1) <= 1e-9 * np.sqrt(200)
