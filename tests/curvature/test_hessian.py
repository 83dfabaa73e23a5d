"""The exact Hessian against dense ones by automatic differentiation, and larger pieces against Hessian-vector products of it."""

import tracemalloc

import numpy as np
import pytest
from mpi4py import MPI

torch = pytest.importorskip("torch", reason="the oracle is PyTorch's automatic differentiation")

from hpcHess.backend import entries as backend_entries  # noqa: E402
from hpcHess.curvature import blocking, gauss_newton, gradients, hessian_entries, hessian_kernel, kernel  # noqa: E402
from hpcHess.curvature.gauss_newton import GaussNewton  # noqa: E402
from hpcHess.curvature.hessian import Hessian  # noqa: E402
from hpcHess.networks.network import Network  # noqa: E402
from hpcHess.runtime.errors import InputError  # noqa: E402
from tests.backend.device_arrays import DeviceBackend  # noqa: E402
from tests.curvature.networks import CASES, WEIGHTS, make  # noqa: E402
from tests.reference import autograd  # noqa: E402

DEEP = ["classes, mixed", "values, deep, output tanh", "deep linear, values", "binary, many outputs"]


def near(found, expected, tolerance, scale=None):
    scale = np.abs(expected if scale is None else scale).max()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max(initial=0) <= tolerance * scale


