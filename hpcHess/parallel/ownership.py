"""Who owns which rows and which tree nodes."""

import numpy as np

from hpcHess.runtime.errors import InputError


def starts_of(counts):
    """First items of consecutive pieces of `counts` items and the end of the last: 0 and the cumulative sums, int64 [len + 1]."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)


def neighbours_within(sizes, most):
    """(first, last) of consecutive items whose sizes add up to at most `most`, one item at least; all items in turn."""
    ends, first = starts_of(sizes), 0
    while first < len(sizes):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + most, side="right")) - 1)
        yield first, last
        first = last


def row_starts(n_rows, n_ranks):
    """First rows of the contiguous pieces of PETSc's default layout, int64 [n_ranks + 1]."""
    ranks = np.arange(n_ranks + 1, dtype=np.int64)
    return ranks * (n_rows // n_ranks) + np.minimum(ranks, n_rows % n_ranks)


def node_owners(level, depth, n_ranks):
    """Owner of every node of `level`, int64 [2^level], not decreasing.

    With the cut level c = min(depth, ⌈log₂P⌉ + 2), node i of level ℓ belongs to rank ⌊(i >> max(0, ℓ−c))·P / 2^min(ℓ,c)⌋:
    whole subtrees below the cut for any P (imbalance at most 1.12), and the top levels shrink to fewer ranks.
    A left child belongs to its parent's owner.
    """
    cut = min(depth, int(np.ceil(np.log2(n_ranks))) + 2)
    nodes = np.arange(1 << level, dtype=np.int64)
    return (nodes >> max(0, level - cut)) * n_ranks >> min(level, cut)


def node_starts(level, depth, n_ranks):
    """First node of `level` of each rank, int64 [n_ranks + 1]: rank r owns nodes starts[r] … starts[r+1] − 1."""
    return np.searchsorted(node_owners(level, depth, n_ranks), np.arange(n_ranks + 1)).astype(np.int64)


def whole_rows(V, n_rows):
    """V as a float32 or float64 array [n_rows] or [n_rows, k] that every rank gives whole. InputError where it is none."""
    V = np.asarray(V)
    if V.dtype.kind not in "fiub":
        raise InputError(f"vectors must be real numbers, not {V.dtype}")
    if V.shape[:1] != (n_rows,) or V.ndim > 2:
        raise InputError(f"a vector of shape {V.shape} does not fit a matrix of {n_rows} parameters")
    if V.dtype.kind == "f" and V.dtype.itemsize <= 8:
        return V.astype(np.result_type(V.dtype.newbyteorder("="), np.float32), copy=False)
    return V.astype(np.float64)
