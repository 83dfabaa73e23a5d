"""The rows that `RowSamples` draws: where they lie, and that their weighted squares are those of the far field in the mean."""

import numpy as np
import pytest
from mpi4py import MPI

from hpcHess.backend import get
from hpcHess.parallel import memory
from hpcHess.parallel.ownership import node_starts, row_starts
from hpcHess.skeleton.levels import PairBlocks, new_level
from hpcHess.skeleton.rows import ROWS, RowSamples, lists_in_tree_rows
from hpcHess.skeleton.sketch import Sketch
from hpcHess.tree.interactions import near_self
from hpcHess.tree.tree import Tree
from tests.reference.dense_operator import exponential_kernel
from tests.skeleton.matrices import WithDiagonal

N, DEPTH = 333, 4


class Build:
    """What a `Skeletonizer` offers its samples."""

    def __init__(self, comm, near):
        self.comm, self.backend, self.operator = comm, get("numpy"), WithDiagonal(exponential_kernel(N), comm)
        self.tree = Tree.halved(np.random.default_rng(0).permutation(N), DEPTH)
        self.owned = node_starts(DEPTH, DEPTH, comm.size)
        self.near = PairBlocks(comm, near, self.owned, self.tree.leaf_sizes)
        self.starts = self.tree.leaf_starts[self.owned]

    def samples(self, seed, lists=None):
        made = RowSamples(Sketch(self.operator, self.tree.permutation, self.starts, 0), 8, seed, lists)
        made.start(self)
        return made

    def level(self, number):
        """A level whose columns are all parameters below, and its own nodes' parameters."""
        level = new_level(self.comm, number, DEPTH, self.tree.leaf_sizes.reshape(1 << number, -1).sum(axis=1))
        starts = self.tree.leaf_starts[:: 1 << (DEPTH - number)]
        first, last = level.at(self.comm)
        return level, [np.arange(starts[a], starts[a + 1]) for a in range(first, last)]


FMM = np.unique(np.concatenate([near_self(DEPTH), [[0, 1], [0, 9], [3, 4], [5, 15], [7, 8]]]), axis=0)


def far_positions(build, level, node):
    """By definition: positions outside of all nodes of the level with a near leaf pair to this one."""
    of_leaf = lambda leaf: leaf >> (DEPTH - level.level)  # noqa: E731
    near = {of_leaf(b) for pair in build.near.pairs for a, b in (pair, pair[::-1]) if of_leaf(a) == node}
    leaf = np.repeat(np.arange(1 << DEPTH), build.tree.leaf_sizes)
    return np.flatnonzero(~np.isin(of_leaf(leaf), list(near)))


@pytest.mark.parametrize("near", [near_self(DEPTH), FMM], ids=["hss", "fmm"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_rows_are_far_and_different(comm, near, number):
    build = Build(comm, near)
    rng = np.random.default_rng(comm.rank)
    level, nodes = build.level(number)
    columns = np.array([len(node) for node in nodes], np.int64)
    lists = rng.integers(0, N, (int(columns.sum()), 5))
    samples = build.samples(1, lists)
    rows, weights, counts, effective = samples._rows(level, columns)
    at = np.append(0, np.cumsum(counts))
    assert at[-1] == len(rows) == len(weights)
    first = level.at(comm)[0]
    for i in range(len(nodes)):
        mine, far = rows[at[i] : at[i + 1]], far_positions(build, level, first + i)
        assert len(np.unique(mine)) == len(mine) and np.isin(mine, far).all()
        assert np.isclose(np.sum(weights[at[i] : at[i + 1]] ** 2), len(far))
        wanted = ROWS * max(columns[i], 8)
        assert len(mine) == min(wanted, len(far))
        assert (effective[i] == np.inf) == (len(far) <= wanted)
        assert np.isinf(effective[i]) or effective[i] <= len(mine)


def test_mean_squares_are_those_of_the_far_field(comm):
    build = Build(comm, FMM)
    level, nodes = build.level(3)
    H = build.operator.H[np.ix_(build.tree.permutation, build.tree.permutation)]
    index = build.tree.permutation[np.concatenate([*nodes, np.zeros(0, int)]).astype(int)]
    lists = np.tile(np.arange(3) * 50, (len(index), 1))
    found = []
    for seed in range(60):
        R, _ = build.samples(seed, lists).at(level, index)
        found.append(np.add.reduceat(np.sum(R**2, axis=1) / R.shape[1], np.cumsum([0, *map(len, nodes)])[:-1]) if nodes else np.zeros(0))
    for i, node in enumerate(nodes):
        exact = np.sum(H[np.ix_(far_positions(build, level, level.at(comm)[0] + i), node)] ** 2)
        mean, spread = np.mean([f[i] for f in found]), np.std([f[i] for f in found]) / np.sqrt(60)
        assert abs(mean - exact) <= 4 * spread + 1e-10 * exact
        assert spread < 0.1 * exact


def test_neighbours_come_first(comm):
    """A parameter that all columns name is among the rows, with weight 1, of every node that it is far from."""
    build = Build(comm, near_self(DEPTH))
    level, nodes = build.level(DEPTH)
    columns = np.array([len(node) for node in nodes], np.int64)
    samples = build.samples(1, np.tile([17, 300], (int(columns.sum()), 1)))
    rows, weights, counts, _ = samples._rows(level, columns)
    at = np.append(0, np.cumsum(counts))
    for i, node in enumerate(nodes):
        for named in (17, 300):
            chosen = weights[at[i] : at[i + 1]][rows[at[i] : at[i + 1]] == named]
            assert (len(chosen) == 0) if named in node else (list(chosen) == [1.0])


def test_lists_move_to_tree_rows(comm):
    build = Build(comm, near_self(DEPTH))
    alive = np.arange(N)
    lo, hi = row_starts(N, comm.size)[comm.rank : comm.rank + 2]
    lists = (np.arange(lo, hi)[:, None] + [1, 7]) % N
    moved = lists_in_tree_rows(comm, alive, build.tree, build.starts, lists)
    mine = build.tree.permutation[build.starts[comm.rank] : build.starts[comm.rank + 1]]
    assert np.array_equal(build.tree.permutation[moved], (mine[:, None] + [1, 7]) % N)


def test_more_rows_up_to_a_bound(comm):
    samples, ratios = Build(comm, near_self(DEPTH)).samples(1), []
    while samples.deepen():
        ratios.append(samples.ratio)
    assert ratios == [8, 16, 32] and not samples.deepen() and samples.ratio == 32


def test_memory_bounds_the_rows(comm, monkeypatch):
    """Ranks that the rows at hand support, and an end to growing."""
    build = Build(comm, near_self(DEPTH))
    level, nodes = build.level(3)
    index = build.tree.permutation[np.concatenate([*nodes, np.zeros(0, int)]).astype(int)]
    samples = build.samples(1)
    numbers = comm.allreduce(8 * len(index), MPI.MAX)
    monkeypatch.setattr(memory, "fair_share", lambda _: 200 * numbers)
    R, counts = samples.at(level, index)
    k = R.shape[1]
    assert 20 < k and 6 * 8 * len(index) * k <= 200 * numbers
    assert (counts <= k).all() and 0 < samples.bound < k
    assert not samples.grow(level, np.full(len(nodes), 300))
    monkeypatch.setattr(memory, "fair_share", lambda _: 1 << 40)
    samples.start(build)
    assert samples.at(level, index)[0].shape[1] > 100 and samples.bound is None and samples.grow(level, np.full(len(nodes), 300))
