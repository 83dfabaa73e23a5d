"""One interface: what every registered format offers, against the dense matrix, on the ranks of the test run."""

import json
import warnings
from functools import cache

import numpy as np
import pytest
from mpi4py import MPI

import hpcHess as hh
from hpcHess.compressed.stochastic import LogDet
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.formats.compress import compress
from hpcHess.formats.registry import FORMATS, format_of
from hpcHess.info import describe, summarize
from hpcHess.networks.network import Network
from hpcHess.runtime import schema
from hpcHess.runtime.errors import HpcHessWarning, InputError
from hpcHess.storage.factor_file import FactorFile
from tests.reference.gauss_newton import gauss_newton

COMM = MPI.COMM_WORLD
WIDTHS, SAMPLES, RTOL = (7, 6, 5, 3), 25, 1e-6
ASKED = [name for name, each in FORMATS.items() if each.compress is not None]
EXACT_ENOUGH = [name for name in ASKED if name != "block-diagonal"]  # all that can meet a tolerance


@cache
def problem():
    """(operator, dense H) of a small classifier with biases, float64; the first input is dead."""
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal((b, a)) / np.sqrt(a) for a, b in zip(WIDTHS[:-1], WIDTHS[1:])]
    network = Network(weights, [rng.standard_normal(len(W)) / 4 for W in weights], "tanh", "cross-entropy")
    x = rng.standard_normal((SAMPLES, WIDTHS[0]))
    x[:, 0] = 0
    return GaussNewton(network, x, comm=COMM), COMM.bcast(gauss_newton(network, x) if COMM.rank == 0 else None)


