"""A complete binary cluster tree over the alive parameters."""

from dataclasses import dataclass

import numpy as np

from hpcHess.parallel.ownership import starts_of


def depth_for(n, leaf_size):
    """Smallest depth L with ⌈n / 2^L⌉ ≤ leaf_size."""
    depth = 0
    while -(-n >> depth if n else 0) > leaf_size:
        depth += 1
    return depth


def level_sizes(n, depth):
    """Sizes of the nodes of every level when n points are halved again and again: list of int64 [2^level]; left gets the larger half."""
    sizes = [np.array([n], np.int64)]
    for _ in range(depth):
        left = (sizes[-1] + 1) // 2
        sizes.append(np.stack([left, sizes[-1] - left], axis=1).ravel())
    return sizes


@dataclass
class Tree:
    """Positions 0 … n−1 in tree order; every leaf lies at level `depth`, sizes may differ.

    `permutation` int64 [n]: tree position → parameter index. `leaf_starts` int64 [2^depth + 1].
    """

    depth: int
    permutation: np.ndarray
    leaf_starts: np.ndarray

    @property
    def n(self):
        """Number of alive parameters."""
        return len(self.permutation)

    @property
    def leaf_sizes(self):
        """int64 [2^depth]."""
        return np.diff(self.leaf_starts)

    @classmethod
    def halved(cls, permutation, depth):
        """The tree over `permutation` whose nodes are halved `depth` times."""
        return cls(depth, permutation, starts_of(level_sizes(len(permutation), depth)[-1]))
