"""Every kind of Gram type on every network against automatic differentiation: products, entries, diagonals, blocks of layers, weights."""

import numpy as np
import pytest

from hpcHess.backend import entries
from hpcHess.curvature import kernel
from hpcHess.curvature.fisher import EmpiricalFisher, Fisher, MonteCarloFisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.sample_gram import hessian_norms2
from hpcHess.networks.losses import LOSSES
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import InputError
from tests.curvature.networks import CASES, N_SAMPLES, WEIGHTS, make

pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
from tests.reference import autograd  # noqa: E402

TOLERANCE = 1e-12


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return make(request.param)


def near(found, expected, tolerance=TOLERANCE):
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def agrees(operator, H, tolerance=TOLERANCE):
    """Products, entries, diagonal, dead parameters."""
    V, every = np.random.default_rng(1).standard_normal((len(H), 5)), np.arange(len(H))
    assert operator.shape == H.shape
    near(operator.matmat(V), H @ V, tolerance)
    near(operator.entries(every, every), H, tolerance)
    near(operator.entries(every[::-3], every[1:4]), H[::-3, 1:4], 10 * tolerance)
    near(operator.diagonal(), np.diag(H), tolerance)
    dead = np.setdiff1d(every, operator.alive)
    assert np.all(H[dead] == 0) and np.all(H[:, dead] == 0)


def layers_of(network):
    """Some choices of layers."""
    every = range(network.n_layers)
    return [[each] for each in every] + ([[0, network.n_layers - 1]] if network.n_layers > 2 else [])


def test_gauss_newton_and_fisher(case, comm):
    network, x, y = case
    H = autograd.gauss_newton(network, x)
    agrees(GaussNewton(network, x, y, comm=comm), H)
    agrees(GaussNewton(network, x, comm=comm, dtype=np.float32), H, 1e-4)
    agrees(GaussNewton(network, x, y, weights=WEIGHTS, comm=comm), autograd.gauss_newton(network, x, WEIGHTS))
    agrees(Fisher(network, x, comm=comm), (0.5 if network.loss == "squared-error" else 1) * H)
    for layers in layers_of(network):
        part = network.restricted(layers)
        agrees(GaussNewton(part, x, comm=comm), autograd.gauss_newton(part, x))


def test_outer_products(case, comm):
    network, x, y = case
    agrees(EmpiricalFisher(network, x, y, comm=comm), autograd.outer_products(network, x, y))
    agrees(EmpiricalFisher(network, x, y, weights=WEIGHTS, comm=comm), autograd.outer_products(network, x, y, WEIGHTS))
    for layers in layers_of(network):
        part = network.restricted(layers)
        agrees(EmpiricalFisher(part, x, y, comm=comm), autograd.outer_products(part, x, y))


def test_monte_carlo_fisher(case, comm):
    """With the labels it drew it is the matrix of their gradients; over many draws it is near the Fisher matrix."""
    network, x, _ = case
    operator = MonteCarloFisher(network, x, comm=comm, draws=2, seed=3)
    z = np.array([autograd.outputs(network, autograd.parameters(network), autograd.torch.tensor(each)).numpy() for each in np.repeat(x, 2, axis=0)])
    drawn = operator._drawn(network.loss, z.T, slice(0, 2 * N_SAMPLES))
    assert len(drawn) == 2 * N_SAMPLES
    scale = 0.25 if network.loss == "squared-error" else 1
    agrees(operator, scale * autograd.outer_products(network, np.repeat(x, 2, axis=0), drawn))
    many = MonteCarloFisher(network, x, comm=comm, draws=3000, seed=1)
    every = np.eye(network.n_params)
    deviation = np.sqrt(hessian_norms2(many.samples, slice(0, None)).sum()) / many.n_samples  # E ‖F̃ − F‖² ≤ Σ ‖g‖⁴ / (n m)²
    error = np.linalg.norm(many.matmat(every) - Fisher(network, x, comm=comm).matmat(every))
    assert 0.2 * deviation < error < 3 * deviation
    weighted = MonteCarloFisher(network, x, weights=WEIGHTS, comm=comm, draws=2, seed=3)
    agrees(weighted, scale * autograd.outer_products(network, np.repeat(x, 2, axis=0), drawn, np.repeat(WEIGHTS, 2) / 2))


@pytest.mark.parametrize("loss", LOSSES)
def test_draws_have_the_model_s_distribution(loss):
    if loss == "squared-error":
        pytest.skip("Gaussian: no distribution of its own")
    rng, z = np.random.default_rng(0), np.array([[0.3], [-1.0], [1.2]])
    uniform = rng.random((200_000, 3))
    drawn = LOSSES[loss].draw(np.repeat(z, 200_000, axis=1), uniform[:, 0] if loss == "cross-entropy" else uniform)
    found = np.bincount(drawn, minlength=3) / 2e5 if loss == "cross-entropy" else drawn.mean(axis=0)
    p = np.exp(z[:, 0]) / np.exp(z[:, 0]).sum() if loss == "cross-entropy" else 1 / (1 + np.exp(-z[:, 0]))
    np.testing.assert_allclose(found, p, atol=5e-3)


def test_probe_embeds(case, comm):
    network, x, y = case
    operator, k = GaussNewton(network, x, y, comm=comm), 2000
    H, Z = operator.matmat(np.eye(network.n_params)), operator.probe(k, seed=5)
    assert np.all(np.abs(Z @ Z.T - H) <= 5 * np.sqrt((np.outer(np.diag(H), np.diag(H)) + H**2) / k) + 1e-15)


def test_sure_samples(comm):
    """Where softmax leaves no doubt H is small; products, entries and diagonal agree to rounding all the same, in single precision too."""
    network, x, _ = make("classes, gelu, some biases")
    network = Network([*network.weights[:-1], 30 * network.weights[-1]], network.biases, network.activations, network.loss)
    x = x[[i for i in range(N_SAMPLES) if GaussNewton(network, x[i : i + 1], comm=comm).samples.rest.min() < 1e-9]]
    operator, every = GaussNewton(network, x, comm=comm), np.arange(network.n_params)
    H = operator.matmat(np.eye(network.n_params))
    assert len(x) and 0 < np.abs(H).max() < 1e-4
    near(operator.entries(every, every), H)
    near(operator.diagonal(), np.diag(H))
    near(GaussNewton(network, x, comm=comm, dtype=np.float32).matmat(np.eye(network.n_params)), H, 1e-5)


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_entries_without_a_stored_kernel(case, comm, monkeypatch, backend):
    """κ of every pair of neurons from their factors, in pieces of the samples."""
    network, x, y = case
    monkeypatch.setattr(kernel, "STORED_BYTES", 0)
    monkeypatch.setattr(entries, "PIECE", 40)
    I = np.random.default_rng(0).integers(0, network.n_params, 17)
    for made, H in ((GaussNewton, autograd.gauss_newton(network, x)), (EmpiricalFisher, autograd.outer_products(network, x, y))):
        near(made(network, x, y, comm=comm, backend=backend).entries(I, I[3:12]), H[np.ix_(I, I[3:12])])


@pytest.mark.parametrize("wrong", [[0, 10**6], [-1], [0.7], [True]])
def test_indices_that_are_none(comm, wrong):
    network, x, y = make("autoencoder")
    with pytest.raises(InputError, match=f"integers of 0 … {network.n_params - 1}"):
        GaussNewton(network, x, y, comm=comm).entries([0, 1], wrong)
