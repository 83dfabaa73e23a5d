"""How many numbers a compressed matrix holds, and the table of its levels."""

import numpy as np


def count_storage(matrix):
    """storage_entries, storage_bytes, storage_percent (of N², dead parameters included) and the levels' table. Collective.

    Counts what a product needs: near blocks (n(n+1)/2 on the diagonal), couplings once, interpolations without their identity.
    """
    comm, itemsize, tree = matrix.comm, matrix.dtype.itemsize, matrix.tree
    near = matrix.near
    entries = np.where(near.own[:, 0] == near.own[:, 1], near.rows * (near.rows + 1) // 2, near.rows * near.cols)
    near_entries = comm.allreduce(int(entries.sum()))
    table = []
    for number in range(tree.depth + 1):
        level = matrix.levels[number] if number < len(matrix.levels) else None
        ranks = np.zeros(1, np.int64) if level is None else level.ranks
        own = 0 if level is None else int(level.T.offsets[-1] + level.far.blocks.offsets[-1])
        held = comm.allreduce(own) + (near_entries if number == tree.depth else 0)
        table.append(
            {
                "level": number,
                "nodes": 1 << number,
                "rank_min": int(ranks.min()),
                "rank_mean": float(ranks.mean()),
                "rank_max": int(ranks.max()),
                "far_blocks": 0 if level is None else len(level.far.pairs),
                "near_blocks": len(near.pairs) if number == tree.depth else 0,
                "bytes": held * itemsize,
            }
        )
    total = sum(row["bytes"] for row in table) // itemsize
    return {
        "storage_entries": total,
        "storage_bytes": total * itemsize,
        "storage_percent": 100.0 * total / float(matrix.n_params) ** 2,
        "levels": table,
    }