@cache
def compressed(name):
    """(H̃, H̃ as dense)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        H = compress(problem()[0], RTOL, name, leaf_size=12, dtype="float64", budget=0.4 if name == "fmm" else None, n_neighbors=8)
    return H, H @ np.eye(H.n_params)


def test_names_are_those_of_job_files():
    assert set(schema.FORMATS) == {*ASKED, "auto"}
    with pytest.raises(InputError, match="format must be .*kronecker-sum.* or auto, not 'hodlr'"):
        compress(problem()[0], format="hodlr")
    with pytest.raises(InputError, match="not asked for by name"):
        compress(problem()[0], format="sum")
    assert format_of("hss").name == "hss"


@pytest.mark.parametrize("name", ASKED)
def test_products_norms_and_error(name):
    """H̃ is symmetric, what it says of itself is true, and it is as near to H as it says."""
    (H, A), (_, exact) = compressed(name), problem()
    assert H.format == name and H.shape == exact.shape and H.comm is COMM
    assert np.abs(A - A.T).max() <= 1e-13 * np.abs(A).max()
    error, found = np.linalg.norm(A - exact) / np.linalg.norm(exact), H.report["error_estimate"]
    assert found["low"] - 1e-12 <= error <= found["high"] + 1e-12
    assert H.report["rtol_met"] == (found["high"] <= RTOL) and (name not in EXACT_ENOUGH or error <= RTOL)
    np.testing.assert_allclose(H.diagonal(), np.diagonal(A), atol=1e-13 * np.abs(A).max())
    assert H.trace() == pytest.approx(np.trace(A), rel=1e-12)
    assert H.norm_frobenius() == pytest.approx(np.linalg.norm(A), rel=1e-6)
    assert H.report["lambda_max"] == pytest.approx(np.linalg.eigvalsh(A)[-1], rel=1e-4)
    assert H.report["storage_entries"] > 0 and H.report["storage_bytes"] >= 4 * H.report["storage_entries"]
    assert H.report["storage_percent"] == pytest.approx(100 * H.report["storage_entries"] / H.n_params**2)
    v = np.random.default_rng(0).standard_normal(H.n_params)
    np.testing.assert_allclose(H @ v, A @ v, atol=1e-12)
    np.testing.assert_allclose(H.aslinearoperator() @ v, A @ v, atol=1e-12)


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("relative", [1e-1, 1e-3])
def test_solves_and_determinants(name, relative):
    H, A = compressed(name)
    damping = relative * H.report["lambda_max"]
    damped, B = A + damping * np.eye(len(A)), np.random.default_rng(1).standard_normal((len(A), 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        X, found = H.solve(B, damping), H.logdet(damping)
    assert (np.linalg.norm(damped @ X - B, axis=0) <= 1e-8 * np.linalg.norm(B, axis=0)).all()
    sign, log_abs = np.linalg.slogdet(damped)
    assert isinstance(found, LogDet) and found[0] == sign
    if H.direct:
        assert found[1] == pytest.approx(log_abs, rel=1e-9) and found.low == found.high == found[1]
        assert H.inertia(damping) == (int((np.linalg.eigvalsh(damped) > 0).sum()), int((np.linalg.eigvalsh(damped) < 0).sum()))
    else:
        width = found.high - found.low
        assert found.low - width <= log_abs <= found.high + width and width < 0.2 * abs(log_abs)
        with pytest.raises(InputError, match=f"format {name} has no direct factors"):
            H.inertia(damping)


@pytest.mark.parametrize("name", ASKED)
def test_files_and_what_info_tells(name, shared_tmp):
    H, A = compressed(name)
    H.save(shared_tmp / "F.h5")
    again = hh.load(shared_tmp / "F.h5", COMM)
    assert type(again) is type(H) and again.format == name and again.report["error_estimate"] == H.report["error_estimate"]
    np.testing.assert_allclose(again @ np.eye(len(A)), A, atol=1e-13 * np.abs(A).max())
    damping = 0.1 * H.report["lambda_max"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        np.testing.assert_allclose(again.solve(np.ones(len(A)), damping), H.solve(np.ones(len(A)), damping), rtol=1e-7, atol=1e-9)
    with FactorFile(shared_tmp / "F.h5", COMM, verify=True) as file:
        summary = summarize(file, True)
    text = describe(summary)
    json.dumps(summary, allow_nan=False)
    assert f"{name.upper()} matrix, N = {len(A)} (6 dead)" in text and f"{H.report['storage_entries']:,} numbers" in text


@pytest.mark.parametrize("name", ASKED)
def test_petsc_sees_an_operator_and_a_preconditioner(name):
    pytest.importorskip("petsc4py")
    from hpcHess.krylov.solve import solve

    (H, A), damping = compressed(name), 1e-2 * compressed(name)[0].report["lambda_max"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        factors = H.preconditioning_factors(damping)
    b = np.random.default_rng(2).standard_normal(len(A))[H.mine]
    plain, helped = (solve(H, b, damping, each, rtol=1e-9) for each in (None, factors and factors.preconditioner()))
    assert plain.converged and helped.converged and (helped.iterations <= plain.iterations or not H.direct)
    mat = hh.petsc_mat(H, damping)
    x, y = mat.createVecs()
    x.set(1.0)
    mat.mult(x, y)
    np.testing.assert_allclose(y.getArray(), (A @ np.ones(len(A)) + damping)[H.mine], atol=1e-12)


@pytest.mark.parametrize("name", ASKED)
def test_a_matrix_that_is_zero(name):
    """All inputs and biases' factors zero: no parameter is alive."""
    network = Network([np.ones((4, 3)), np.ones((2, 4))], None, "relu", "cross-entropy")
    H = compress(GaussNewton(network, np.zeros((5, 3)), comm=COMM), 1e-3, name)
    assert H.n_alive == 0 and H.trace() == 0 and not H.diagonal().any() and not (H @ np.ones(20)).any()
    np.testing.assert_allclose(H.solve(np.ones(20), 2.0), 0.5)
    assert H.logdet(2.0)[1] == pytest.approx(20 * np.log(2))


@pytest.mark.parametrize("name", [*ASKED, "auto"])
def test_products_that_are_not_finite_are_refused(name):
    """Entries that single precision cannot hold, finite as the network and the data are."""
    network = Network([np.ones((4, 5))], None, "identity", "squared-error")
    x = 3e19 * np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", HpcHessWarning)
        with pytest.raises(InputError, match="not finite.*float64"):
            compress(GaussNewton(network, x, comm=COMM, dtype=np.float32), 1e-2, name)


def test_options_of_other_formats_have_no_effect_and_unknown_ones_are_named():
    H = compress(problem()[0], 1e-3, "kronecker-sum", leaf_size=5, budget=0.3)
    assert H.format == "kronecker-sum"
    with pytest.raises(InputError, match="unknown option leafsize"):
        compress(problem()[0], leafsize=5)
    for wrong in ({"objective": "speed"}, {"structured": "all"}, {"memory": -1}, {"structured": "low-rank", "format": "dense"}):
        with pytest.raises(InputError):
            compress(problem()[0], **wrong)
