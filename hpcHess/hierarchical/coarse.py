"""A second, coarser HSS matrix from the sketch of an FMM one: its direct factors precondition solves with the FMM matrix.

An FMM matrix has no factors: its bases see the far field only. Skeletons of all that lies outside of the leaves themselves follow from
the same Ω and Y = HΩ, R_α = Y_α − D_αα Ω_α, in one pass.
"""

import numpy as np

from hpcHess.compressed.certificate import spectral_norm
from hpcHess.hierarchical.error import estimate_error
from hpcHess.hierarchical.evaluate import multiply_tree_rows
from hpcHess.hierarchical.matrix import HierarchicalMatrix
from hpcHess.hierarchical.storage_count import count_storage
from hpcHess.hierarchical.tolerance import Budget
from hpcHess.parallel.ownership import node_starts
from hpcHess.parallel.random import gaussian_rows
from hpcHess.skeleton.levels import PairBlocks, select
from hpcHess.skeleton.skeletonize import Skeletonizer
from hpcHess.tree.interactions import far_fields, far_pairs, near_self

RTOL = 1e-2  # of the whole matrix; never finer than the FMM matrix itself
MISSED = 3.0  # times what was asked for: an error that is told


def coarse_hss(skeletonizer, matrix, rtol, norm, probes, max_rank=0):
    """An HSS matrix with ‖· − H‖_F ≈ max(rtol, `RTOL`) ‖H‖_F from the `Skeletonizer` that made the FMM `matrix`. Collective.

    norm: ‖H‖_F (`error.Norm`); probes: (G, HG) in tree rows, which no skeleton has seen. Its report holds rtol as asked, error_estimate as
    measured on the probes (relative to ‖H‖_F), saturated_nodes (`Saturation`), error_spectral (‖· − H̃‖₂, from below) and what
    it stores beyond `matrix`, whose leaf blocks it shares: storage_entries, storage_bytes, levels; `matrix` gets it as its
    `preconditioner`, its report in `report["preconditioner"]`.
    """
    tree, backend = matrix.tree, matrix.backend
    near, rtol = diagonal_blocks(backend, matrix.near, tree), max(rtol, RTOL)
    far = far_pairs(near.pairs, tree.depth)
    second = Skeletonizer(skeletonizer.operator, tree, near, far, skeletonizer.samples, backend, skeletonizer.dtype)
    levels, saturation = second.run(Budget(rtol, norm.value, far_fields(far)).tolerances(), max_rank)
    coarse = HierarchicalMatrix(matrix.comm, backend, matrix.n_params, tree, near, levels)
    coarse.report = {
        "rtol": float(rtol),
        "error_estimate": estimate_error(coarse, *probes, norm)[0].as_dict(),
        "saturated_nodes": int(saturation.nodes),
        "error_spectral": _distance(coarse, matrix),
        **_stored_besides(coarse),
    }
    matrix.preconditioner = coarse
    return coarse


def missed(report):
    """A line where the coarse matrix of this report is far from what was asked for, and why."""
    error, rtol, nodes = report["error_estimate"]["value"], report["rtol"], report["saturated_nodes"]
    if error > MISSED * rtol:
        why = f": the ranks of {nodes} nodes were cut, by max_rank or by the memory for samples" if nodes else ""
        yield f"the preconditioner's error is {error:.2g} of ‖H‖_F, asked {rtol:g}: solves may take many iterations{why}"


def diagonal_blocks(backend, near, tree):
    """The blocks of `near` between leaves and themselves, as `PairBlocks` of an HSS matrix. Not collective."""
    comm = near.halo.comm
    found = PairBlocks(comm, near_self(tree.depth), node_starts(tree.depth, tree.depth, comm.size), tree.leaf_sizes)
    found.set(select(backend, near.blocks, np.flatnonzero(near.own[:, 0] == near.own[:, 1])).data)
    return found


def _distance(A, B, columns=8, products=8):
    """‖A − B‖₂ from below, of two matrices of one tree. Collective."""
    rows = A.tree.permutation[slice(*A.tree_rows(A.leaf_rows))]
    start = gaussian_rows(0, "distance", 0, A.n_params, range(columns), np.float64)[rows]

    def apply(W):
        W = A.backend.asarray(np.ascontiguousarray(W))
        return A.backend.to_host(multiply_tree_rows(A, W) - multiply_tree_rows(B, W))

    return spectral_norm(apply, A.comm, start, products, 1e-2)


def _stored_besides(coarse):
    """`count_storage` without the leaf blocks."""
    counted = count_storage(coarse)
    sizes = coarse.tree.leaf_sizes
    shared = int((sizes * (sizes + 1) // 2).sum())
    entries = counted["storage_entries"] - shared
    counted["levels"][-1]["bytes"] -= shared * coarse.dtype.itemsize
    return {
        "storage_entries": entries,
        "storage_bytes": entries * coarse.dtype.itemsize,
        "levels": counted["levels"],
    }
