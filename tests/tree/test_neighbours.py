"""Nearest neighbours against brute force, and the near lists made of them against plain Python."""

import tracemalloc

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.runtime.errors import InputError
from hpcHess.tree import neighbours
from hpcHess.tree.build import build_tree
from hpcHess.tree.interactions import far_fields, far_pairs, most_near, near_by_votes, near_self
from hpcHess.tree.neighbours import nearest_neighbours
from hpcHess.tree.tree import Tree
from tests.reference.dense_operator import DenseOperator, gaussian_kernel


class EntriesOperator(DenseOperator):
    """A dense matrix with entries and a diagonal, but no embedding."""

    partial_probe = property()  # raises AttributeError: hasattr is False

    def diagonal(self):
        return np.diag(self.H).copy()


def kernel(n, dead=True):
    K = gaussian_kernel(n, 0.15)
    if dead:
        K[::13], K[:, ::13] = 0, 0
    return K


def distances(H, distance):
    """GOFMM's distances, infinite on the diagonal and between a dead parameter and any."""
    d = np.abs(np.diag(H))
    with np.errstate(invalid="ignore", divide="ignore"):
        D = 1 - H**2 / np.outer(d, d) if distance == "angle" else np.add.outer(d, d) - 2 * H
    D[np.diag_indices(len(H))] = np.inf
    D[d == 0], D[:, d == 0] = np.inf, np.inf
    return D


def whole(comm, found):
    """(parameters, lists, distances) of all ranks."""
    pieces = comm.allgather((found.parameters, found.lists, found.distances))
    return tuple(np.concatenate(part) for part in zip(*pieces))


def recall(D, parameters, lists):
    """Part of the list entries that are no farther than the κ-th nearest."""
    farthest = np.sort(D[parameters], axis=1)[:, lists.shape[1] - 1]
    return np.mean(D[parameters[:, None], lists] <= farthest[:, None] * (1 + 1e-5) + 1e-6)


@pytest.mark.parametrize("distance", ["angle", "kernel"])
def test_recall_against_brute_force(comm, distance):
    """From exact entries; leaves of the projection trees hold a fifth of the points."""
    H = kernel(801)
    op = EntriesOperator(H, comm)
    found = nearest_neighbours(op, 8, distance)
    parameters, lists, d = whole(comm, found)
    assert np.array_equal(parameters, op.alive) and lists.shape == (len(op.alive), 8)
    assert np.isin(lists, op.alive).all() and not np.any(lists == parameters[:, None])
    assert all(len(set(row)) == 8 for row in lists)
    D = distances(H, distance)
    assert np.allclose(d, D[parameters[:, None], lists], atol=1e-5) and np.all(np.diff(d, axis=1) >= 0)
    assert recall(D, parameters, lists) > 0.93
    assert 2 <= found.trees < neighbours.MAX_TREES and found.changed < neighbours.SETTLED


@pytest.mark.parametrize("distance", ["angle", "kernel"])
def test_recall_on_an_embedding(comm, distance, monkeypatch):
    """Against the embedding's own distances: those of the operator are known no better."""
    monkeypatch.setattr(neighbours, "_LEAF", 4)
    op = DenseOperator(kernel(500), comm)
    Z = comm.allreduce(op.partial_probe(neighbours.EMBEDDING_COLUMNS, 3))
    parameters, lists, _ = whole(comm, nearest_neighbours(op, 10, distance, seed=3))
    assert recall(distances(Z @ Z.T, distance), parameters, lists) > 0.85
    monkeypatch.setattr(neighbours, "MAX_TREES", 1)
    assert recall(distances(Z @ Z.T, distance), *whole(comm, nearest_neighbours(op, 10, distance, seed=3))[:2]) < 0.75, "one tree is not enough"


