"""The three ways to the singular values of rearranged blocks against each other and the dense SVD."""

import numpy as np
import pytest

from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.kronecker import spectra
from hpcHess.kronecker.compress import pairs_of
from hpcHess.kronecker.layers import layers_of
from hpcHess.kronecker.selection import choose, grown, squared_error
from hpcHess.kronecker.spectra import route_of, spectra_of
from tests.curvature.test_gauss_newton import CASES, make
from tests.reference.gauss_newton import gauss_newton
from tests.reference.kronecker import matrix_order, rearranged


def prepared(name, comm, n=21):
    network, inputs = make(name, n)
    operator = GaussNewton(network, inputs, comm=comm)
    return network, inputs, operator, pairs_of(operator, layers_of(operator), 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_routes_against_the_dense_svd(name, comm):
    network, inputs, operator, pairs = prepared(name, comm)
    H, order = gauss_newton(network, inputs), matrix_order(network)
    for route, tolerance in (("explicit", 1e-13), ("gram", 1e-13), ("randomized", 1e-10)):
        for each in spectra_of(pairs, comm, operator.mine, route=route):
            while each.grow():
                pass
            assert each.route == route
            R = rearranged(H, *(order[layer] for layer in each.pair.layers))
            U, s, Vt = np.linalg.svd(R, full_matrices=False)
            k = len(each.values)
            assert k >= (s > 1e-6 * s[0]).sum()
            assert np.abs(each.values - s[:k]).max() <= tolerance * s[0]
            assert abs(each.norm2 - (s**2).sum()) <= 1e-13 * s[0] ** 2
            tails = np.append(np.cumsum((s**2)[::-1])[::-1], 0)[: k + 1]
            assert np.abs(each.tails - tails).max() <= 1e-13 * s[0] ** 2
            left, right = each.vectors(0, k)
            np.testing.assert_allclose(left @ left.T, np.eye(k), atol=1e-4)  # small singular values by Gram matrices: few digits
            few = slice(0, int((s[:k] > 1e-3 * s[0]).sum()))
            for V in (left[few], right[few]):
                np.testing.assert_allclose(V @ V.T, np.eye(len(V)), atol=1e-8)
            assert abs(np.linalg.norm((left.T * each.values) @ right) ** 2 - (s**2).sum()) <= 1e-10 * s[0] ** 2


def test_random_projections_grow_until_the_terms_are_enough(comm, monkeypatch):
    monkeypatch.setattr(spectra, "BLOCK", 10)
    _, _, operator, pairs = prepared("tanh classes, some biases", comm, 40)
    exact = spectra_of(pairs, comm, operator.mine, route="explicit")
    made = spectra_of(pairs, comm, operator.mine, route="randomized")
    first = [len(each.values) for each in made]
    assert min(each.tails[-1] / each.norm2 for each in made) >= 0
    for rtol in (0.3, 1e-2, 1e-5):
        counts, error = grown(made, rtol)
        expected, known, _ = choose(exact, rtol)
        assert error <= rtol
        assert abs(error - known) <= 0.3 * rtol and abs(counts.sum() - expected.sum()) <= 2
    assert [len(each.values) for each in made] != first
    total = sum(each.pair.times * each.norm2 for each in exact)
    assert abs(squared_error(made, counts) / total - error**2) <= 1e-15


def test_the_projection_is_known_exactly(comm, monkeypatch):
    """Even a poor basis (few columns) tells the error of what it offers."""
    monkeypatch.setattr(spectra, "BLOCK", 9)
    network, inputs, operator, pairs = prepared("deep autoencoder", comm, 40)
    H, order = gauss_newton(network, inputs), matrix_order(network)
    for each in spectra_of(pairs, comm, operator.mine, route="randomized", seed=3):
        left, right = each.vectors(0, len(each.values))
        R = rearranged(H, *(order[layer] for layer in each.pair.layers))
        found = each.pair.kernels.unpack(left * each.values[:, None])
        if each.pair.kernels.kind != "full":
            continue
        approximation = np.einsum("kx,ky->xy", found.reshape(len(left), -1), each.pair.inputs.unpack(right).reshape(len(left), -1))
        if approximation.shape == R.shape:
            square = np.linalg.norm(R - approximation) ** 2
            assert abs(square - each.tails[-1]) <= 1e-12 * each.norm2


def test_the_result_does_not_depend_on_the_ranks(comm):
    """The seed alone determines the random basis: the same singular values to rounding as one rank finds."""
    from mpi4py import MPI

    found = []
    for each in (comm, MPI.COMM_SELF):
        _, _, operator, pairs = prepared("relu classes", each, 30)
        found.append([made.values for made in spectra_of(pairs, each, operator.mine, route="randomized", seed=7)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * one[0])


def test_routes_are_chosen_by_size():
    class Side:
        def __init__(self, D):
            self.D, self.shape = D, (int(D**0.5),) * 2

    class Sized:
        def __init__(self, n, kernels, inputs):
            self.n, self.kernels, self.inputs = n, Side(kernels), Side(inputs)

    assert route_of(Sized(1000, 3003, 300_000)) == "gram"
    assert route_of(Sized(1000, 77, 50_000)) == "explicit"
    assert route_of(Sized(60_000, 3003, 300_000)) == "randomized"
    assert route_of(Sized(60_000, 100, 3_000)) == "explicit"
    assert route_of(Sized(60_000, 55, 300_000)) == "explicit"
