"""A second, coarser HSS matrix from the sketch of an FMM one: its direct factors precondition solves with the FMM matrix.

An FMM matrix has no factors: its bases see the far field only. Skeletons of the whole field outside of the leaves themselves follow from
the same Ω and Y = HΩ, R_α = Y_α − D_αα Ω_α, at little more than the cost of one pass.
"""

import numpy as np

from hpcHess.parallel.ownership import node_starts
from hpcHess.skeleton.levels import PairBlocks, select
from hpcHess.tree.interactions import near_self


def diagonal_blocks(backend, near, tree):
    """The blocks of `near` between leaves and themselves, as `PairBlocks` of an HSS matrix. Not collective."""
    comm = near.halo.comm
    found = PairBlocks(comm, near_self(tree.depth), node_starts(tree.depth, tree.depth, comm.size), tree.leaf_sizes)
    found.set(select(backend, near.blocks, np.flatnonzero(near.own[:, 0] == near.own[:, 1])).data)
    return found
