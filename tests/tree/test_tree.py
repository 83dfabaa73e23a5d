"""Invariants of the cluster tree and of its interactions."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.runtime.errors import InputError
from hpcHess.tree.build import DISTANCES, build_tree
from hpcHess.tree.distance import Embedded
from hpcHess.tree.inputs import input_order
from hpcHess.tree.interactions import far_pairs, near_self
from hpcHess.tree.split import split_level
from hpcHess.tree.tree import depth_for, level_sizes
from tests.reference.dense_operator import DenseOperator, gaussian_kernel


def operator(comm, n=301):
    K = gaussian_kernel(n, 0.15)
    K[::13], K[:, ::13] = 0, 0
    return DenseOperator(K, comm)


@pytest.mark.parametrize("distance", [d for d in DISTANCES if d not in ("input", "neuron")])
@pytest.mark.parametrize("leaf_size", [2, 17, 40, 1000])
def test_every_alive_parameter_has_one_place(comm, distance, leaf_size):
    op = operator(comm)
    tree = build_tree(op, leaf_size, distance, seed=1)
    assert np.array_equal(np.sort(tree.permutation), op.alive)
    assert tree.leaf_sizes.max() <= leaf_size and tree.leaf_sizes.max() - tree.leaf_sizes.min() <= 1
    assert len(tree.leaf_sizes) == 1 << tree.depth and tree.leaf_starts[-1] == len(op.alive)
    assert tree.depth == 0 or -(-len(op.alive) // (1 << (tree.depth - 1))) > leaf_size, "no deeper than needed"


@pytest.mark.parametrize("distance", ["angle", "kernel", "random"])
def test_tree_is_the_same_for_any_number_of_ranks(comm, distance):
    K = operator(comm).H
    alone = build_tree(DenseOperator(K, MPI.COMM_SELF), 20, distance, seed=2)
    assert np.array_equal(build_tree(DenseOperator(K, comm), 20, distance, seed=2).permutation, alone.permutation)


def test_oblivious_distances_find_clusters(comm):
    """Two hidden groups, shuffled: the first split must separate them (for angles: up to sign)."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat([0, 1], 64))
    directions = np.where(group[:, None] == 0, [1.0, 0.05], [0.05, 1.0]) * rng.choice([-1, 1], 128)[:, None]
    H = directions @ directions.T + 1e-3 * np.eye(128)
    tree = build_tree(DenseOperator(H, comm), 64, "angle")
    assert len(set(group[tree.permutation[:64]])) == 1
    positive = np.abs(directions)
    tree = build_tree(DenseOperator(positive @ positive.T + 1e-3 * np.eye(128), comm), 64, "kernel")
    assert len(set(group[tree.permutation[:64]])) == 1


def test_ties_are_split_by_index(comm):
    n = 10
    mine = np.arange(n)[comm.rank :: comm.size]
    right = split_level(Embedded(np.ones((len(mine), 3)), "kernel"), np.ones((len(mine), 3)), mine, 0 * mine, np.array([5]), 0, comm)
    assert np.array_equal(right, mine >= 5)


def test_unknown_distance(comm):
    with pytest.raises(InputError, match="angle, kernel"):
        build_tree(operator(comm, 40), 8, "euclid")
    with pytest.raises(InputError, match="no network inputs"):
        build_tree(operator(comm, 40), 8, "input")


@pytest.mark.parametrize("depth", [0, 1, 3, 6])
def test_inputs_keep_their_parameters_together(depth):
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(12), 7))[:80]
    angle = np.where(np.arange(12) % 2, 0.1, 1.4) + 0.01 * rng.standard_normal(12)  # odd and even inputs differ
    order = input_order(groups, np.stack([np.cos(angle), np.sin(angle)], axis=1), depth)
    assert np.array_equal(np.sort(order), np.arange(80))
    leaves = np.split(groups[order], np.cumsum(level_sizes(80, depth)[-1])[:-1])
    cuts = sum(len(np.unique(leaf)) for leaf in leaves) - 12
    assert cuts < 1 << depth, "a cut divides one group at most"
    if depth:
        odd = [(half % 2).mean() for half in np.split(groups[order], [40])]
        assert abs(odd[0] - odd[1]) > 0.85


def test_inputs_with_no_parameters_or_no_variation():
    assert len(input_order(np.zeros(0, int), np.ones((3, 2)), 2)) == 0
    assert input_order(np.array([1, 0, 1, 0]), np.ones((2, 2)), 1).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 1000])
def test_level_sizes(n):
    depth = depth_for(n, 8)
    for sizes in level_sizes(n, depth):
        assert sizes.sum() == n and sizes.max() - sizes.min() <= 1


def covered(near, far, depth):
    """How often each pair of leaves is covered."""
    count = np.zeros((1 << depth, 1 << depth), int)
    for a, b in near:
        count[a, b] += 1
        count[b, a] += a != b
    for level, pairs in enumerate(far):
        width = 1 << (depth - level)
        for a, b in pairs:
            count[a * width : (a + 1) * width, b * width : (b + 1) * width] += 1
            count[b * width : (b + 1) * width, a * width : (a + 1) * width] += 1
    return count


@pytest.mark.parametrize("depth", [0, 1, 3, 5])
def test_pairs_cover_the_matrix_once(depth):
    near = near_self(depth)
    far = far_pairs(near, depth)
    assert np.all(covered(near, far, depth) == 1)
    assert all(np.array_equal(pairs, np.arange(1 << level).reshape(-1, 2)) for level, pairs in enumerate(far) if level), "HSS: siblings"
    rng = np.random.default_rng(depth)
    extra = np.sort(rng.integers(0, 1 << depth, (5, 2)), axis=1)
    near = np.unique(np.concatenate([near, extra]), axis=0)
    assert np.all(covered(near, far_pairs(near, depth), depth) == 1)
