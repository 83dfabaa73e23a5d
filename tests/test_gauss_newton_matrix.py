"""The dense Gauss–Newton test matrix, from a small network instead of MNIST's."""

import numpy as np
import pytest

from benchmarks import gauss_newton_matrix as made
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.networks.network import Network
from tests.reference.gauss_newton import gauss_newton


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    return Network([rng.standard_normal((5, 7)), rng.standard_normal((3, 5))], [rng.standard_normal(5), rng.standard_normal(3)], "tanh")


def test_the_largest_diagonal_entries_are_kept_in_order():
    kept, scale = made.selection(np.array([0.5, 3.0, 0.0, 2.0, 3.0, 0.5]), 4)
    assert kept.tolist() == [0, 1, 3, 4] and scale == 4 / 8.5


@pytest.mark.parametrize("n", [1, 20, 58])
def test_blocks_make_up_the_matrix(comm, network, monkeypatch, n):
    monkeypatch.setattr(made, "ROWS", 16)
    x = np.random.default_rng(1).standard_normal((30, 7)).astype(np.float32)
    operator = GaussNewton(network, x, comm=comm, dtype=np.float32)
    kept, scale = made.selection(operator.diagonal(), n)
    matrix = np.full((n, n), np.nan, np.float32)
    for first in range(0, n, 16):
        made.fill_block(operator, kept, scale, matrix, first)
    H = gauss_newton(network, x.astype(np.float64))[np.ix_(kept, kept)]
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix, H * (n / np.trace(H)), rtol=0, atol=2e-6 * np.abs(matrix).max())
    assert abs(np.diagonal(matrix).mean() - 1) < 1e-6
