"""The exact and the empirical Fisher matrix against dense ones by complex steps and, for the exact one, its definition as an expectation."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.curvature.fisher import EmpiricalFisher, Fisher
from hpcHess.curvature.from_job import operator_from_job
from hpcHess.curvature.quadrature import quadrature
from hpcHess.curvature.sample_gram import hessian_gram
from hpcHess.networks.network import Network
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.jobfile import load
from tests.drivers.drive import on_root, write_job
from tests.reference.gauss_newton import gauss_newton, outer_products, outputs

CASES = {  # widths, activation, loss, which layers have a bias
    "one layer, classes": ([5, 4], "relu", "cross-entropy", (True,)),
    "one layer, values": ([5, 4], "relu", "squared-error", (False,)),
    "classes, some biases": ([5, 4, 4, 3], "tanh", "cross-entropy", (True, False, True)),
    "autoencoder": ([6, 3, 6], "sigmoid", "squared-error", (True, True)),
    "deep, values": ([4, 6, 3, 5, 2], "tanh", "squared-error", (True, True, False, True)),
}
N_SAMPLES = 9
WEIGHTS = np.array([0.3, 0, 2, 0.125, 1e-3, 0, 0.7, 0.1, 5])


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """(network, inputs, targets); input 1 is 0 in all samples."""
    widths, activation, loss, biases = CASES[request.param]
    rng = np.random.default_rng(len(request.param))
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [rng.standard_normal(shape) for shape in shapes]
    vectors = [rng.standard_normal(s[0]) if has else None for s, has in zip(shapes, biases, strict=True)]
    inputs = rng.standard_normal((N_SAMPLES, widths[0])) * (np.arange(widths[0]) != 1)
    targets = rng.integers(0, widths[-1], N_SAMPLES) if loss == "cross-entropy" else rng.standard_normal((N_SAMPLES, widths[-1]))
    return Network(weights, vectors, activation, loss), inputs, targets


def near(found, expected, tolerance, scale=None):
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected), initial=0) <= tolerance * np.abs(expected if scale is None else scale).max()


def agrees(operator, H, tolerance):
    """Products, entries, diagonal, alive parameters."""
    comm, V, every = operator.comm, np.random.default_rng(1).standard_normal((len(H), 5)), np.arange(len(H))
    lo, hi = row_starts(len(H), comm.size)[comm.rank : comm.rank + 2]
    near(operator.matmat(V), H @ V, tolerance)
    near(operator.matmat_rows(V[lo:hi]), (H @ V)[lo:hi], tolerance, H @ V)
    near(operator.entries(every, every), H, tolerance)
    near(operator.entries(every[::3], every[1:4]), H[::3, 1:4], tolerance, H)
    near(operator.diagonal(), np.diag(H), tolerance)
    dead = np.setdiff1d(every, operator.alive)
    assert len(dead) and np.all(H[dead] == 0) and np.all(H[operator.alive].any(axis=1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_outer_products(case, comm, dtype, tolerance):
    network, inputs, targets = case
    agrees(EmpiricalFisher(network, inputs, targets, comm=comm, dtype=dtype), outer_products(network, inputs, targets), tolerance)
    weighted = sum(w * outer_products(network, inputs[i : i + 1], targets[i : i + 1]) for i, w in enumerate(WEIGHTS))
    agrees(EmpiricalFisher(network, inputs, targets, weights=WEIGHTS, comm=comm, dtype=dtype), weighted, tolerance)


def expectation(network, x):
    """E_y g(y) g(y)ᵀ of one sample from the definition: a sum over the classes, or over the 2 d points z ± √d e_k of covariance I."""
    shapes, has_bias = [W.shape for W in network.weights], [b is not None for b in network.biases]
    z = outputs(network.parameters().astype(complex), shapes, has_bias, network.activation, x).real
    if network.loss == "cross-entropy":
        p = np.exp(z) / np.exp(z).sum()
        return sum(p[y] * outer_products(network, x[None], [y]) for y in range(len(z)))
    points = [z + sign * np.sqrt(len(z)) * e for e in np.eye(len(z)) for sign in (1, -1)]
    return sum(outer_products(network, x[None], [y]) for y in points) / len(points) / 4  # −log p = ‖z − y‖²/2: half the gradient


def test_the_exact_fisher_matrix_is_the_expectation(case, comm):
    network, inputs, _ = case
    agrees(Fisher(network, inputs, comm=comm), sum(expectation(network, x) for x in inputs) / N_SAMPLES, 1e-13)
    weighted = sum(w * expectation(network, x) for x, w in zip(inputs, WEIGHTS, strict=True))
    agrees(Fisher(network, inputs, weights=WEIGHTS, comm=comm), weighted, 1e-13)
    half = 0.5 if network.loss == "squared-error" else 1
    near(Fisher(network, inputs, comm=comm).matmat(np.eye(network.n_params)), half * gauss_newton(network, inputs), 1e-13)


def test_probe_embeds(case, comm):
    network, inputs, targets = case
    k = 2000
    for operator in (EmpiricalFisher(network, inputs, targets, comm=comm), Fisher(network, inputs, comm=comm)):
        H, Z = operator.matmat(np.eye(network.n_params)), operator.probe(k, seed=5)
        deviation = np.sqrt((np.outer(np.diag(H), np.diag(H)) + H**2) / k)
        assert np.all(np.abs(Z @ Z.T - H) <= 5 * deviation + 1e-15)


def test_inner_products_and_fewer_samples(case, comm):
    network, inputs, targets = case
    H = np.array([outer_products(network, inputs[i : i + 1], targets[i : i + 1]).ravel() for i in range(N_SAMPLES)])
    operator = EmpiricalFisher(network, inputs, targets, comm=comm)
    near(hessian_gram(operator.samples, slice(0, None), slice(0, None)), H @ H.T, 1e-12)
    found = quadrature(operator, count=4)
    mean, chosen = H.mean(axis=0), found.weights @ H[found.samples]
    assert abs(found.error - np.linalg.norm(mean - chosen) / np.linalg.norm(mean)) <= 1e-10
    agrees_with = operator.reduced(found)
    assert type(agrees_with) is EmpiricalFisher and agrees_with.full is operator
    near(agrees_with.matmat(np.eye(network.n_params)), chosen.reshape(operator.shape), 1e-13)


def test_any_number_of_ranks_gives_the_same(case, comm):
    network, inputs, targets = case
    V = np.random.default_rng(0).standard_normal((network.n_params, 3))
    alone, together = (EmpiricalFisher(network, inputs, targets, comm=each) for each in (MPI.COMM_SELF, comm))
    near(together.matmat(V), alone.matmat(V), 1e-14)
    near(together.probe(6, 3), alone.probe(6, 3), 1e-14)


def test_sure_samples_keep_their_digits():
    """The gradient of a label of probability near 1 is not lost by cancellation."""
    network = Network([np.array([[38.0], [0.0]])], loss="cross-entropy")
    operator = EmpiricalFisher(network, np.ones((1, 1)), np.array([0]), comm=MPI.COMM_SELF)
    q = np.exp(-38.0) / (1 + np.exp(-38.0))
    near(operator.entries([0, 1], [0, 1]), q**2 * np.array([[1, -1], [-1, 1]]), 1e-13)


def test_targets_are_needed(comm):
    network = Network([np.ones((2, 3))])
    with pytest.raises(InputError, match="empirical Fisher matrix needs the targets"):
        EmpiricalFisher(network, np.ones((4, 3)), comm=comm)


def test_kinds_of_jobs(comm, shared_tmp):
    path = on_root(lambda: write_job(shared_tmp, loss="squared-error"))
    made = {kind: operator_from_job(load(path, [f"curvature.kind={kind}"]), comm)[0] for kind in ("gauss-newton", "fisher", "opg")}
    V = np.random.default_rng(0).standard_normal((made["opg"].n_params, 3))
    assert type(made["opg"]) is EmpiricalFisher and np.linalg.matrix_rank(made["opg"].matmat(np.eye(len(V)))) <= 60
    near(made["fisher"].matmat(V), made["gauss-newton"].matmat(V) / 2, 1e-13)
