"""H̃ + l2 I in every format: what is compressed is H, everything that the result says is of the sum."""

import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import hpcHess as hh
from hpcHess.compressed.regularized import RegularizedMatrix
from hpcHess.curvature.black_box import BlackBox
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.hessian import Hessian
from hpcHess.curvature.quadrature import quadrature
from hpcHess.curvature.regularized import Regularized
from hpcHess.curvature.submatrix import PrincipalSubmatrix
from hpcHess.formats.compress import compress
from hpcHess.formats.registry import FORMATS
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import HpcHessWarning, InputError
from tests.curvature.networks import classifier
from tests.reference.gauss_newton import gauss_newton
from tests.storage.launch import outside_mpi

COMM, L2, RTOL = MPI.COMM_WORLD, 0.02, 1e-3
ASKED = [name for name, each in FORMATS.items() if each.compress is not None]


@cache
def problem():
    """(operator, dense H without the term), float64; six parameters are dead."""
    network, inputs, _ = classifier()
    return GaussNewton(network, inputs, comm=COMM), COMM.bcast(gauss_newton(network, inputs) if COMM.rank == 0 else None)


@cache
def compressed(name):
    """(H̃ + l2 I, H̃ from the same without the term)."""
    options = {"leaf_size": 12, "dtype": "float64", "budget": 0.4 if name == "fmm" else None, "n_neighbors": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        return tuple(compress(op, RTOL, name, **options) for op in (Regularized(problem()[0], L2), problem()[0]))


@pytest.mark.parametrize("name", ASKED)
def test_the_sum_is_what_is_said(name):
    (H, plain), N = compressed(name), len(problem()[1])
    A = plain @ np.eye(N) + L2 * np.eye(N)
    assert repr(H) == f"{H.unregularized!r} + 0.02 I"
    assert isinstance(H, RegularizedMatrix) and H.format == name and H.l2 == H.report["l2"] == L2 and H.dtype == plain.dtype
    np.testing.assert_allclose(H @ np.eye(N), A, atol=1e-14 * np.abs(A).max())
    np.testing.assert_allclose(H.matmat_rows(np.ones((N, 2))[H.mine]), (A @ np.ones((N, 2)))[H.mine], atol=1e-13)
    np.testing.assert_allclose(H.diagonal(), np.diagonal(A), rtol=1e-13)
    assert H.trace() == pytest.approx(np.trace(A), rel=1e-12) and H.norm_frobenius() == pytest.approx(np.linalg.norm(A), rel=1e-6)
    assert H.report["lambda_max"] == pytest.approx(np.linalg.eigvalsh(A)[-1], rel=1e-4) and H.n_alive == N
    for key in ("error_estimate", "norm_frobenius", "rtol_met", "storage_entries"):  # of what was compressed
        assert H.report[key] == plain.report[key]
    np.testing.assert_allclose(H.aslinearoperator() @ np.ones(N), A @ np.ones(N), atol=1e-12)
    assert isinstance(H.operator, Regularized) and H.operator.l2 == L2 and H.operator.unregularized is problem()[0]


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("damping", [0, 0.05])
def test_solves_and_determinants(name, damping):
    """λ apart from l2; λ = 0 works, dead parameters too."""
    (H, plain), N = compressed(name), len(problem()[1])
    A, B = plain @ np.eye(N) + (L2 + damping) * np.eye(N), np.random.default_rng(1).standard_normal((N, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "block-diagonal" else "error", HpcHessWarning)
        X, found = H.solve(B, damping), H.logdet(damping)
        assert (np.linalg.norm(A @ X - B, axis=0) <= 1e-8 * np.linalg.norm(B, axis=0)).all()
        sign, log_abs = np.linalg.slogdet(A)
        assert found[0] == sign
        if H.direct:
            factors = H.factorize(damping)
            assert factors.damping == damping and factors.matrix is H and found[1] == pytest.approx(log_abs, rel=1e-9)
            assert H.inertia(damping) == (N, 0) and H.holds(damping) and not H.holds(damping + 1)
        else:
            width = found.high - found.low
            assert found.low - width <= log_abs <= found.high + width
    for wrong in (-1e-3, np.nan, "1"):
        for ask in (H.solve, H.logdet):
            with pytest.raises(InputError, match="damping"):
                ask(*((B,) if ask == H.solve else ()), wrong)


@pytest.mark.parametrize("name", ASKED)
def test_files(name, shared_tmp):
    (H, _), N = compressed(name), len(problem()[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        factors = H.factorize(0.03) if H.direct else H.preconditioning_factors(0.03)
        H.save(shared_tmp / "F.h5", factors=factors if H.stores_factors else None)
        again = hh.load(shared_tmp / "F.h5", COMM)
        assert isinstance(again, RegularizedMatrix) and again.l2 == L2 and again.format == name
        assert again.report == {key: value for key, value in H.report.items() if key != "timings"}
        assert again.unregularized.n_alive == len(problem()[0].alive) and again.unregularized.report["lambda_max"] < again.report["lambda_max"]
        np.testing.assert_allclose(again @ np.eye(N), H @ np.eye(N), atol=1e-13)
        if H.stores_factors and H.direct and name != "dense":
            assert again.holds(0.03) == compressed_holds(name, shared_tmp)
        np.testing.assert_allclose(again.solve(np.ones(N), 0.03), H.solve(np.ones(N), 0.03), rtol=1e-7, atol=1e-9)


def compressed_holds(name, folder):
    """Whether factors of the same matrix without the term are there after loading."""
    plain = compressed(name)[1]
    plain.save(folder / "plain.h5", factors=plain.factorize(0.03))
    return hh.load(folder / "plain.h5", COMM).holds(0.03)


@pytest.mark.parametrize("name", ["hss", "fmm", "kronecker-sum", "none"])
def test_petsc(name):
    pytest.importorskip("petsc4py")
    from hpcHess.krylov.solve import solve

    (H, _), N = compressed(name), len(problem()[1])
    A, b = H @ np.eye(N), np.random.default_rng(2).standard_normal(len(problem()[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        factors = H.preconditioning_factors(0.01)
    found = solve(H.operator, b[H.mine], 0.01, factors and factors.preconditioner(), rtol=1e-9)
    wanted = np.linalg.solve(problem()[1] + (L2 + 0.01) * np.eye(N), b)
    assert found.converged and np.abs(found.X_local - wanted[H.mine]).max() < 1e-6 * np.abs(wanted).max()
    mat = hh.petsc_mat(H, 0.5)
    x, y = mat.createVecs()
    x.set(1.0)
    mat.mult(x, y)
    np.testing.assert_allclose(y.getArray(), (A @ np.ones(N) + 0.5)[H.mine], atol=1e-12)


def test_the_choice_structured_parts_and_fewer_samples():
    base, H = problem()
    I = np.eye(len(H))
    for options in ({"format": "auto"}, {"format": "hss", "structured": "low-rank", "structured_size": 4, "leaf_size": 12}):
        found = compress(Regularized(base, L2), 1e-4, **options)
        assert found.l2 == L2 and np.linalg.norm(found @ I - H - L2 * I) <= 1e-4 * np.linalg.norm(H)
    reduced = base.reduced(quadrature(base, count=20))
    found = compress(Regularized(reduced, L2), 0.3, "dense")
    assert found.report["quadrature"]["samples"] == len(reduced.quadrature.samples)
    np.testing.assert_allclose(found @ I, reduced @ I + L2 * I, atol=1e-6)


def test_a_damping_that_does_not_cover_the_error_names_both():
    base, H = problem()
    found = compress(Regularized(base, 1e-6), 0.2, "hss", leaf_size=8)
    with pytest.warns(HpcHessWarning, match=r"damping 1e-06 \+ l2 = 2e-06 is not larger") if COMM.rank == 0 else warnings.catch_warnings():
        found.factorize(1e-6)


@cache
def indefinite():
    """The exact Hessian of the same."""
    return Hessian(*classifier(), comm=COMM)


@pytest.mark.parametrize("name", ["dense", "hss", "low-rank"])
def test_an_indefinite_matrix(name, shared_tmp):
    """λ_min is moved where it is reported, read and known of factors."""
    options = {"dtype": "float64"} | ({"leaf_size": 12} if name == "hss" else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        H, plain = (compress(each, 1e-8, name, **options) for each in (Regularized(indefinite(), L2), indefinite()))
        smallest = np.linalg.eigvalsh(plain @ np.eye(H.n_params))[0]
        assert smallest < -3 * L2 and smallest <= plain.report["lambda_min"] <= 0.9 * smallest
        assert H.report["lambda_min"] == pytest.approx(plain.report["lambda_min"] + L2, rel=1e-9)
        H.save(shared_tmp / "F.h5")
        again = hh.load(shared_tmp / "F.h5", COMM)
        assert again.report["lambda_min"] == H.report["lambda_min"]
        assert again.unregularized.report["lambda_min"] == pytest.approx(plain.report["lambda_min"], rel=1e-9)
        assert H.indefinite < 0
        assert H.factorize(0.5 * L2).negative and H.indefinite == pytest.approx(0.5 * L2) and H.unregularized.indefinite == pytest.approx(1.5 * L2)


def test_nested_operators_are_indefinite():
    """A block of the sum, the sum of a block, and both again: λ_min is reported, what needs a semidefinite matrix refuses."""
    H, I, J = indefinite() @ np.eye(len(problem()[1])), np.arange(60, 7, -1), np.arange(1, 50)
    of_sum = PrincipalSubmatrix(Regularized(indefinite(), L2), I)
    nested = {
        "block of the sum": (of_sum, H[np.ix_(I, I)] + L2 * np.eye(len(I))),
        "sum of a block": (Regularized(PrincipalSubmatrix(indefinite(), I), L2), H[np.ix_(I, I)] + L2 * np.eye(len(I))),
        "both": (PrincipalSubmatrix(Regularized(of_sum, L2), J), H[np.ix_(I[J], I[J])] + 2 * L2 * np.eye(len(J))),
    }
    for name, (operator, exact) in nested.items():
        smallest = np.linalg.eigvalsh(exact)[0]
        assert operator.indefinite and smallest < 0, name
        for format in ("dense", "low-rank"):
            found = compress(operator, 1e-8, format, dtype="float64", **({"method": "randomized"} if format == "low-rank" else {})).report
            assert smallest - 1e-9 <= found["lambda_min"] <= 0.8 * smallest, name
        with pytest.raises(InputError, match="indefinite"):
            compress(operator, 1e-2, "low-rank", method="nystrom")
    for operator in (Regularized(problem()[0], L2), PrincipalSubmatrix(Regularized(problem()[0], L2), I)):
        assert not hasattr(operator, "indefinite") and "lambda_min" not in compress(operator, 1e-2, "dense").report


def test_factors_of_a_larger_shift_say_which():
    """The error is larger than λ + l2: what preconditions is of μ > λ + l2, as factors of H̃ + l2 I its damping is μ − l2."""
    l2, damping = 1e-5, 2e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        H = compress(Regularized(problem()[0], l2), 0.2, "hss", leaf_size=8, dtype="float64")
        inner, factors = (M.preconditioning_factors(d) for M, d in ((H.unregularized, damping + l2), (H, damping)))
        assert inner.damping > 10 * (damping + l2) and factors.damping == pytest.approx(inner.damping - l2, rel=1e-14) and factors.matrix is H
        exactly = H.factors(damping)
    assert exactly.damping == damping
    for each in (factors, exactly):
        B = np.ones((H.n_params, 1))[H.mine]
        X = each.solve_rows(B)
        np.testing.assert_allclose(each.matrix.matmat_rows(X) + each.damping * X, B, atol=1e-9)


def test_a_large_term_in_single_precision():
    """H̃ + l2 I is as near as H̃; a product in float32 rounds by what the class says, here more than that."""
    exact, l2 = problem()[1], 1e7
    H = compress(Regularized(problem()[0], l2), 1e-3, "dense", dtype="float32")
    V = np.random.default_rng(3).standard_normal((len(exact), 4)).astype(np.float32)
    double = H @ V.astype(np.float64)
    rounding = np.linalg.norm((H @ V).astype(np.float64) - double)
    assert rounding <= 6e-8 * (np.linalg.norm(H.unregularized @ V) + 3 * l2 * np.linalg.norm(V))
    assert np.linalg.norm(double - exact @ V - l2 * V.astype(np.float64)) < 1e-3 * np.linalg.norm(exact) * np.linalg.norm(V) < 1e3 * rounding


def test_an_operator_without_entries():
    H = problem()[1]
    found = compress(Regularized(BlackBox(lambda V: H @ V, len(H), comm=COMM), L2), 1e-6, "hss", sampling="products", leaf_size=16)
    assert np.linalg.norm(found @ np.eye(len(H)) - H - L2 * np.eye(len(H))) <= 1e-6 * np.linalg.norm(H)


@pytest.mark.parametrize("name", ASKED)
def test_a_matrix_that_is_zero_but_for_the_term(name):
    network = Network([np.ones((4, 3)), np.ones((2, 4))], None, "relu", "cross-entropy")
    H = compress(Regularized(GaussNewton(network, np.zeros((5, 3)), comm=COMM), 2.0), 1e-3, name)
    np.testing.assert_allclose(H @ np.eye(20), 2 * np.eye(20))
    np.testing.assert_allclose(H.solve(np.ones(20), 0.0), 0.5)
    assert H.logdet(0.0)[1] == pytest.approx(20 * np.log(2)) and H.report["lambda_max"] == pytest.approx(2)


def test_no_term_is_no_other_matrix():
    found = compress(Regularized(problem()[0], 0.0), 1e-3, "dense")
    assert not isinstance(found, RegularizedMatrix) and found.l2 == 0


def test_the_specification_read_by_h5py_alone(shared_tmp):
    """docs/read_factor_file.py knows of the term, for dead parameters too."""
    H, N = compressed("hss")[0], len(problem()[1])
    H.save(shared_tmp / "F.h5")
    if COMM.rank == 0:
        reader = Path(__file__).parents[2] / "docs" / "read_factor_file.py"
        np.save(shared_tmp / "V.npy", np.eye(N))
        subprocess.run([sys.executable, reader, shared_tmp / "F.h5", shared_tmp / "V.npy", shared_tmp / "U.npy"], check=True, timeout=60, env=outside_mpi(), stdin=subprocess.DEVNULL)
    COMM.Barrier()
    np.testing.assert_allclose(np.load(shared_tmp / "U.npy"), H @ np.eye(N), atol=1e-13)
