"""Inner products of the samples' matrices against dense ones from complex steps."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.curvature import sample_gram
from hpcHess.curvature.fisher import EmpiricalFisher, MonteCarloFisher
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.sample_gram import hessian_gram, hessian_norm, hessian_norms2, input_gram, kernel_gram
from hpcHess.curvature.samples import Samples
from hpcHess.networks.network import Network
from tests.curvature import networks
from tests.reference.gauss_newton import gauss_newton

CASES = {  # widths, activation, loss, which layers have a bias
    "one layer, classes": ([5, 4], "relu", "cross-entropy", (True,)),
    "one layer, values": ([5, 4], "relu", "squared-error", (False,)),
    "two layers, classes": ([5, 6, 3], "sigmoid", "cross-entropy", (True, True)),
    "autoencoder": ([6, 3, 6], "tanh", "squared-error", (True, False)),
    "few values": ([4, 6, 2], "tanh", "squared-error", (True, True)),
    "three layers, classes": ([5, 4, 4, 3], "relu", "cross-entropy", (True, False, True)),
    "three layers, values": ([5, 4, 3, 4], "sigmoid", "squared-error", (False, True, True)),
    "four layers, classes, wide": ([4, 9, 8, 5, 2], "tanh", "cross-entropy", (True, True, False, False)),
    "four layers, values": ([5, 4, 2, 4, 5], "tanh", "squared-error", (True, True, True, True)),
    "four layers, one value": ([3, 7, 6, 4, 1], "sigmoid", "squared-error", (False, False, False, False)),
}
N_SAMPLES = 7
I, J = np.array([4, 0, 4, 6, 2]), slice(1, 6)


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """(network, samples in float64, the dense H_i [n, N, N])."""
    widths, activation, loss, biases = CASES[request.param]
    rng = np.random.default_rng(len(request.param))
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [rng.standard_normal(shape) for shape in shapes]
    network = Network(weights, [rng.standard_normal(s[0]) if has else None for s, has in zip(shapes, biases, strict=True)], activation, loss)
    inputs = rng.standard_normal((N_SAMPLES, widths[0]))
    inputs[3] = inputs[0]
    dense = np.array([gauss_newton(network, x[None]) for x in inputs])
    return network, Samples(network, inputs, MPI.COMM_SELF, np.float64), dense


@pytest.fixture(params=["chosen", "features", "factors"])
def way(request, monkeypatch):
    """Each of the two ways alone, and the one that is cheaper."""
    if request.param != "chosen":
        only = request.param == "factors"
        monkeypatch.setattr(sample_gram, "_factors_pay", lambda samples, layers, _: only and all(samples.M[layer] is None for layer in layers))


def parts(network):
    """Parameters of every layer, as index arrays [d_ℓ, d̃_{ℓ−1}] with the bias last."""
    for (at, bias), W in zip(network.layer_offsets, network.weights, strict=True):
        of = at + np.arange(W.size).reshape(W.shape)
        yield of if bias is None else np.column_stack([of, bias + np.arange(len(W))])


def near(found, expected, tolerance=1e-12):
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected), initial=0) <= tolerance * np.abs(expected).max()


def test_inner_products_of_the_matrices(case, way):
    _, samples, H = case
    flat = H.reshape(len(H), -1)
    near(hessian_gram(samples, I, J), flat[I] @ flat[J].T)
    near(hessian_norms2(samples, I), np.square(flat[I]).sum(axis=1))
    near(hessian_gram(samples, I, J, np.float32), flat[I] @ flat[J].T, 3e-6)
    assert hessian_gram(samples, I, J, np.float32).dtype == np.float32


def test_every_pair_of_layers(case, way):
    """The product of the two Gram matrices is that of the blocks of the dense matrices."""
    network, samples, H = case
    layers = [each.ravel() for each in parts(network)]
    for one, rows in enumerate(layers):
        for other, columns in enumerate(layers):
            blocks = H[:, rows[:, None], columns].reshape(len(H), -1)
            found = input_gram(samples, one, other, I, J) * kernel_gram(samples, one, other, I, J)
            near(found, blocks[I] @ blocks[J].T)


def test_inputs_alone(case):
    """Inputs of the first layer; a bias counts where there is one."""
    network, samples, _ = case
    x = samples.X[: network.n_inputs]
    expected = x[:, I].T @ x[:, J] + (network.biases[0] is not None)
    near(input_gram(samples, 0, 0, I, J), expected**2)


@pytest.mark.parametrize("name, value", [("_LARGEST", 2), ("_TEMPORARY", 40)])
def test_blocks_do_not_change_the_result(case, way, monkeypatch, name, value):
    _, samples, _ = case
    expected = hessian_gram(samples, I, J), kernel_gram(samples, 0, samples.n_layers - 1, I, J), hessian_norms2(samples, slice(0, None))
    monkeypatch.setattr(sample_gram, name, value)
    found = hessian_gram(samples, I, J), kernel_gram(samples, 0, samples.n_layers - 1, I, J), hessian_norms2(samples, slice(0, None))
    for each, other in zip(found, expected, strict=True):
        near(each, other, 1e-14)
    assert hessian_gram(samples, I[:0], J).shape == (0, 5)


@pytest.mark.parametrize("name", networks.CASES)
def test_every_loss_every_kind_some_layers(name, way):
    """Against the matrices of single samples by automatic differentiation, with weights, of all layers and of some."""
    pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed")
    from tests.reference import autograd

    network, x, y = networks.make(name)
    n, weights, self_comm = len(x), networks.WEIGHTS, MPI.COMM_SELF
    for layers in [range(network.n_layers), [network.n_layers - 1], *([[0], [0, network.n_layers - 1]] if network.n_layers > 2 else [])]:
        part = network.restricted(layers)
        ones = [(part, x[i : i + 1]) for i in range(n)]
        outer = np.array([autograd.outer_products(*each, y[i : i + 1]) for i, each in enumerate(ones)])
        half = np.array([n * w * autograd.gauss_newton(*each) for w, each in zip(weights, ones, strict=True)])
        for operator, H in ((EmpiricalFisher(part, x, y, comm=self_comm), outer), (GaussNewton(part, x, weights=weights, comm=self_comm), half)):
            flat = H.reshape(n, -1)
            near(hessian_gram(operator.samples, I, J), flat[I] @ flat[J].T)
            near(hessian_norms2(operator.samples, I), np.square(flat[I]).sum(axis=1))
            near(hessian_gram(operator.samples, I, J, np.float32), flat[I] @ flat[J].T, 3e-6)
            assert hessian_norm(operator.samples, self_comm) == pytest.approx(np.linalg.norm(H.mean(axis=0)), rel=1e-12)
    drawn = MonteCarloFisher(part, x, comm=self_comm, draws=2)
    assert hessian_norm(drawn.samples, self_comm) == pytest.approx(np.linalg.norm(drawn.matmat(np.eye(part.n_params))), rel=1e-12)
