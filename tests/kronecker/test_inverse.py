"""Inverses of one-term sums, and what they are as preconditioners."""

import warnings

import numpy as np
import pytest

from hpcHess.compressed.iterative import solve_iteratively
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.kronecker import inverse as module
from hpcHess.kronecker.compress import compress_kronecker
from hpcHess.runtime.errors import HpcHessWarning, InputError
from tests.curvature.test_gauss_newton import CASES, make, near
from tests.reference.dense_operator import dense


def compressed(operator, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HpcHessWarning)
        return compress_kronecker(operator, **({"dtype": "float64"} | keywords))


@pytest.mark.filterwarnings("ignore::hpcHess.runtime.errors.HpcHessWarning")
@pytest.mark.parametrize("name", CASES)
def test_kfac_is_solved_directly(name, comm):
    network, inputs = make(name)
    K = compressed(GaussNewton(network, inputs, comm=comm), terms="kfac")
    assert K.direct and K.solvers == ("kronecker",)
    damping = 1e-3 * K.report["lambda_max"]
    A = dense(K) + damping * np.eye(K.n_params)
    B = np.random.default_rng(0).standard_normal((K.n_params, 3))
    expected = np.linalg.solve(A, B)
    near(K.solve(B, damping), expected, 1e-10)
    near(K.solve(B[:, 0], damping), expected[:, 0], 1e-10)
    sign, log_abs = K.logdet(damping)
    reference = np.linalg.slogdet(A)
    assert sign == reference[0] and abs(log_abs - reference[1]) <= 1e-9 * abs(reference[1])
    assert K.inertia(damping) == (K.n_params, 0)
    assert K.factorize(damping).backward_error <= 1e-10
    assert K.factorize(damping).definite


@pytest.mark.parametrize("name", ["tanh classes, some biases", "autoencoder", "deep autoencoder"])
def test_leading_terms_precondition(name, comm):
    network, inputs = make(name)
    operator = GaussNewton(network, inputs, comm=comm)
    K = compressed(operator, rtol=1e-6)
    assert not K.direct and K.solvers == ()
    damping = 1e-3 * K.report["lambda_max"]
    A = dense(K) + damping * np.eye(K.n_params)
    B = np.random.default_rng(0).standard_normal((K.n_params, 2))
    near(K.solve(B, damping), np.linalg.solve(A, B), 1e-8)
    inverse = K.inverse(damping)
    assert inverse.definite and inverse.damping == damping and inverse.solver == "kronecker"
    mine = K.mine
    S = np.vstack(comm.allgather(inverse.solve_rows(np.eye(K.n_params)[mine])))
    near(S, S.T, 1e-12)
    assert np.linalg.eigvalsh(S)[0] > 0
    assert abs(inverse.log_abs + np.linalg.slogdet(S)[1]) <= 1e-8 * abs(inverse.log_abs)
    plain = solve_iteratively(operator, K, B[mine], damping, rtol=1e-8)
    assert plain.converged and plain.residuals.max() <= 1e-8


def test_preconditioner_is_exact_for_the_diagonal_blocks_of_one_term(comm):
    """Squared error's last layer is one term: there the preconditioner is the inverse of the diagonal block."""
    network, inputs = make("autoencoder")
    K = compressed(GaussNewton(network, inputs, comm=comm), rtol=1e-3)
    last = slice(K.n_params - network.weights[-1].size - len(network.weights[-1]), K.n_params)
    damping = 0.1
    E = np.eye(K.n_params)
    S = np.vstack(comm.allgather(K.inverse(damping).solve_rows(E[K.mine])))
    block = dense(K)[last, last] + damping * np.eye(last.stop - last.start)
    near(S[last, last], np.linalg.inv(block), 1e-12)


def test_no_direct_factors_of_several_terms(comm):
    network, inputs = make("relu classes")
    K = compressed(GaussNewton(network, inputs, comm=comm), rtol=1e-2)
    with pytest.raises(InputError, match="no direct factors"):
        K.factorize(1.0)


@pytest.mark.parametrize("name", ["relu classes", "tanh classes, some biases", "deep autoencoder"])
def test_a_singular_layer_is_refused(name, comm):
    """Semidefinite factors have no inverse at λ = 0, nor where λ is rounding; a larger damping serves."""
    network, inputs = make(name, 3)
    K = compressed(GaussNewton(network, inputs, comm=comm), terms="kfac")
    for damping in (0.0, 1e-30):
        with pytest.raises(InputError, match="singular to working precision at damping .*use a larger damping"):
            K.solve(np.ones(K.n_params), damping)
    assert np.isfinite(K.solve(np.ones(K.n_params), 1e-6 * K.report["lambda_max"])).all()


def test_dead_parameters_without_damping(comm):
    """b must be 0 where H̃ is, as in the other formats; the rest is solved."""
    network, inputs = make("one layer, values, no bias")
    K = compressed(GaussNewton(network, inputs, comm=comm), terms="kfac")
    E, b = dense(K), np.random.default_rng(0).standard_normal(K.n_params)
    dead = ~E.any(axis=1)
    assert 0 < dead.sum() < len(E)
    with pytest.raises(InputError, match="dead parameters"):
        K.solve(b, 0.0)
    b[dead] = 0
    near(E @ K.solve(b, 0.0), b, 1e-12)
    assert not K.solve(b, 0.0)[dead].any() and K.logdet(0.0) == (0.0, -np.inf)


def test_a_preconditioner_without_damping_is_the_pseudo_inverse(comm):
    network, inputs = make("relu classes", 3)
    K = compressed(GaussNewton(network, inputs, comm=comm), rtol=1e-3)
    inverse = K.inverse(0.0)
    assert not K.direct and not inverse.definite and inverse.zero > 0
    X = inverse.solve_rows(np.eye(K.n_params)[K.mine])
    assert np.isfinite(X).all()


@pytest.mark.parametrize("name", ["relu classes", "deep autoencoder"])
def test_columns_in_blocks(name, comm, monkeypatch):
    """Any number of right-hand sides at a time gives the same; no more columns than asked for are held whole."""
    network, inputs = make(name)
    K, widths = compressed(GaussNewton(network, inputs, comm=comm), terms="kfac"), []
    B = np.random.default_rng(0).standard_normal((K.n_params, 7))
    whole, solved = K.solve(B, 0.1), module.KroneckerInverse._solved
    monkeypatch.setattr(module, "PRODUCT_BYTES", 3 * 8 * K.n_params)
    monkeypatch.setattr(module.KroneckerInverse, "_solved", lambda self, V, *rest: widths.append(V.shape[1]) or solved(self, V, *rest))
    near(K.solve(B, 0.1), whole, 1e-14)
    assert widths == [3, 3, 1]