@pytest.mark.parametrize("made", [DenseOperator, EntriesOperator])
def test_lists_do_not_depend_on_the_ranks(comm, made):
    H = kernel(400)
    many = whole(comm, nearest_neighbours(made(H, comm), 6, seed=4))
    alone = whole(MPI.COMM_SELF, nearest_neighbours(made(H, MPI.COMM_SELF), 6, seed=4))
    again = whole(comm, nearest_neighbours(made(H, comm), 6, seed=4))
    assert all(np.array_equal(a, b) for a, b in zip(many, again))
    assert np.mean(many[1] == alone[1]) > 0.999 and np.allclose(many[2], alone[2], atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_fewer_points_than_neighbours(comm, n):
    H = np.zeros((6, 6))
    H[:n, :n] = gaussian_kernel(6, 0.5)[:n, :n]
    parameters, lists, _ = whole(comm, nearest_neighbours(EntriesOperator(H, comm), 32))
    assert lists.shape == (n, max(0, n - 1))
    assert all(sorted([p, *row]) == list(range(n)) for p, row in zip(parameters, lists))


@pytest.mark.parametrize("more", [0, 1, 400])
def test_as_many_neighbours_as_others(comm, more):
    """κ = N − 1, N and more: one leaf, larger than what is computed at once; the lists are all others, nearest first."""
    H = kernel(150, dead=False)
    parameters, lists, d = whole(comm, nearest_neighbours(EntriesOperator(H, comm), 149 + more))
    assert lists.shape == (150, 149) and np.array_equal(np.sort(np.c_[parameters, lists]), np.tile(np.arange(150), (150, 1)))
    assert np.allclose(d, np.sort(distances(H, "angle"))[:, :149], atol=1e-5)


@pytest.mark.parametrize("made", [DenseOperator, EntriesOperator])
@pytest.mark.parametrize("distance", ["angle", "kernel"])
@pytest.mark.parametrize("k", [6, 70])
def test_slabs_change_nothing(comm, monkeypatch, made, distance, k):
    H = kernel(400)
    at_once = whole(comm, nearest_neighbours(made(H, comm), k, distance))
    monkeypatch.setattr(neighbours, "_CHUNK", 1000)
    slabs = whole(comm, nearest_neighbours(made(H, comm), k, distance))
    assert np.mean(at_once[1] == slabs[1]) > 0.999 and np.allclose(at_once[2], slabs[2], atol=1e-5)


def test_memory_does_not_grow_with_the_square_of_the_lists(monkeypatch):
    """The lists of 1200 points take 1.4 MB at κ = 150; with one leaf (16κ points) computed at once the peak is 100 times that."""
    monkeypatch.setattr(neighbours, "_CHUNK", 1 << 14)
    monkeypatch.setattr(neighbours, "MAX_TREES", 1)
    op = DenseOperator(kernel(1200, dead=False), MPI.COMM_SELF)
    tracemalloc.start()
    nearest_neighbours(op, 150)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 30 * 1200 * 150 * 8


def test_leaves_hold_more_points_than_lists_but_not_many_more():
    assert [neighbours._leaf_size(k) for k in (1, 32, 128, 129, 500, 512, 1000)] == [16, 512, 2048, 2048, 2048, 2048, 4000]


def test_all_points_the_same(comm):
    """Ties everywhere: lists are full, without repetition."""
    parameters, lists, d = whole(comm, nearest_neighbours(EntriesOperator(np.ones((300, 300)), comm), 4))
    assert np.all(d == 0) and all(len(set(row) | {p}) == 5 for p, row in zip(parameters, lists))


def test_unrelated_parameters_are_far_and_zero_diagonals_no_exception(comm):
    """A saddle point matrix [[0, B], [Bᵀ, 0]]: parameters are near those they couple to, not those where H_ij = 0."""
    n = 20
    H = np.zeros((2 * n, 2 * n))
    H[:n, n:] = np.diag(np.arange(n) + 1.0)
    H += H.T
    parameters, lists, _ = whole(comm, nearest_neighbours(EntriesOperator(H, comm), 3))
    assert np.array_equal(lists[:, 0], (parameters + n) % (2 * n))


@pytest.mark.parametrize("distance", ["angle", "kernel"])
def test_trees_from_exact_entries(comm, distance):
    """Two hidden groups, no embedding, an indefinite matrix: the first split separates them; any number of ranks gives one tree."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat([0, 1], 60))
    H = np.where(group[:, None] == group, 1.0, 0.1) - 0.3 * np.eye(120)
    H[3] *= -1
    H[:, 3] *= -1
    H[3, 3] = -0.7
    if distance == "kernel":
        H[3], H[:, 3] = np.abs(H[3]), np.abs(H[:, 3])
        H[5, 5] = -0.7
    tree = build_tree(EntriesOperator(H, comm), 30, distance)
    assert len(set(group[tree.permutation[:60]])) == 1
    alone = build_tree(EntriesOperator(H, MPI.COMM_SELF), 30, distance)
    assert np.array_equal(tree.permutation, alone.permutation)


def test_an_operator_that_offers_nothing(comm):
    class Nothing:
        def __init__(self):
            self.comm, self.alive = comm, np.arange(10)

    with pytest.raises(InputError, match="no embedding"):
        build_tree(Nothing(), 4, "angle")
    with pytest.raises(InputError, match="neighbours need"):
        nearest_neighbours(Nothing(), 4)


def voted(tree, parameters, lists, budget):
    """Near pairs by the definition, in plain Python."""
    n_leaves = 1 << tree.depth
    leaf_of = {int(p): leaf for leaf in range(n_leaves) for p in tree.permutation[tree.leaf_starts[leaf] : tree.leaf_starts[leaf + 1]]}
    near = {(leaf, leaf) for leaf in range(n_leaves)}
    for leaf in range(n_leaves):
        votes = {}
        for p, row in zip(parameters, lists):
            if leaf_of[int(p)] == leaf:
                for q in row:
                    votes[leaf_of[int(q)]] = votes.get(leaf_of[int(q)], 0) + 1
        votes.pop(leaf, None)
        candidates = sorted(votes, key=lambda other: (-votes[other], other))
        for other in candidates[: max(1, int(budget * n_leaves)) - 1]:
            near.add((min(leaf, other), max(leaf, other)))
    return np.array(sorted(near))


@pytest.mark.parametrize("sizes", [[9] * 16, [5, 0, 14, 3, 30, 1, 0, 11], [4, 4], [10]])
@pytest.mark.parametrize("budget", [0, 0.3, 0.6, 1])
def test_near_lists_are_those_voted_for(comm, sizes, budget):
    rng = np.random.default_rng(len(sizes))
    n = sum(sizes)
    permutation = rng.permutation(2 * n)[:n]  # every second parameter is dead
    tree = Tree(int(np.log2(len(sizes))), permutation, np.concatenate([[0], np.cumsum(sizes)]))
    parameters = np.sort(permutation)
    lists = parameters[(np.arange(n)[:, None] + np.minimum(rng.geometric(0.15, (n, 5)), n - 1)) % n]
    mine = slice(comm.rank * n // comm.size, (comm.rank + 1) * n // comm.size)
    near = near_by_votes(comm, tree, parameters[mine], lists[mine], budget)
    assert near.dtype == np.int64 and np.array_equal(near, voted(tree, parameters, lists, budget))
    if budget == 0:
        assert np.array_equal(near, near_self(tree.depth))


def test_the_bound_is_not_lost_to_rounding():
    assert most_near(0, 1) == 1 and most_near(5, 0) == 1 and most_near(5, 1) == 32
    assert all(most_near(7, k / 128) == max(1, k) for k in range(129))


def test_far_fields():
    """With everything near there is none; a node has its ancestors'."""
    depth = 3
    everything = np.array([(a, b) for a in range(8) for b in range(a, 8)])
    far = far_pairs(everything, depth)
    assert not any(len(pairs) for pairs in far) and not any(flags.any() for flags in far_fields(far))
    assert all(flags.all() for flags in far_fields(far_pairs(near_self(depth), depth))[1:])
    half = np.array([pair for pair in everything if (pair < 4).all() or pair[0] == pair[1]])  # the left half is dense
    flags = far_fields(far_pairs(half, depth))
    assert all(f.all() for f in flags[1:]), "the halves are far from each other"
    without = np.array([pair for pair in everything if not (pair[0] < 2 and pair[1] > 5)])  # leaves 0, 1 and 6, 7 alone are far
    assert [f.nonzero()[0].tolist() for f in far_fields(far_pairs(without, depth))] == [[], [], [0, 3], [0, 1, 6, 7]]


@pytest.mark.parametrize("distance", ["angle", "kernel"])
@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_no_overflow(comm, distance, factor):
    """Lists do not depend on the matrix's scale."""
    H = kernel(200)
    lists = [whole(comm, nearest_neighbours(EntriesOperator(each, comm), 6, distance))[1] for each in (H, H * factor)]
    assert np.mean(lists[0] == lists[1]) > 0.99
