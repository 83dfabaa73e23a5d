"""Approximate nearest neighbours of all parameters by randomized projection trees (GOFMM: Yu and others, SC 2017, §2.3).

Every tree halves the points at random pairs until its leaves hold a few times κ points; inside a leaf all distances are computed and
every point's list keeps the κ nearest met so far. Trees follow until one changes less than SETTLED of the list entries.
"""

from dataclasses import dataclass

import numpy as np

from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError
from hpcHess.tree.distance import metric_of
from hpcHess.tree.split import split_points, to_owners
from hpcHess.tree.tree import depth_for

EMBEDDING_COLUMNS = 64
SETTLED = 0.02
MAX_TREES = 32
_LEAF = 4  # times κ: most points of a leaf of a projection tree
_SMALL = 128  # but no fewer
_CHUNK = 1 << 23  # distances computed at once


@dataclass
class Neighbours:
    """Lists of this rank's piece of the alive parameters: `parameters` int64 [m], `lists` int64 [m, κ] parameter indices, nearest
    first, itself not among them, and their `distances` [m, κ]. κ ≤ n_alive − 1. `changed`: part of the entries that the last of `trees` changed."""

    parameters: np.ndarray
    lists: np.ndarray
    distances: np.ndarray
    trees: int
    changed: float


def nearest_neighbours(operator, n_neighbours, distance="angle", seed=0):
    """`Neighbours` in the metric `angle` or `kernel` (`tree.distance.metric_of`). Collective; the same lists for any number of ranks, up to rounding.

    O(N κ) memory, O(N κ log N) distances. InputError where the operator has neither an embedding nor entries.
    """
    if not (hasattr(operator, "partial_probe") or hasattr(operator, "diagonal") and hasattr(operator, "entries_batch")):
        raise InputError("this operator has neither an embedding nor a diagonal and entries, which neighbours need: use format = 'hss'")
    comm, n = operator.comm, len(operator.alive)
    n_neighbours, starts = min(n_neighbours, max(0, n - 1)), row_starts(n, comm.size)
    depth = depth_for(n, max(_SMALL, _LEAF * n_neighbours))
    first, last = starts[comm.rank], starts[comm.rank + 1]
    lists, distances = np.full((last - first, n_neighbours), -1, np.int64), np.full((last - first, n_neighbours), np.inf, np.float32)
    metric, trees, changed = metric_of(operator, distance, EMBEDDING_COLUMNS, seed), 0, 1.0
    index = np.arange(first, last, dtype=np.int64)
    while n_neighbours and trees < (MAX_TREES if depth else 1) and changed >= SETTLED:
        found = split_points(metric, index, n, depth, seed + 1_000_003 * (trees + 1), comm, random=True)
        found = _inside_leaves(metric, *found, n_neighbours)
        if comm.size > 1:
            found = to_owners(comm, np.searchsorted(starts, found[0], side="right") - 1, *found)
        order = np.argsort(found[0])
        lists, distances, new = _merged(lists, distances, found[1][order], found[2][order])
        changed, trees = comm.allreduce(new) / (n * n_neighbours), trees + 1
    return Neighbours(operator.alive[first:last], operator.alive[lists], distances, trees, changed if depth else 0.0)


def _inside_leaves(metric, points, index, leaf, count):
    """The `count` nearest in its leaf of every point: (index [m], neighbours [m, count], distances [m, count]), points sorted by leaf.

    Every leaf has more than `count` points; leaves of one size, of which there are two at most, are searched together.
    """
    near, distances = np.empty((len(index), count), np.int64), np.empty((len(index), count), np.float32)
    at = np.flatnonzero(np.append(True, leaf[1:] != leaf[:-1])) if len(leaf) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(at, len(leaf)))
    for size in np.unique(sizes):
        starts = at[sizes == size]
        step = max(1, _CHUNK // int(size) ** 2)
        for chunk in np.split(starts, range(step, len(starts), step)):
            rows = (chunk[:, None] + np.arange(size)).ravel()
            D = metric.within(points[rows], int(size)).astype(np.float32, copy=False)
            D[:, np.arange(size), np.arange(size)] = np.inf
            taken = np.argpartition(D, count - 1, axis=2)[:, :, :count]
            distances[rows] = np.take_along_axis(D, taken, axis=2).reshape(-1, count)
            near[rows] = index[chunk[:, None, None] + taken].reshape(-1, count)
    return index, near, distances


def _merged(lists, distances, more, more_distances):
    """(lists, distances, number of new entries): the nearest of two lists a point, by (distance, index), without repetition."""
    count = lists.shape[1]
    ids, d = np.concatenate([lists, more], axis=1), np.concatenate([distances, more_distances], axis=1)
    order = np.argsort(ids, axis=1, kind="stable")  # of a repeated one the older comes first
    ids, d = np.take_along_axis(ids, order, axis=1), np.take_along_axis(d, order, axis=1)
    d[:, 1:][ids[:, 1:] == ids[:, :-1]] = np.inf
    nearest = np.argsort(d, axis=1, kind="stable")[:, :count]
    new = int(np.count_nonzero(np.take_along_axis(order, nearest, axis=1) >= count))
    return np.take_along_axis(ids, nearest, axis=1), np.take_along_axis(d, nearest, axis=1), new
