"""Near and far pairs of nodes: which blocks are dense, which are compressed, and at which level."""

import numpy as np

from hpcHess.parallel.ownership import node_owners
from hpcHess.tree.split import to_owners


def near_self(depth):
    """HSS: every leaf is near itself alone. int64 [2^depth, 2]."""
    leaves = np.arange(1 << depth, dtype=np.int64)
    return np.stack([leaves, leaves], axis=1)


def most_near(depth, budget):
    """Bound of |Near(α)| before symmetrization, the leaf itself counted: max(1, ⌊budget · #leaves⌋)."""
    return max(1, int(budget * (1 << depth) + 1e-9))


def near_by_votes(comm, tree, parameters, neighbours, budget):
    """Near lists of GOFMM (Yu and others, SC 2017, §2.3): int64 [n, 2], α ≤ β, the diagonal included, sorted, whole on every rank.

    A neighbour of a point in leaf α votes for its own leaf; α takes the leaves with most votes, ties by number, up to `most_near`.
    The lists are then made symmetric. parameters int64 [m], neighbours int64 [m, κ]: this rank's part, as parameter indices. Collective.
    """
    n_leaves = 1 << tree.depth
    leaf_of = np.zeros(int(tree.permutation.max(initial=-1)) + 1, np.int64)
    leaf_of[tree.permutation] = np.repeat(np.arange(n_leaves), tree.leaf_sizes)
    keys, votes = np.unique(leaf_of[parameters][:, None] * n_leaves + leaf_of[neighbours], return_counts=True)
    if comm.size > 1:
        keys, votes = to_owners(comm, node_owners(tree.depth, tree.depth, comm.size)[keys // n_leaves], keys, votes)
        keys, which = np.unique(keys, return_inverse=True)
        votes = np.bincount(which, votes, len(keys)).astype(np.int64)
    others = keys // n_leaves != keys % n_leaves
    leaf, candidate = np.divmod(keys[others], n_leaves)
    order = np.lexsort((candidate, -votes[others], leaf))
    leaf, candidate = leaf[order], candidate[order]
    taken = np.arange(len(leaf)) - np.searchsorted(leaf, leaf) < most_near(tree.depth, budget) - 1
    accepted = np.concatenate(comm.allgather(np.minimum(leaf, candidate)[taken] * n_leaves + np.maximum(leaf, candidate)[taken]))
    pairs = np.unique(np.concatenate([accepted, np.arange(n_leaves, dtype=np.int64) * (n_leaves + 1)]))
    return np.stack(np.divmod(pairs, n_leaves), axis=1)


def far_pairs(near, depth):
    """Dual tree traversal over same-level nodes: a pair with a near leaf pair below it is split, else it is far.

    `near` int64 [n, 2] with α ≤ β, the diagonal included. Returns a list over levels 0 … depth of int64 [n_far, 2], α < β, sorted.
    With `near_self` these are the siblings (HSS).
    """
    far, here = [], near
    for level in range(depth, 0, -1):
        above = _unique(here >> 1)
        children = (2 * above[:, None, :] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).reshape(-1, 2)
        children = children[children[:, 0] < children[:, 1]]
        codes = np.sort(children[:, 0] << np.int64(level) | children[:, 1])
        codes = codes[~np.isin(codes, here[:, 0] << np.int64(level) | here[:, 1], assume_unique=True)]
        far.append(np.stack([codes >> np.int64(level), codes & np.int64((1 << level) - 1)], axis=1))
        here = above
    return [np.empty((0, 2), np.int64), *far[::-1]]


def _unique(pairs):
    """The different pairs, sorted."""
    codes = np.unique(pairs[:, 0] << np.int64(32) | pairs[:, 1])
    return np.stack([codes >> np.int64(32), codes & np.int64(0xFFFFFFFF)], axis=1)


def far_fields(far):
    """By level, whether a node or one of its ancestors has a far pair, bool [2^level]: only such a node has a basis of rank > 0."""
    flags = [np.zeros(1, bool)]
    for pairs in far[1:]:
        flags.append(np.repeat(flags[-1], 2))
        flags[-1][pairs.ravel()] = True
    return flags
