"""Near and far pairs of nodes: which blocks are dense, which are compressed, and at which level."""

import numpy as np


def near_self(depth):
    """HSS: every leaf is near itself alone. int64 [2^depth, 2]."""
    leaves = np.arange(1 << depth, dtype=np.int64)
    return np.stack([leaves, leaves], axis=1)


def far_pairs(near, depth):
    """Dual tree traversal over same-level nodes: a pair with a near leaf pair below it is split, else it is far.

    `near` int64 [n, 2] with α ≤ β, the diagonal included. Returns a list over levels 0 … depth of int64 [n_far, 2], α < β, sorted.
    With `near_self` these are the siblings (HSS).
    """
    far = [np.empty((0, 2), np.int64)]
    for level in range(1, depth + 1):
        above, here = np.unique(near >> (depth - level + 1), axis=0), np.unique(near >> (depth - level), axis=0)
        children = (2 * above[:, None, :] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).reshape(-1, 2)
        children = np.unique(children[children[:, 0] < children[:, 1]], axis=0)
        far.append(children[~np.isin(*(pairs[:, 0] << np.int64(level) | pairs[:, 1] for pairs in (children, here)))])
    return far
