"""Exchanges of stacked rows against the same operation on whole arrays."""

import numpy as np
import pytest

from hpcHess.parallel import exchange
from hpcHess.parallel.agree import agree, on_root, together
from hpcHess.parallel.exchange import Halo, RowPermutation, gather_rows, ranges, reduce_rows, repartition
from hpcHess.parallel.ownership import node_owners, node_starts, row_starts
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError


def piece(whole, starts, comm):
    return whole[starts[comm.rank] : starts[comm.rank + 1]]


@pytest.mark.parametrize("message", [1 << 28, 8])
def test_reduce_and_gather(comm, monkeypatch, message):
    monkeypatch.setattr(exchange, "_MESSAGE", message)
    starts = row_starts(7, comm.size)
    whole = np.arange(35.0).reshape(7, 5)
    local = reduce_rows(comm, whole * (comm.rank + 1), starts)
    assert np.array_equal(local, piece(whole, starts, comm) * comm.size * (comm.size + 1) / 2)
    assert np.array_equal(gather_rows(comm, piece(whole, starts, comm), starts), whole)


@pytest.mark.parametrize("message", [1 << 28, 8])
def test_repartition(comm, monkeypatch, message):
    monkeypatch.setattr(exchange, "_MESSAGE", message)
    whole = np.arange(33.0).reshape(11, 3)
    cuts = np.sort(np.random.default_rng(1).integers(0, 12, comm.size - 1))
    source, target = row_starts(11, comm.size), np.array([0, *cuts, 11])
    moved = repartition(comm, piece(whole, source, comm).copy(), source, target)
    assert np.array_equal(moved, piece(whole, target, comm))


def test_permutation_round_trip_with_dead_rows(comm):
    rng = np.random.default_rng(2)
    n, permutation = 23, np.random.default_rng(2).permutation(23)[:17]
    whole = rng.standard_normal((n, 2))
    mine, tree = row_starts(n, comm.size), row_starts(17, comm.size)
    move = RowPermutation(comm, permutation, mine, tree)
    rows = move.to_tree(piece(whole, mine, comm))
    assert np.array_equal(rows, piece(whole[permutation], tree, comm))
    expected = np.zeros_like(whole)
    expected[permutation] = whole[permutation]
    assert np.array_equal(move.to_parameters(rows), piece(expected, mine, comm))


def test_halo_fetches_and_accumulates(comm):
    counts, depth = np.array([2, 0, 3, 1, 4, 2, 1, 2]), 3
    owned = node_starts(depth, depth, comm.size)
    starts = np.concatenate([[0], np.cumsum(counts)])
    pairs = np.array([[0, 0], [0, 5], [1, 2], [2, 7], [3, 4], [5, 7], [6, 7]])
    halo = Halo(comm, pairs, owned, counts)
    whole = np.arange(starts[-1] * 2.0).reshape(-1, 2)
    own = whole[starts[owned[comm.rank]] : starts[owned[comm.rank + 1]]]
    extended = np.concatenate([own, halo.fetch(own)])
    mine = pairs[(pairs[:, 0] >= owned[comm.rank]) & (pairs[:, 0] < owned[comm.rank + 1])]
    for node, at in zip(mine.ravel(), halo.starts(mine.ravel())):
        assert np.array_equal(extended[at : at + counts[node]], whole[starts[node] : starts[node + 1]])
    total, contribution = np.zeros_like(own), np.zeros_like(extended)
    for beta, at in zip(mine[:, 1], halo.starts(mine[:, 1])):
        contribution[at : at + counts[beta]] += 1
    total += contribution[: len(own)]
    halo.accumulate(total, contribution[len(own) :])
    expected = np.repeat(np.bincount(pairs[:, 1], minlength=8), counts)[:, None] * np.ones((1, 2))
    assert np.array_equal(total, expected[starts[owned[comm.rank]] : starts[owned[comm.rank + 1]]])


def test_ranges():
    assert ranges([5, 0, 9], np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5, 7, 64])
@pytest.mark.parametrize("depth", [0, 1, 4, 9])
def test_ownership(n_ranks, depth):
    for level in range(depth + 1):
        owners = node_owners(level, depth, n_ranks)
        assert np.all(np.diff(owners) >= 0) and owners.max() < n_ranks
        starts = node_starts(level, depth, n_ranks)
        assert starts[0] == 0 and starts[-1] == 1 << level
        assert all(np.all(owners[starts[r] : starts[r + 1]] == r) for r in range(n_ranks))
        if level:
            assert np.array_equal(owners[::2], node_owners(level - 1, depth, n_ranks)), "a left child is its parent's owner's"
    if 1 << depth >= 8 * n_ranks:
        assert np.diff(node_starts(depth, depth, n_ranks)).max() <= 1.12 * (1 << depth) / n_ranks + 1


def test_random_numbers_depend_on_global_place_alone():
    whole = gaussian_rows(3, "a", 0, 200000, range(4), np.float64)
    assert np.array_equal(whole[65000:140000, 1:3], gaussian_rows(3, "a", 65000, 140000, range(1, 3), np.float64))
    assert np.array_equal(whole[:10].astype(np.float32), gaussian_rows(3, "a", 0, 10, range(4)))
    assert abs(whole.mean()) < 5e-3 and abs(whole.std() - 1) < 5e-3
    assert not np.array_equal(whole[:10], gaussian_rows(3, "b", 0, 10, range(4)))
    assert np.abs(np.corrcoef(whole.T) - np.eye(4)).max() < 0.02


def test_all_ranks_raise_what_one_finds(comm):
    error = InputError("bad weights") if comm.rank == comm.size - 1 else None
    with pytest.raises(InputError, match="bad weights"):
        agree(comm, error)
    with pytest.raises(InputError, match="no file"), together(comm):
        if comm.rank == 0:
            raise InputError("no file")
    if comm.rank == 0:
        with pytest.raises(ZeroDivisionError):
            on_root(comm, lambda: 1 / 0)
    else:
        with pytest.raises(RuntimeError, match="division"):
            on_root(comm, lambda: 1 / 0)
    assert on_root(comm, lambda: 42) == 42