def agrees(operator, H, tolerance, seed=0):
    """Products, entries in any order and shape, batches, diagonal and dead rows are those of the dense H."""
    rng, n = np.random.default_rng(seed), len(H)
    assert operator.shape == H.shape and operator.n_params == n
    V = rng.standard_normal((n, 5)).astype(operator.dtype)
    near(operator.matmat(V), H @ V, 3 * tolerance)
    near(operator @ V[:, 0], H @ V[:, 0], 3 * tolerance)
    lo, hi = operator.parameter_starts[operator.comm.rank :][:2]
    near(operator.matmat_rows(V[lo:hi]), (H @ V)[lo:hi], 3 * tolerance, H @ V)
    every = rng.permutation(n)
    near(operator.entries(every, every), H[np.ix_(every, every)], tolerance, H)
    starts_I, starts_J = np.array([0, 1, 1, 9, 40, 40 + n]), np.array([0, 30, 35, 44, 45, 45 + n // 2])
    I, J = rng.integers(0, n, starts_I[-1]), rng.integers(0, n, starts_J[-1])
    blocks = operator.entries_batch(I, starts_I, J, starts_J)
    for b in range(5):
        rows, columns = I[starts_I[b] : starts_I[b + 1]], J[starts_J[b] : starts_J[b + 1]]
        near(blocks[b], H[np.ix_(rows, columns)], tolerance, H)
        near(operator.entries(rows, columns), H[np.ix_(rows, columns)], tolerance, H)
    near(operator.diagonal(), np.diag(H), tolerance, H)
    dead = np.setdiff1d(np.arange(n), operator.alive)
    assert not H[dead].any() and not operator.entries(dead, np.arange(n)).any()
    return dead


@pytest.mark.parametrize("name", CASES)
def test_against_automatic_differentiation(comm, name):
    network, inputs, targets = make(name)
    operator = Hessian(network, inputs, targets, comm=comm)
    H = autograd.hessian(network, inputs, targets)
    dead = agrees(operator, H, 1e-12)
    first = np.arange(network.weights[0].size).reshape(network.weights[0].shape)[:, 1]  # its input is 0 in all samples
    assert np.isin(first, dead).all()
    operator.close()


@pytest.mark.parametrize("name", CASES)
def test_weights_and_chosen_layers(comm, name):
    network, inputs, targets = make(name)
    near_all = agrees(Hessian(network, inputs, targets, WEIGHTS, comm), autograd.hessian(network, inputs, targets, WEIGHTS), 1e-12)
    assert len(near_all) < network.n_params
    for layers in ([0], [network.n_layers - 1], [1, 3] if network.n_layers > 3 else [network.n_layers - 1, 0]):
        part = network.restricted(set(layers))
        agrees(Hessian(part, inputs, targets, WEIGHTS, comm), autograd.hessian(part, inputs, targets, WEIGHTS), 1e-12)


@pytest.mark.parametrize("name", DEEP)
def test_single_precision(comm, name):
    network, inputs, targets = make(name)
    operator = Hessian(network, inputs, targets, comm=comm, dtype=np.float32)
    assert operator.entries([0], [1]).dtype == operator.diagonal().dtype == operator.matmat(np.ones(network.n_params)).dtype == np.float32
    agrees(operator, autograd.hessian(network, inputs, targets), 1e-5)


@pytest.mark.parametrize("name", [*DEEP, "autoencoder", "values, output sigmoid", "classes, gelu, some biases"])
def test_blocks_do_not_change_the_result(comm, monkeypatch, name):
    """Kernel not stored, everything in small pieces."""
    network, inputs, targets = make(name)
    for module, limit, value in (
        (blocking, "TEMPORARY_BYTES", 8000), (blocking, "SAMPLES", 2), (hessian_entries, "_PIECE", 64), (backend_entries, "PIECE", 64),
        (hessian_entries, "_ROWS", 64), (hessian_kernel, "_NUMBERS", 99), (kernel, "STORED_BYTES", 0), (gradients, "_BLOCK", 64),
    ):  # fmt: skip
        monkeypatch.setattr(module, limit, value)
    monkeypatch.setattr(gauss_newton, "_SAMPLES", 2)
    agrees(Hessian(network, inputs, targets, WEIGHTS, comm), autograd.hessian(network, inputs, targets, WEIGHTS), 1e-12)


def hessian_columns(network, inputs, targets, V):
    """HV by automatic differentiation, a column of V [N, k] at a time."""
    theta, x = autograd.parameters(network), torch.tensor(inputs)
    y = torch.tensor(targets)

    def mean(t):
        return torch.stack([autograd.loss(network, autograd.outputs(network, t, x[i]), y[i]) for i in range(len(x))]).mean()

    one = lambda v: torch.func.jvp(torch.func.grad(mean), (theta,), (v,))[1]  # noqa: E731
    return np.stack([one(torch.tensor(v)).numpy() for v in V.T], axis=1)


@pytest.mark.parametrize("stored", [True, False])
def test_deep_and_wide_networks(comm, monkeypatch, stored):
    """60-20-20-20-10 tanh, classes, and a 784-77-784 sigmoid autoencoder of two samples: pieces of them."""
    if not stored:
        monkeypatch.setattr(kernel, "STORED_BYTES", 0)
    rng = np.random.default_rng(3)
    for widths, activation, loss, n in (([60, 20, 20, 20, 10], "tanh", "cross-entropy", 40), ([784, 77, 784], "sigmoid", "squared-error", 2)):
        shapes = list(zip(widths[1:], widths[:-1], strict=True))
        weights = [1.5 * rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes]
        network = Network(weights, [rng.standard_normal(shape[0]) for shape in shapes], activation, loss)
        inputs = rng.random((n, widths[0]))
        targets = inputs if loss == "squared-error" else rng.integers(0, widths[-1], n)
        operator = Hessian(network, inputs, targets, comm=comm)
        columns = np.sort(rng.choice(network.n_params, 4, replace=False))
        V = np.zeros((network.n_params, 6))
        V[columns, range(4)], V[:, 4:] = 1, rng.standard_normal((network.n_params, 2))
        expected = hessian_columns(network, inputs, targets, V)
        near(operator.matmat(V), expected, 1e-12)
        rows = np.concatenate([columns, rng.choice(network.n_params, 2000)])
        near(operator.entries(rows, columns), expected[rows, :4], 1e-12)
        near(operator.entries(columns, rows), expected[rows, :4].T, 1e-12)
        near(operator.diagonal()[columns], expected[columns, range(4)], 1e-12, expected[:, :4])


@pytest.mark.parametrize("width", [2, 9])
def test_last_layer_contracted_or_not(comm, width):
    """Squared error with many outputs: both forms of the last layer's product, several blocks of samples and columns."""
    rng = np.random.default_rng(width)
    network = Network([rng.standard_normal((width, 3)), rng.standard_normal((12, width))], [None, rng.standard_normal(12)], "tanh", "squared-error")
    inputs, targets = rng.standard_normal((9, 3)), rng.standard_normal((9, 12))
    operator = Hessian(network, inputs, targets, comm=comm)
    assert comm.size > 1 or operator._products.contracted == (width == 2)
    agrees(operator, autograd.hessian(network, inputs, targets), 1e-12)


@pytest.mark.parametrize("name", ["autoencoder", "binary, many outputs", "values, deep, output tanh"])
def test_products_on_arrays_that_refuse_implicit_conversion(comm, monkeypatch, name):
    network, inputs, targets = make(name)
    monkeypatch.setattr(blocking, "SAMPLES", 2)
    device = Hessian(network, inputs, targets, comm=comm, backend=DeviceBackend())
    assert device._products.X.__class__.__name__ == "DeviceArray"
    V = np.random.default_rng(0).standard_normal((network.n_params, 3))
    near(device.matmat(V), autograd.hessian(network, inputs, targets) @ V, 1e-12)


@pytest.mark.parametrize("widths, loss", [([60, 50, 60], "squared-error"), ([30, 20, 100], "squared-error"), ([50, 40, 30, 10], "cross-entropy")])
def test_temporaries_stay_within_their_bound(monkeypatch, widths, loss):
    monkeypatch.setattr(blocking, "TEMPORARY_BYTES", 1 << 22)
    rng, n = np.random.default_rng(0), 500
    network = Network([rng.standard_normal(shape) for shape in zip(widths[1:], widths[:-1], strict=True)], None, "tanh", loss)
    targets = rng.standard_normal((n, widths[-1])) if loss == "squared-error" else rng.integers(0, widths[-1], n)
    operator = Hessian(network, rng.standard_normal((n, widths[0])), targets, comm=MPI.COMM_SELF)
    V = rng.standard_normal((network.n_params, 30))
    tracemalloc.start()
    result = operator.partial_matmat(V)
    used = tracemalloc.get_traced_memory()[1] - result.nbytes
    tracemalloc.stop()
    assert (1 << 22) / 10 < used <= 1.05 * (1 << 22), used


def used_by(call):
    """(result, bytes at most in use during a call)."""
    tracemalloc.start()
    result = call()
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, used


def test_temporaries_of_diagonal_and_dead_rows_do_not_grow_with_the_inputs(monkeypatch):
    """Pieces of the samples by the width: 600 samples of 4000 inputs are 19 MB in float64."""
    monkeypatch.setattr(gauss_newton, "_NUMBERS", 1 << 17)
    rng = np.random.default_rng(0)
    network = Network([rng.standard_normal((3, 4000)) / 60, rng.standard_normal((2, 3))], None, "tanh", "cross-entropy")
    operator = Hessian(network, rng.standard_normal((600, 4000)), rng.integers(0, 2, 600), comm=MPI.COMM_SELF)
    for call in (operator.diagonal, operator._alive):
        assert used_by(call)[1] - 3 * 8 * network.n_params <= 1.5 * 8 * gauss_newton._NUMBERS


def test_temporaries_of_entries_without_a_stored_kernel_do_not_grow_with_the_neurons(monkeypatch):
    """A block of 2 × 2 parameters, two layers apart: 4000 samples of 200 neurons are 6.4 MB."""
    monkeypatch.setattr(kernel, "STORED_BYTES", 0)
    rng = np.random.default_rng(0)
    network = Network([rng.standard_normal(shape) / 14 for shape in ((200, 5), (200, 200), (200, 200), (1, 200))], None, "tanh", "squared-error")
    operator = Hessian(network, rng.standard_normal((4000, 5)), rng.standard_normal((4000, 1)), comm=MPI.COMM_SELF)
    I, J = np.array([0, 3]), 1000 + 200**2 + np.array([0, 7])
    expected = operator.entries(I, J)
    monkeypatch.setattr(hessian_kernel, "_NUMBERS", 1 << 16)
    monkeypatch.setattr(hessian_entries, "_PIECE", 1 << 16)
    found, used = used_by(lambda: operator.entries(I, J))
    near(found, expected, 1e-12)
    assert used <= 4 * 8 * hessian_kernel._NUMBERS, used


def test_dead_rows_are_found(comm):
    """An input that is always 0, a ReLU that never fires; but not an input that is 0 and moves."""
    W = [np.array([[1.0, 2, -1], [-1, -1, -1], [0.5, 1, 1]]), np.array([[1.0, 1, -1], [2, 1, 1]])]
    inputs, y = np.array([[1.0, 0, 2], [3, 0, 0.5]]), np.array([0, 1])
    operator = Hessian(Network(W, activation="relu", loss="cross-entropy"), inputs, y, comm=comm)
    H = autograd.hessian(operator.network, inputs, y)
    assert operator.alive.tolist() == np.flatnonzero(H.any(axis=1)).tolist() == [0, 2, 6, 8, 9, 11, 12, 14]
    network = Network([np.zeros((2, 3)), np.array([[1.0, -1], [2, 1]])], activation="tanh", loss="cross-entropy")
    operator = Hessian(network, inputs, y, comm=comm)  # x = tanh 0 = 0 meets no Q, its change meets δ
    H = autograd.hessian(network, inputs, y)
    assert not operator.entries(np.arange(6, 10), np.arange(6, 10)).any()
    assert operator.alive.tolist() == np.flatnonzero(H.any(axis=1)).tolist() and np.isin(np.arange(6, 10), operator.alive).all()


def test_rows_that_move_through_a_layer_that_is_not_chosen(comm):
    """The inputs of the last layer are 0 in all samples, and moved by the first layer alone, by way of a second one that is constant."""
    rng = np.random.default_rng(0)
    network = Network([np.zeros((2, 3)), rng.standard_normal((2, 2)), rng.standard_normal((2, 2))], None, "tanh", "cross-entropy").restricted([0, 2])
    inputs, y = np.array([[1.0, 0, 2], [3, 0, 0.5]]), np.array([0, 1])
    operator, H = Hessian(network, inputs, y, comm=comm), autograd.hessian(network, inputs, y)
    assert not H[6:, 6:].any() and H[6:].any(axis=1).all()
    assert operator.alive.tolist() == np.flatnonzero(H.any(axis=1)).tolist() == [0, 2, 3, 5, 6, 7, 8, 9]
    agrees(operator, H, 1e-12)


@pytest.mark.parametrize("activation, layers", [("tanh", [0]), ("tanh", [0, 1]), ("relu", [0, 1])])
def test_rows_that_the_gauss_newton_matrix_has_dead(comm, activation, layers):
    """A sample that is surely of the wrong class: Q is zero, what is left is s'' (the first layer alone) and δ (both layers, no s'')."""
    network = Network([np.array([[1.0, 0.5]]), np.array([[2000.0], [-2000.0]])], None, activation, "cross-entropy").restricted(layers)
    inputs, y = np.array([[1.0, 0.5]]), np.array([1])
    operator, H = Hessian(network, inputs, y, comm=comm), autograd.hessian(network, inputs, y)
    assert H.any(axis=1).all() and not GaussNewton(network, inputs, y, comm=comm).diagonal().any()
    agrees(operator, H, 1e-12)


def test_gauss_newton_part_embeds(comm):
    """The probe and the groups of inputs and neurons are the Gauss–Newton matrix's; there are no samples to take for those of a Gram matrix."""
    network, inputs, targets = make("classes, mixed")
    operator, G = Hessian(network, inputs, targets, comm=comm), GaussNewton(network, inputs, targets, comm=comm)
    near(operator.partial_probe(3, 1), G.partial_probe(3, 1), 1e-15)
    for found, expected in zip((*operator.input_groups(8, 1), *operator.neuron_groups(99)), (*G.input_groups(8, 1), *G.neuron_groups(99)), strict=True):
        near(found, expected, 1e-13)
    assert not hasattr(operator, "samples") and operator.full is operator and operator.quadrature is None
    assert (operator.n_samples, operator.n_outputs) == (9, 3)


def test_bad_input(comm):
    network, inputs, targets = make("autoencoder")
    with pytest.raises(InputError, match="needs the targets"):
        Hessian(network, inputs, comm=comm)
    with pytest.raises(InputError, match="dtype"):
        Hessian(network, inputs, targets, comm=comm, dtype=int)
    with pytest.raises(InputError, match="weights"):
        Hessian(network, inputs, targets, -WEIGHTS, comm)
    with pytest.raises(InputError, match="targets"):
        Hessian(network, inputs, targets[:, :2], comm=comm)
    with pytest.raises(InputError, match="overflow"):
        Hessian(network, inputs, 1e39 * targets, comm=comm, dtype=np.float32)
