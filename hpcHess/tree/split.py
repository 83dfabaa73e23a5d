"""Geometry-oblivious splits of all nodes of a level at once, points split over ranks.

Every node is cut at the median of d(i, p) − d(i, q). For a cluster tree p, q are a far pair: p farthest from a sample of the node,
q farthest from p (GOFMM, Yu and others, SC 2017, §2.2); for a randomized projection tree they are random (ibid., §2.3).
Ties go by point index, so the tree does not depend on the number of ranks.
"""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel.ownership import node_owners
from hpcHess.parallel.random import scramble
from hpcHess.tree.tree import level_sizes

_SAMPLE = 4  # reference points that stand for a node's centroid


def split_points(metric, index, n, depth, seed, comm, random=False):
    """Halve n points `depth` times: this rank's (points, index, leaf), sorted by leaf and index, whole leaves on one rank. Collective.

    `metric` (`tree.distance`) with this rank's points, index int64 [m] their global numbers; `random`: a projection tree.
    """
    points, node, sizes = metric.points, np.zeros(len(index), np.int64), level_sizes(n, depth)
    cut = min(depth, int(np.ceil(np.log2(comm.size))) + 2) if comm.size > 1 else 0
    for level in range(depth + 1):
        if level == cut and comm.size > 1:
            points, index, node = to_owners(comm, node_owners(level, depth, comm.size)[node], points, index, node)
        if level == depth:
            break
        if level < cut:
            right = split_level(metric, points, index, node, sizes[level + 1][::2], seed + level, comm, random)
        elif len(node):
            first, last = node.min(), node.max() + 1
            own = sizes[level + 1][2 * first : 2 * last : 2]
            right = split_level(metric, points, index, node - first, own, seed + level, MPI.COMM_SELF, random)
        else:
            right = node
        node = 2 * node + right
    order = np.lexsort((index, node))
    return points[order], index[order], node[order]


def to_owners(comm, target, *arrays):
    """Rows of the arrays sent to the ranks `target` [m], in the order of the sending ranks. Collective."""
    order = np.argsort(target, kind="stable")
    cuts = np.searchsorted(target[order], np.arange(1, comm.size))
    sent = zip(*(np.split(array[order], cuts) for array in arrays))
    return tuple(np.concatenate(part) for part in zip(*comm.alltoall(list(sent))))


def split_level(metric, points, index, node, left_sizes, seed, comm, random=False):
    """Which of this rank's points go to the right child, bool [m]. Collective.

    points [m, …] rows of the metric, index int64 [m] their global numbers, node int64 [m] their nodes at this level,
    left_sizes int64 [#nodes] points that each left child takes. Every node has a point.
    """
    n_nodes = len(left_sizes)
    sample = _gathered(points, index, node, n_nodes, scramble(index, seed), 2 if random else _SAMPLE, comm)
    if random:
        dp, q = metric.to_nodes(points, node, sample[0]), sample[1]
    else:
        d = sum(metric.to_nodes(points, node, reference) for reference in sample)
        p = _farthest(points, index, node, n_nodes, d, comm)
        dp = metric.to_nodes(points, node, p)
        q = _farthest(points, index, node, n_nodes, dp, comm)
    key = dp - metric.to_nodes(points, node, q)
    return ~_smallest(key, index, node, left_sizes, comm)


def _first_by(order_key, index, node, n_nodes, count):
    """Up to `count` local points a node with the smallest (order_key, index): positions and their nodes."""
    order = np.lexsort((index, order_key, node))
    starts = np.searchsorted(node[order], np.arange(n_nodes + 1))
    taken = np.minimum(np.diff(starts), count)
    rank = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
    return order[rank < np.repeat(taken, np.diff(starts))]


def _gathered(Z, index, node, n_nodes, order_key, count, comm):
    """The `count` points a node with the smallest (order_key, index) over all ranks: [count, #nodes, k] rows (repeated if fewer)."""
    chosen = _first_by(order_key, index, node, n_nodes, count)
    pieces = (order_key[chosen], index[chosen], node[chosen], Z[chosen])
    if comm.size > 1:
        pieces = [np.concatenate(part) for part in zip(*comm.allgather(pieces))]
    keys, numbers, nodes, rows = pieces
    order = _first_by(keys, numbers, nodes, n_nodes, count)
    starts = np.searchsorted(nodes[order], np.arange(n_nodes + 1))
    available = np.diff(starts)
    return [rows[order[starts[:-1] + np.minimum(c, available - 1)]] for c in range(count)]


def _farthest(Z, index, node, n_nodes, d, comm):
    return _gathered(Z, index, node, n_nodes, -d, 1, comm)[0]


def ordered(key, index):
    """uint64 codes whose order is that of (key in float32, index), index < 2^32."""
    bits = np.float32(key + np.float32(0)).view(np.uint32)
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (bits.astype(np.uint64) << np.uint64(32)) | index.astype(np.uint64)


def keys_of(codes):
    """The float32 keys of `ordered` codes."""
    bits = (codes >> np.uint64(32)).astype(np.uint32)
    return np.where(bits >> 31, bits & np.uint32((1 << 31) - 1), ~bits).view(np.float32)


def _smallest(key, index, node, counts, comm):
    """Mask of the counts[a] points with the smallest (key, index) in every node a, over all ranks."""
    code = ordered(key, index)
    if comm.size == 1:
        order = np.lexsort((code, node))
        starts = np.searchsorted(node[order], np.arange(len(counts)))
        mask = np.zeros(len(key), bool)
        mask[order] = np.arange(len(order)) - starts[node[order]] < counts[node[order]]
        return mask
    # the counts[a]-th code of every node, digit by digit: how many codes with the digits found so far have which next digit
    found, wanted = np.zeros(len(counts), np.uint64), np.array(counts)
    for shift in range(56, -8, -8):
        digits = code >> np.uint64(shift)
        among = np.flatnonzero(digits >> np.uint64(8) == found[node])
        digits = (digits[among] & np.uint64(255)).astype(np.int64)
        below = np.cumsum(comm.allreduce(np.bincount(node[among] * 256 + digits, minlength=256 * len(counts))).reshape(-1, 256), axis=1)
        digit = np.argmax(below >= wanted[:, None], axis=1)
        wanted = wanted - np.where(digit > 0, below[np.arange(len(counts)), digit - 1], 0)
        found = found << np.uint64(8) | digit.astype(np.uint64)
    return (code <= found[node]) & (counts[node] > 0)
