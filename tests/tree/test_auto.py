"""distance = "auto": the tree that it chooses is the cheapest one, or nearly."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.hierarchical.compress import compress
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import InputError
from hpcHess.tree.auto import cheapest_tree, predicted_storage
from hpcHess.tree.build import build_tree
from tests.reference.dense_operator import DenseOperator, exponential_kernel
from tests.tree.test_neurons import network, smooth_inputs

DISTANCES = ("neuron", "input", "parameter")


def stored(operator, distance, rtol):
    return compress(operator, rtol=rtol, leaf_size=12, distance=distance).report["storage_entries"]


def autoencoder(comm):
    """Output neurons do not couple: trees that respect neurons win."""
    inputs = smooth_inputs(40, 30)
    return GaussNewton(network((30, 4, 30), "squared-error"), inputs, inputs, comm=comm), 1e-1


def classifier(comm):
    """ReLU masks that differ, inputs of few directions: the parameters' own order wins."""
    return GaussNewton(network((40, 8, 4)), smooth_inputs(50, 40), comm=comm), 1e-2


def alike(comm):
    """Neurons that are all active: their kernel has rank one, the inputs' correlations decay: trees of inputs win."""
    rng, place = np.random.default_rng(0), np.random.default_rng(1).permutation(40)
    decay = np.exp(-np.abs(np.subtract.outer(np.arange(40), np.arange(40))) / 4)
    inputs = (rng.standard_normal((60, 40)) @ np.linalg.cholesky(decay).T)[:, place] + 0.5
    given = network((40, 12, 2))
    return GaussNewton(Network(given.weights, [np.full(12, 9.0), given.biases[1]], "relu", "cross-entropy"), inputs, comm=comm), 1e-2


@pytest.mark.parametrize("case, winner", [(autoencoder, "neuron"), (classifier, "parameter"), (alike, "input")])
def test_nearly_the_cheapest(comm, case, winner):
    operator, rtol = case(comm)
    best, _, predictions = cheapest_tree(operator, 12, 0, rtol)
    true = {distance: stored(operator, distance, rtol) for distance in DISTANCES}
    assert set(predictions) == set(DISTANCES) and predictions[best] <= 1.1 * min(predictions.values())
    assert true[best] <= 1.15 * min(true.values()), (best, predictions, true)
    assert min(true, key=true.get) == winner and max(true.values()) > 1.2 * min(true.values()), "a choice that matters"
    for distance, predicted in predictions.items():
        assert 0.4 < predicted / true[distance] < 2.5


def test_matrix_without_a_network(comm):
    """Points in their own order are hard, clustered by the kernel easy."""
    operator = DenseOperator(exponential_kernel(256), comm)
    best, tree, predictions = cheapest_tree(operator, 32, 0, 1e-2)
    assert set(predictions) == {"parameter", "kernel", "angle"} and best != "parameter"
    assert np.array_equal(tree.permutation, build_tree(operator, 32, best).permutation)


def test_same_for_any_number_of_ranks(comm):
    for K in (exponential_kernel(200), np.eye(40)):
        alone, together = (cheapest_tree(DenseOperator(K, each), 16, 3, 1e-2) for each in (MPI.COMM_SELF, comm))
        assert alone[0] == together[0] and np.array_equal(alone[1].permutation, together[1].permutation)
        assert all(np.isclose(alone[2][name], together[2][name], rtol=0.02) for name in alone[2])


def test_exact_where_nothing_couples(comm):
    """A diagonal matrix: leaves alone are stored."""
    operator = DenseOperator(np.diag(np.arange(1.0, 65)), comm)
    assert predicted_storage(operator, {"parameter": build_tree(operator, 16)}, 1e-2) == {"parameter": 4 * 16 * 17 // 2}


def test_report(comm):
    operator, rtol = autoencoder(comm)
    report = compress(operator, rtol=rtol, leaf_size=48, distance="auto").report
    assert report["distance_asked"] == "auto" and set(report["distance_predictions"]) == set(DISTANCES)
    assert compress(operator, rtol=rtol, leaf_size=1000).report["distance_predictions"] == {}


def test_without_entries(comm):
    class Products:
        pass

    with pytest.raises(InputError, match="parameter"):
        cheapest_tree(Products(), 16, 0, 1e-2)
