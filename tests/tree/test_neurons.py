"""Trees of rectangles: cuts between neurons and inputs, clusters, and what they save."""

import importlib

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.hierarchical.compress import compress
from hpcHess.networks.network import Network
from hpcHess.runtime.errors import InputError
from hpcHess.tree.build import build_tree
from hpcHess.tree.neurons import aligned_tree, first_cut, recursive_order
from tests.reference.dense_operator import DenseOperator


def network(widths, loss="cross-entropy", seed=0, biases=True):
    rng = np.random.default_rng(seed)
    pairs = list(zip(widths[:-1], widths[1:]))
    weights = [rng.standard_normal((m, n)) / np.sqrt(n) for n, m in pairs]
    return Network(weights, [0.1 * rng.standard_normal(m) if biases else None for _, m in pairs], "relu", loss)


def smooth_inputs(n, width, seed=0):
    """Samples whose coordinates vary smoothly: near coordinates are alike."""
    rng = np.random.default_rng(seed)
    waves = np.cos(np.outer(np.arange(6), np.linspace(0, np.pi, width)) + 0.1)
    return rng.standard_normal((n, 6)) * 0.7 ** np.arange(6) @ waves + 0.01 * rng.standard_normal((n, width)) + 0.5


def compress_with(tree, operator, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("hpcHess.hierarchical.compress"), "build_tree", lambda *a, **k: tree)
        return compress(operator, **options)


@pytest.fixture(scope="module")
def autoencoder(comm):
    inputs = smooth_inputs(60, 40)
    return GaussNewton(network((40, 5, 40), "squared-error"), inputs, inputs, comm=comm)


@pytest.mark.parametrize("leaf_size", [2, 7, 12, 41, 10**4])
@pytest.mark.parametrize("biases", [True, False])
def test_leaves_hold_every_alive_parameter_once(comm, leaf_size, biases):
    operator = GaussNewton(network((17, 6, 9, 4), biases=biases), smooth_inputs(30, 17) * (np.arange(17) != 3), comm=comm)
    tree = build_tree(operator, leaf_size, "neuron")
    assert len(operator.alive) < operator.n_params, "input 3 is dead"
    assert np.array_equal(np.sort(tree.permutation), operator.alive)
    assert tree.leaf_sizes.max() <= leaf_size and tree.leaf_sizes.min() >= 0
    assert len(tree.leaf_sizes) == 1 << tree.depth and tree.leaf_starts[-1] == len(operator.alive)


def test_leaves_are_aligned(autoencoder):
    """Output neurons have 6 parameters: leaves of 14 hold one or two whole ones; no leaf mixes the layers."""
    tree = build_tree(autoencoder, 14, "neuron")
    neurons, starts, *_ = autoencoder.neuron_groups(1000)
    inputs, _ = autoencoder.input_groups(128, 0)
    sizes = np.bincount(neurons)
    for leaf in np.split(tree.permutation, tree.leaf_starts[1:-1]):
        held, counts = np.unique(neurons[leaf], return_counts=True)
        assert len(np.unique(held < starts[1])) <= 1
        rectangle = len(held) * len(np.unique(inputs[leaf])) == len(leaf)
        assert np.array_equal(counts, sizes[held]) or rectangle
        if len(leaf) and held.min() >= starts[1]:
            assert np.array_equal(counts, sizes[held])


def test_same_for_any_number_of_ranks_and_any_run(comm, autoencoder):
    inputs = smooth_inputs(60, 40)
    alone = GaussNewton(network((40, 5, 40), "squared-error"), inputs, inputs, comm=MPI.COMM_SELF)
    for _ in range(2):
        tree, again = build_tree(alone, 12, "neuron"), build_tree(autoencoder, 12, "neuron")
        assert np.array_equal(tree.permutation, again.permutation) and np.array_equal(tree.leaf_starts, again.leaf_starts)


