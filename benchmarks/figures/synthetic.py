"""An HSS matrix of given size made of level arrays of realistic shapes: what a product or a factorization costs depends on shapes alone.

Leaves of two sizes, ranks that differ by node, orders and skeletons shuffled; values are scaled copies of a few random blocks, so that making it is
quick, and such that H̃ + I is definite: D_α = s_α S + I with ‖s_α S‖ < 1/2, couplings of norm about 1e-3.
"""

import numpy as np

from hpcHess import backend as backends
from hpcHess.backend import Blocks
from hpcHess.hierarchical.matrix import HierarchicalMatrix
from hpcHess.parallel.ownership import starts_of
from hpcHess.skeleton.levels import PairBlocks, new_level, pair_sums
from hpcHess.tree.interactions import far_pairs, near_self
from hpcHess.tree.tree import Tree

SPREAD = (0.75, 1.0, 1.0, 1.25)  # of the ranks


def hss(comm, depth, leaf, rank, dtype=np.float32, seed=0, kernels=None):
    """`HierarchicalMatrix` with 2^depth leaves of about `leaf` parameters and ranks of about `rank`, in parameter order. Collective."""
    rng, kernels = np.random.default_rng(seed), kernels or backends.get()
    n = (leaf << depth) - (1 << depth) // 3
    tree, near_pairs = Tree.halved(np.arange(n), depth), near_self(depth)
    far, levels, columns = far_pairs(near_pairs, depth), [None] * (depth + 1), tree.leaf_sizes
    near = None
    for number in range(depth, 0, -1):
        level = levels[number] = new_level(comm, number, depth, columns)
        level.ranks = np.minimum(columns, (rank * rng.choice(SPREAD, len(columns))).astype(np.int64))
        own_columns, own_ranks = level.own(comm, level.columns), level.own(comm, level.ranks)
        level.order = _orders(own_columns, seed + number)
        level.T = _filled(own_ranks, own_columns - own_ranks, 0.5 / np.sqrt(leaf), dtype, kernels)
        level.arrange(comm, kernels)
        if number == depth:
            near = PairBlocks(comm, near_pairs, level.owned, tree.leaf_sizes)
            near.set(_leaves(near.rows, dtype, kernels).data)
        level.far = PairBlocks(comm, far[number], level.owned, level.ranks)
        level.far.set(_filled(level.far.rows, level.far.cols, 1e-3 / rank, dtype, kernels).data)
        columns = pair_sums(level.ranks)
    return HierarchicalMatrix(comm, kernels, n, tree, near, levels, {"lambda_max": 1.0})


def stored_bytes(matrix):
    """Of the level arrays, this rank's."""
    parts = [matrix.near.blocks, *(blocks for level in matrix.levels[1:] for blocks in (level.T, level.far.blocks))]
    return sum(int(blocks.offsets[-1]) * blocks.dtype.itemsize for blocks in parts)


def _orders(counts, seed):
    """A random order of every node's columns, flat."""
    owner = np.repeat(np.arange(len(counts)), counts)
    mixed = np.lexsort((np.random.default_rng(seed).random(len(owner)), owner))
    return mixed - np.repeat(starts_of(counts)[:-1], counts)


def _filled(rows, cols, scale, dtype, kernels):
    """Blocks of those shapes from one random table."""
    table = (scale * np.random.default_rng(1).standard_normal(1 << 20)).astype(dtype)
    blocks = Blocks.shaped(lambda size: np.resize(table, size), rows, cols)
    return Blocks(kernels.asarray(blocks.data), blocks.rows, blocks.cols, blocks.offsets)


def _leaves(sizes, dtype, kernels):
    """Symmetric definite blocks."""
    blocks = Blocks.shaped(lambda size: np.empty(size, dtype), sizes, sizes)
    templates = {}
    for i, size in enumerate(sizes.tolist()):
        if size not in templates:
            S = np.random.default_rng(size).standard_normal((size, size))
            templates[size] = ((S + S.T) / (8 * np.sqrt(size)) + np.eye(size)).astype(dtype)
        blocks[i][...] = templates[size]
    return Blocks(kernels.asarray(blocks.data), blocks.rows, blocks.cols, blocks.offsets)
