"""The exact Hessian against dense ones by automatic differentiation, and larger pieces against Hessian-vector products of it."""

import numpy as np
import pytest
from mpi4py import MPI

torch = pytest.importorskip("torch", reason="the oracle is PyTorch's automatic differentiation")

from hpcHess.curvature import entries, gradients, hessian_entries, hessian_kernel, hessian_products, kernel  # noqa: E402
from hpcHess.curvature.hessian import Hessian  # noqa: E402
from hpcHess.networks.network import Network  # noqa: E402
from hpcHess.runtime.errors import InputError  # noqa: E402
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
