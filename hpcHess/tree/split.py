"""Geometry-oblivious splits of all nodes of a level at once, points split over ranks.

Every node is cut at the median of d(i, p) − d(i, q) for a far pair: p farthest from a sample of the node, q farthest from p
(GOFMM, Yu and others, SC 2017, §2.2). Ties go by point index, so the tree does not depend on the number of ranks.
"""

import numpy as np

from hpcHess.parallel.random import scramble
from hpcHess.tree.distance import pairwise

_SAMPLE = 4  # reference points that stand for a node's centroid


def split_level(Z, index, node, left_sizes, distance, seed, comm):
    """Which of this rank's points go to the right child, bool [m]. Collective.

    Z [m, k] normalized embedding rows, index int64 [m] the points' global numbers, node int64 [m] their nodes at this level,
    left_sizes int64 [#nodes] points that each left child takes.
    """
    n_nodes = len(left_sizes)
    d = np.zeros(len(Z), Z.dtype)
    for reference in _sample(Z, index, node, n_nodes, seed, comm):
        d += pairwise(Z, reference[node], distance)
    p = _farthest(Z, index, node, n_nodes, d, comm)
    dp = pairwise(Z, p[node], distance)
    q = _farthest(Z, index, node, n_nodes, dp, comm)
    key = dp - pairwise(Z, q[node], distance)
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


def _sample(Z, index, node, n_nodes, seed, comm):
    return _gathered(Z, index, node, n_nodes, scramble(index, seed), _SAMPLE, comm)


def _farthest(Z, index, node, n_nodes, d, comm):
    return _gathered(Z, index, node, n_nodes, -d, 1, comm)[0]


def _smallest(key, index, node, counts, comm):
    """Mask of the counts[a] points with the smallest (key, index) in every node a, over all ranks.

    Keys become order-preserving 64-bit integers; every node's threshold is found by bisection on counts.
    """
    bits = np.float32(key + 0.0).view(np.uint32)
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    code = (bits.astype(np.uint64) << np.uint64(32)) | index.astype(np.uint64)
    order = np.lexsort((code, node))
    starts = np.searchsorted(node[order], np.arange(len(counts) + 1))
    if comm.size == 1:
        taken = counts
    else:
        code_sorted = [code[order[a:b]] for a, b in zip(starts[:-1], starts[1:])]
        lo, hi = np.zeros(len(counts), np.uint64), np.full(len(counts), np.iinfo(np.uint64).max, np.uint64)
        taken = np.zeros(len(counts), np.int64)
        for _ in range(64):  # invariant: #(code < lo) ≤ counts ≤ #(code ≤ hi)
            middle = lo + (hi - lo) // np.uint64(2) + np.uint64(1)
            taken = np.array([np.searchsorted(c, m) for c, m in zip(code_sorted, middle)], np.int64)
            enough = comm.allreduce(taken) > counts
            hi, lo = np.where(enough, middle - np.uint64(1), hi), np.where(enough, lo, middle)
        taken = np.array([np.searchsorted(c, m) for c, m in zip(code_sorted, lo)], np.int64)
    mask = np.zeros(len(key), bool)
    rank = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
    mask[order] = rank < np.repeat(taken, np.diff(starts))
    return mask
