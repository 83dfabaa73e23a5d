"""Direct solves with H̃ + λI: dampings, dead parameters, what is refused and what is told (accuracy: `test_solvers`)."""

import warnings

import numpy as np
import pytest

from hpcHess.hierarchical.compress import compress
from hpcHess.compressed.damping import damping_of, parse_damping
from hpcHess.runtime.errors import HpcHessWarning, InputError
from tests.reference.dense_operator import DenseOperator, exponential_kernel, gaussian_kernel

N = 400


def definite():
    K = exponential_kernel(N)
    K[::19], K[:, ::19] = 0, 0
    return K


def indefinite():
    rng = np.random.default_rng(4)
    K = definite() - np.diag(rng.random(N))
    K[::19], K[:, ::19] = 0, 0
    return K


def singular():
    """Rank 40: X_RR is singular without damping, and nearly so with a small one."""
    return gaussian_kernel(N, 1.0)


def test_a_new_damping_needs_no_compression(comm):
    H = compress(DenseOperator(definite(), comm), rtol=1e-4, leaf_size=32)
    A, b = (H @ np.eye(N)).astype(np.float64), np.ones(N)
    for damping in (1.0, 0.1, 10.0):
        x = H.solve(b, damping=damping)
        assert x.shape == (N,) and x.dtype == np.float64
        assert np.linalg.norm(A @ x + damping * x - b) <= 1e-10 * np.linalg.norm(b)


def test_dead_parameters_contribute_the_damping_alone(comm):
    H = compress(DenseOperator(definite(), comm), rtol=1e-4, leaf_size=32)
    x = H.solve(np.ones(N), damping=0.25)
    assert np.all(x[::19] == 4.0)


def test_zero_damping(comm):
    K = definite()
    H = compress(DenseOperator(K, comm), rtol=1e-8, leaf_size=32)
    b = K @ np.ones(N)
    x = H.solve(b, damping=0.0)
    assert np.linalg.norm(K @ x - b) <= 1e-5 * np.linalg.norm(b) and np.all(x[::19] == 0)
    assert H.logdet(damping=0.0) == (0.0, -np.inf)
    with pytest.raises(InputError, match="dead parameters"):
        H.solve(np.ones(N), damping=0.0)


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf")])
def test_bad_damping(comm, damping):
    H = compress(DenseOperator(np.eye(8), comm), rtol=1e-3, leaf_size=4)
    with pytest.raises(InputError, match="damping"):
        H.solve(np.ones(8), damping=damping)


def test_singular_without_damping(comm):
    H = compress(DenseOperator(np.ones((64, 64)), comm), rtol=1e-3, leaf_size=8, dtype="float64")
    with pytest.raises(InputError, match="singular"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        H.solve(np.ones(64), damping=0.0)


def test_damping_on_the_command_line(comm):
    assert parse_damping("1e-3") == (1e-3, False) and parse_damping("0.01*lmax") == (0.01, True) and parse_damping("lmax") == (1.0, True)
    H = compress(DenseOperator(definite(), comm), rtol=1e-1, leaf_size=32)
    assert damping_of((0.5, True), H) == 0.5 * H.report["lambda_max"] and damping_of((0.5, False), H) == 0.5


def said(comm, action):
    """HpcHessWarnings of rank 0 during `action()`, on every rank."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        action()
    return comm.bcast([str(each.message) for each in record if each.category is HpcHessWarning])


def test_doubtful_solves_are_told(comm):
    H = compress(DenseOperator(definite(), comm), rtol=1e-1, leaf_size=32)
    good, small = 0.5 * H.report["lambda_max"], 1e-9 * H.report["lambda_max"]
    assert said(comm, lambda: H.solve(np.ones(N), damping=good)) == []
    first, *rest = said(comm, lambda: H.solve(np.ones(N), damping=small))
    assert "not trustworthy" in first and f"{H.report['error_spectral']:.3g}" in first
    assert [f"{H.inertia(damping=small)[1]} negative" in text for text in rest] == [True] * (H.inertia(damping=small)[1] > 0)
    assert said(comm, lambda: H.logdet(damping=small)) == [], "once for each damping"
    saturated = said(comm, lambda: compress(DenseOperator(definite(), comm), rtol=1e-4, leaf_size=32, max_rank=3))
    assert any("rank saturation" in text for text in saturated) and any("not met" in text for text in saturated)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_singular_leaf_is_found(comm, blocks):
    """Singular where nothing couples to the rest: not seen at the root."""
    rng, A = np.random.default_rng(0), np.zeros((64, 64))
    for i in range(4):
        X = rng.standard_normal((16, 10 if i < blocks else 32))
        A[16 * i : 16 * i + 16, 16 * i : 16 * i + 16] = X @ X.T
    H = compress(DenseOperator(A, comm), rtol=1e-6, leaf_size=16)
    with pytest.raises(InputError, match="singular"):
        H.solve(np.ones(64), damping=0.0)
    x = H.solve(np.ones(64), damping=1e-6 * H.report["lambda_max"])
    assert np.all(np.isfinite(x))


@pytest.mark.parametrize("relative", [1e-9, 1e-11])
def test_small_dampings_of_semidefinite_matrices_are_well_posed(comm, relative):
    X = np.random.default_rng(1).standard_normal((N, 180))
    H = compress(DenseOperator(X @ X.T, comm), rtol=1e-9, leaf_size=50, dtype="float64")
    damping = relative * H.report["lambda_max"]
    A = H @ np.eye(N) + damping * np.eye(N)
    b = np.ones(N)
    x = H.solve(b, damping=damping)
    assert np.linalg.norm(A @ x - b) <= 1e-12 * (np.linalg.norm(A, 2) * np.linalg.norm(x) + np.linalg.norm(b))


def test_spectral_norms(comm):
    K = definite()
    H = compress(DenseOperator(K, comm), rtol=1e-2, leaf_size=32)
    D = (H @ np.eye(N)).astype(np.float64)
    assert np.isclose(H.report["lambda_max"], np.linalg.norm(D, 2), rtol=1e-4)
    true = np.linalg.norm(D - K, 2)
    assert 0.7 * true <= H.report["error_spectral"] <= 1.01 * true
