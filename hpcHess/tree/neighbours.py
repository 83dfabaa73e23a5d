"""Approximate nearest neighbours of all parameters by randomized projection trees (GOFMM: Yu and others, SC 2017, §2.3).

Every tree halves the points at random pairs until its leaves hold a few times κ points; inside a leaf all distances are computed and
every point's list keeps the κ nearest met so far. Trees follow until one changes less than SETTLED of the list entries.
"""

from dataclasses import dataclass

import numpy as np

from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.tree.distance import metric_of
from hpcHess.tree.split import keys_of, ordered, split_points, to_owners
from hpcHess.tree.tree import depth_for

EMBEDDING_COLUMNS = 64
SETTLED = 0.02
MAX_TREES = 32
_LEAF = 16  # times κ: most points of a leaf of a projection tree
_LARGE = 2048  # points of a leaf that are enough, where they are 4κ
_CHUNK = 1 << 22  # distances computed at once
_SLAB = 8  # candidates of a point that are merged at once, or κ/4 where that is more


@dataclass
class Neighbours:
    """Lists of this rank's piece of the alive parameters: `parameters` int64 [m], `lists` int64 [m, κ] parameter indices, nearest
    first, itself not among them (but where distances are not finite), and their `distances` [m, κ]; κ ≤ n_alive − 1.
    `changed`: part of the entries that the last of `trees` changed."""

    parameters: np.ndarray
    lists: np.ndarray
    distances: np.ndarray
    trees: int
    changed: float


def has_metric(operator):
    """Whether distances between its parameters can be had: from an embedding, or from a diagonal and entries."""
    return hasattr(operator, "partial_probe") or (hasattr(operator, "diagonal") and hasattr(operator, "entries_batch"))


def nearest_neighbours(operator, n_neighbours, distance="angle", seed=0):
    """`Neighbours` in the metric `angle` or `kernel` (`tree.distance.metric_of`). Collective; the same for any number of ranks, up to rounding.

    κ = n_neighbours, N − 1 at most. O(N κ) memory besides `_CHUNK` distances; a tree computes N · leaf of them, leaf ≤ `_leaf_size`.
    InputError where the operator has neither an embedding nor entries.
    """
    if not has_metric(operator):
        raise InputError("this operator has neither an embedding nor a diagonal and entries, which neighbours need: use format = 'hss'")
    comm, n = operator.comm, len(operator.alive)
    count, starts = min(n_neighbours, max(0, n - 1)), row_starts(n, comm.size)
    depth = depth_for(n, _leaf_size(n_neighbours))
    first, last = starts[comm.rank], starts[comm.rank + 1]
    index = np.arange(first, last, dtype=np.int64)
    lists = np.broadcast_to(ordered(np.float32(np.inf), np.uint64(0xFFFFFFFF)), (len(index), count)).copy()
    metric, trees, changed = metric_of(operator, distance, EMBEDDING_COLUMNS, seed), 0, 1.0
    while count and trees < (MAX_TREES if depth else 1) and changed >= SETTLED:
        found = split_points(metric, index, n, depth, seed + 1_000_003 * (trees + 1), comm, random=True)
        reach = keys_of(np.concatenate(comm.allgather(lists[:, -1])))
        i, j, d = _closer(metric, *found, reach, count)
        if comm.size > 1:
            i, j, d = to_owners(comm, np.searchsorted(starts, i, side="right") - 1, i, j, d)
        new = _merge(lists, i - first, j, d)
        changed, trees = comm.allreduce(new) / (n * count), trees + 1
    numbers = (lists & np.uint64(0xFFFFFFFF)).astype(np.int64)
    numbers = np.where(numbers < n, numbers, index[:, None])
    return Neighbours(operator.alive[first:last], operator.alive[numbers], keys_of(lists), trees, changed if depth else 0.0)


def _leaf_size(n_neighbours):
    """Most points of a leaf of a projection tree: 16κ, but no more than 2048 where that is 4κ. A leaf has at least half as many: > κ."""
    return max(min(4, _LEAF) * n_neighbours, min(_LEAF * n_neighbours, _LARGE))


def _closer(metric, points, index, leaf, reach, count):
    """Pairs of points in one leaf that are closer than reach[i], the `count` closest of every i at most: i, j int64, d float32.

    points and index sorted by leaf; every leaf has more than `count` points. Leaves of one size (there are two) are searched together,
    those of more than `_CHUNK` distances in slabs of rows.
    """
    none = np.zeros(0, np.int64)
    found = [(none, none, np.zeros(0, np.float32))]
    at = np.flatnonzero(np.diff(leaf, prepend=-1))
    sizes = np.diff(np.append(at, len(leaf)))
    for size in np.unique(sizes):
        starts, size = at[sizes == size], int(size)
        step, height = max(1, _CHUNK // size**2), min(size, max(1, _CHUNK // size))
        for chunk in np.split(starts, range(step, len(starts), step)):
            rows = (chunk[:, None] + np.arange(size)).ravel()
            slabs = (slice(a, min(size, a + height)) for a in range(0, size, height))
            found += [_closest(metric, points[rows], index[rows], size, slab, reach, count) for slab in slabs]
    return tuple(np.concatenate(part) for part in zip(*found))


def _closest(metric, points, numbers, size, rows, reach, count):
    """`_closer` of leaves of `size` points, for their points `rows` alone."""
    D, own = metric.within(points, size, rows).astype(np.float32, copy=False), np.arange(size)[rows]
    D[:, np.arange(len(own)), own] = np.inf
    mine = numbers.reshape(-1, size)[:, rows].ravel()
    D = D.reshape(len(mine), size)
    close = D < reach[mine][:, None]
    many = np.flatnonzero(np.count_nonzero(close, axis=1) > count)
    close[many] = False
    close[many[:, None], np.argpartition(D[many], count - 1, axis=1)[:, :count]] = True
    i, j = np.nonzero(close)
    return mine[i], numbers[i // len(own) * size + j], D[i, j]


def _merge(lists, rows, ids, d):
    """Put the pairs (rows[p], ids[p]) at distances d[p] into the lists of `ordered` codes, in place. Number of new entries."""
    count, new = lists.shape[1], 0
    slab, held = max(_SLAB, count // 4), np.sort(lists & np.uint64(0xFFFFFFFF), axis=1)
    held |= np.arange(len(lists), dtype=np.uint64)[:, None] << np.uint64(32)  # (row, id), sorted
    wanted = rows.astype(np.uint64) << np.uint64(32) | ids.astype(np.uint64)
    unknown = held.ravel()[np.minimum(np.searchsorted(held.ravel(), wanted), held.size - 1)] != wanted
    rows, codes = rows[unknown], ordered(d[unknown], ids[unknown])
    order = np.argsort(rows, kind="stable")
    rows, codes = rows[order], codes[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    for low in range(0, int(place.max(initial=-1)) + 1, slab):
        now = (place >= low) & (place < low + slab)
        first = np.flatnonzero(place[now] == low)
        both = np.full((len(first), count + slab), np.iinfo(np.uint64).max)
        touched = rows[now][first]
        both[:, :count] = lists[touched]
        both[np.searchsorted(touched, rows[now]), count + place[now] - low] = codes[now]
        both.sort(axis=1)
        new += int(np.count_nonzero(lists[touched] > both[:, count - 1 : count]))
        lists[touched] = both[:, :count]
    return new
