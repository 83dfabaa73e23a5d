"""Gauss–Newton operators with a weight for every sample against the weighted dense matrix from complex steps."""

import numpy as np
import pytest

from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.curvature.quadrature import Quadrature
from hpcHess.curvature.sample_gram import hessian_gram
from hpcHess.networks.network import Network
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from tests.reference.gauss_newton import gauss_newton

CASES = {  # widths, activation, loss, which layers have a bias
    "one layer, classes": ([5, 4], "relu", "cross-entropy", (True,)),
    "one layer, values": ([5, 4], "relu", "squared-error", (False,)),
    "classes": ([6, 5, 4], "relu", "cross-entropy", (True, True)),
    "classes, some biases": ([5, 4, 4, 3], "tanh", "cross-entropy", (True, False, True)),
    "autoencoder": ([7, 3, 7], "sigmoid", "squared-error", (True, True)),
    "deep autoencoder": ([6, 4, 2, 4, 6], "tanh", "squared-error", (True, True, False, True)),
}
N_SAMPLES = 9
WEIGHTS = np.array([0.3, 0, 2, 0.125, 1e-3, 0, 0.7, 0.1, 5])


def make(name):
    """(network, inputs): input 1 is on in samples 1 and 5 alone."""
    widths, activation, loss, biases = CASES[name]
    rng = np.random.default_rng(len(name))
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [rng.standard_normal(shape) for shape in shapes]
    vectors = [rng.standard_normal(s[0]) if has else None for s, has in zip(shapes, biases, strict=True)]
    inputs = rng.standard_normal((N_SAMPLES, widths[0]))
    inputs[WEIGHTS > 0, 1] = 0
    return Network(weights, vectors, activation, loss), inputs


@pytest.fixture(params=CASES, scope="module")
def case(request, comm):
    """(Σ w_i H_i dense, operator with weights, operator reduced to seven of the samples in some order, float32 operator)."""
    network, inputs = make(request.param)
    H = sum(w * gauss_newton(network, x[None]) for w, x in zip(WEIGHTS, inputs, strict=True))
    weighted = GaussNewton(network, inputs, weights=WEIGHTS, comm=comm)
    chosen = np.flatnonzero(WEIGHTS)
    reduced = GaussNewton(network, inputs, comm=comm).reduced(Quadrature(chosen, WEIGHTS[chosen], 0.0, 1.0, N_SAMPLES))
    single = GaussNewton(network, inputs, weights=WEIGHTS, comm=comm, dtype=np.float32)
    return H, weighted, reduced, single


def near(found, expected, tolerance, scale=None):
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected), initial=0) <= tolerance * np.abs(expected if scale is None else scale).max()


def test_products_entries_diagonal(case, comm):
    H, *operators = case
    V, every = np.random.default_rng(1).standard_normal((len(H), 5)), np.arange(len(H))
    lo, hi = row_starts(len(H), comm.size)[comm.rank : comm.rank + 2]
    for operator, tolerance in zip(operators, (1e-13, 1e-13, 1e-5), strict=True):
        near(operator.matmat(V), H @ V, tolerance)
        near(operator.matmat_rows(V[lo:hi]), (H @ V)[lo:hi], tolerance, H @ V)
        near(operator.entries(every, every), H, tolerance)
        near(operator.entries(every[::3], every[1:4]), H[::3, 1:4], tolerance, H)
        starts = np.array([0, len(every)])
        near(operator.entries_batch(every, starts, every, starts)[0], H, tolerance)
        near(operator.diagonal(), np.diag(H), tolerance)


def test_samples_without_weight_do_not_count(case):
    H, *operators = case
    for operator in operators:
        dead = np.setdiff1d(np.arange(len(H)), operator.alive)
        assert len(dead) and np.all(H[dead] == 0) and np.all(H[operator.alive].any(axis=1))


def test_probe_embeds_the_weighted_matrix(case):
    H, *operators = case
    k = 6000
    deviation = np.sqrt((np.outer(np.diag(H), np.diag(H)) + H**2) / k)
    for operator in operators[:2]:
        Z = operator.probe(k, seed=5)
        assert np.all(np.abs(Z @ Z.T - H) <= 5 * deviation + 1e-15)


def test_groups_are_weighted(case):
    """Inner products of the inputs' vectors and the mean kernel, which is H between biases."""
    H, *operators = case
    for operator in operators[:2]:
        network, (groups, rows), n = operator.network, operator.input_groups(8, 0), operator.n_samples
        inputs = operator.full.samples.X[: network.n_inputs] if operator.quadrature else None
        if inputs is not None:
            chosen = inputs[:, operator.quadrature.samples]
            near(rows[: network.n_inputs] @ rows[: network.n_inputs].T / n, (chosen * operator.quadrature.weights) @ chosen.T, 1e-13)
        kernel, neurons = operator.neuron_groups(100)[3], operator.neuron_groups(100)[0]
        offsets = zip(network.layer_offsets, network.biases, strict=True)
        biases = np.concatenate([np.zeros(0, int), *(at + np.arange(len(b)) for (_, at), b in offsets if b is not None)])
        near(kernel[np.ix_(neurons[biases], neurons[biases])], H[np.ix_(biases, biases)], 1e-13, H)
        assert len(groups) == len(H)


def test_sample_gram_is_of_the_weighted_matrices(case):
    H, *operators = case
    for operator in operators[:2]:
        every = slice(0, operator.n_samples)
        near(hessian_gram(operator.samples, every, every).sum() / operator.n_samples**2, np.square(H).sum(), 1e-13)


def test_equal_weights_are_the_mean(comm):
    network, inputs = make("classes")
    V = np.random.default_rng(0).standard_normal((network.n_params, 2))
    mean, weighted = (GaussNewton(network, inputs, weights=w, comm=comm).matmat(V) for w in (None, np.full(N_SAMPLES, 1 / N_SAMPLES)))
    near(weighted, mean, 1e-14)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-WEIGHTS, r"not negative: -0.3 of sample 0"),
        (np.where(WEIGHTS > 2, np.inf, WEIGHTS), "finite and not negative: inf of sample 8"),
        (np.full(N_SAMPLES, np.nan), "nan of sample 0"),
        (0 * WEIGHTS, "all weights are zero"),
        (WEIGHTS[1:], "weights must be 9 real numbers"),
        (["a"] * N_SAMPLES, "real numbers"),
    ],
)
def test_bad_weights(comm, weights, message):
    network, inputs = make("classes")
    with pytest.raises(InputError, match=message):
        GaussNewton(network, inputs, weights=weights, comm=comm)