def test_mean_kernel(autoencoder):
    """Against (1/n) Σ_i C_iᵀ C_i from the definition, C_i = √2 ∂z/∂a."""
    net, inputs = autoencoder.network, smooth_inputs(60, 40)
    hidden = inputs @ net.weights[0].T + net.biases[0] > 0
    jacobians = np.stack([np.sqrt(2) * np.concatenate([net.weights[1] * on, np.eye(40)], axis=1) for on in hidden])
    groups, starts, chosen, K = autoencoder.neuron_groups(1000)
    assert np.allclose(K, np.einsum("iep,ieq->pq", jacobians, jacobians) / 60) and starts.tolist() == [0, 5, 45]
    assert np.array_equal(np.bincount(groups), [41] * 5 + [6] * 40) and np.array_equal(chosen, np.arange(45))
    assert len(autoencoder.neuron_groups(12)[2]) == 11, "a sample of wide layers"


def test_first_cut_follows_the_factor_that_decays():
    points = np.linspace(0, 1, 32)
    smooth = np.exp(-((points[:, None] - points) ** 2))
    scale = 1e-2 * np.linalg.norm(smooth) * np.linalg.norm(np.eye(32))
    assert first_cut(np.eye(32), smooth, scale, 6) == 0, "neurons that do not couple are cut apart first"
    assert first_cut(smooth, np.eye(32), scale, 6) == 1
    assert first_cut(np.ones((1, 1)), smooth, scale, 6) == 1 and first_cut(smooth, np.ones((1, 1)), scale, 6) == 0


def test_recursive_order_keeps_clusters_together():
    rng = np.random.default_rng(0)
    angle = rng.permutation(np.repeat([0.1, 0.6, 1.1, 1.5], 8))
    place = recursive_order(np.stack([np.cos(angle), np.sin(angle)], axis=1), np.ones(32))
    assert np.array_equal(np.sort(place), np.arange(32))
    in_order = angle[np.argsort(place)].reshape(4, 8)
    assert np.all(in_order == in_order[:, :1])
    assert np.array_equal(recursive_order(np.ones((5, 2)), np.ones(5)), np.arange(5)), "ties by number"


def test_atoms_that_fit_are_not_divided():
    """Twelve atoms of five: leaves of 6 and of 11 hold whole ones."""
    major, minor = np.divmod(np.arange(60), 5)
    shuffle = np.random.default_rng(1).permutation(60)
    for leaf_size in (6, 11):
        tree = aligned_tree(np.arange(60), np.zeros(60, int), major[shuffle], minor[shuffle], leaf_size)
        assert tree.leaf_sizes.max() <= leaf_size
        for leaf in np.split(shuffle[tree.permutation], tree.leaf_starts[1:-1]):
            assert len(leaf) == 5 * len(np.unique(major[leaf]))


def test_empty_leaves_are_harmless(comm):
    """Seven atoms in eight leaves; products and solves against the dense matrix."""
    rng = np.random.default_rng(2)
    G = rng.standard_normal((35, 50))
    operator = DenseOperator(G @ G.T / 50, comm)
    tree = aligned_tree(operator.alive, np.zeros(35, int), np.arange(35) // 5, np.arange(35) % 5, 5)
    assert tree.leaf_sizes.min() == 0 and tree.depth == 3
    H = compress_with(tree, operator, rtol=1e-8, leaf_size=5, dtype="float64")
    V = rng.standard_normal((35, 3))
    assert np.allclose(H @ V, operator.H @ V)
    assert np.allclose(H.solve(V, 0.1), np.linalg.solve(operator.H + 0.1 * np.eye(35), V))


def test_rectangles_are_cheaper_where_neurons_do_not_couple(autoencoder):
    stored = {
        distance: compress(autoencoder, rtol=1e-1, leaf_size=12, distance=distance).report["storage_entries"] for distance in ("neuron", "input")
    }
    assert stored["neuron"] < 0.7 * stored["input"]


def test_operator_without_neurons(comm):
    with pytest.raises(InputError, match="no neurons"):
        build_tree(DenseOperator(np.eye(8), comm), 2, "neuron")
