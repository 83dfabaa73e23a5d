"""Second derivatives of the losses with respect to their arguments against dense matrices, and where single precision cancels."""

import numpy as np
import pytest

from hpcHess.networks.losses import BinaryCrossEntropy, CrossEntropy, Diagonal, OuterProduct, SquaredError, softmax

D, M = 5, 6


def dense(name, z):
    """(class, what it needs, Q [m, d, d])."""
    p, q = softmax(z)[0], np.exp(z)
    if name == "cross-entropy":
        return CrossEntropy, p, np.array([np.diag(each) - np.outer(each, each) for each in p.T])
    if name == "diagonal":
        return Diagonal, q, np.array([np.diag(each) for each in q.T])
    if name == "outer product":
        return OuterProduct, z, np.array([np.outer(each, each) for each in z.T])
    return SquaredError, None, np.tile(2 * np.eye(D), (M, 1, 1))


@pytest.mark.parametrize("name", ["cross-entropy", "diagonal", "outer product", "squared error"])
def test_hessian_and_root(name):
    rng = np.random.default_rng(0)
    loss, needed, Q = dense(name, rng.standard_normal((D, M)))
    U, R = rng.standard_normal((3, D, M)), np.tile(np.eye(D)[:, :, None], (1, 1, M))
    expected = np.einsum("med,kdm->kem", Q, U)
    loss.apply_hessian(U, needed)
    loss.apply_root(R, needed)
    np.testing.assert_allclose(U, expected, atol=1e-14 * np.abs(expected).max())
    R = R[:1] if name == "outer product" else R  # R has one column
    np.testing.assert_allclose(np.einsum("kem,kdm->med", R, R), Q, atol=1e-14 * np.abs(Q).max())


@pytest.mark.parametrize("gap", [1, 10, 20, 40])
def test_sure_samples_in_single_precision(gap):
    """Q is of the size exp(−gap), and as exact as float32 is."""
    rng = np.random.default_rng(1)
    z = rng.standard_normal((D, M)) + gap * (np.arange(D)[:, None] == np.arange(M) % D)
    U, (p, rest) = 3 + rng.standard_normal((4, D, M)), softmax(z)
    single = U.astype(np.float32)
    every = np.arange(D)
    Q = -p[:, None] * p
    Q[every, every] = p * rest
    expected = np.einsum("edm,kdm->kem", Q, single.astype(float))
    CrossEntropy.apply_hessian(single, p.astype(np.float32))
    norm = np.linalg.norm(np.abs(Q).sum(axis=1), axis=0) * np.abs(U).max()
    assert (np.abs(single - expected).max(axis=(0, 1)) <= 1e-6 * norm).all()


@pytest.mark.parametrize("z", [0.3, 5.0, 20.0, 40.0, 300.0])
def test_binary_gradients_of_sure_samples(z):
    """σ(z) − y where it is tiny: ∓1/(1 + exp ±z) to all digits; of other targets as it stands."""
    outputs, targets = np.array([[z, -z, z, -z], [-z, z, z, -z]]), np.array([[1, 0], [0, 1], [0.25, 1], [0, 0.5]])
    tiny, sigma = np.exp(-z) / (1 + np.exp(-z)), 1 / (1 + np.exp(-z))
    expected = [[-tiny, tiny, sigma - 0.25, tiny], [tiny, -tiny, -tiny, tiny - 0.5]]
    np.testing.assert_allclose(BinaryCrossEntropy.gradient(outputs, targets), expected, rtol=1e-14, atol=0)
