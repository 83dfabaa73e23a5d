"""Bytes that the busiest rank sends or receives in a phase, at most: the model of docs/PERFORMANCE.md, "Ranks: volume, messages, memory".

With N parameters, n alive (tree rows), P ranks, L = ⌈log₂P⌉, k vectors, w bytes a number, c sketch columns, 32 probes, r_ℓ the largest rank of a level,
m leaves. Levels whose nodes change owners on the way up, and whose siblings may have two owners, are the c₀ = min(depth, L + 2) top ones; T(k) =
Σ_{ℓ ≤ c₀} r_ℓ k w is what one node's rows of each of them weigh, S = Σ_{ℓ ≤ c₀} r_ℓ² w one node's square blocks. Objects go through trees: L times their
size at the root. A sketch that grows on the way does so in the phase of the skeletons.
"""

import numpy as np

from hpcHess.skeleton.sketch import SketchSamples

PROBES = 32
REPORT = 512  # bytes of the small things that every phase agrees on, a call


def modelled(matrix, operator, k, ranks):
    """{phase: bytes} for an HSS matrix made by a sketch."""
    N, n, depth, part, steps = operator.n_params, matrix.n_alive, matrix.tree.depth, (ranks - 1) / ranks, int(np.ceil(np.log2(ranks)))
    if ranks == 1:
        return {}
    columns, attempts, w = matrix.report["sketch_columns"], matrix.report["attempts"], operator.dtype.itemsize
    top = [int(matrix.levels[number].ranks.max(initial=0)) for number in range(1, min(depth, steps + 2) + 1)]
    moved = lambda width, size: float(sum(top)) * width * size  # noqa: E731
    leaves, rows = float(1 << depth), -(-n // ranks) * 1.25  # whole subtrees: at most 1.12 of the mean, and rounding
    product = lambda width: 6 * moved(width, 8)  # noqa: E731
    permuted = lambda width: 2 * rows * width * 8  # noqa: E731
    square = float(sum(rank**2 for rank in top))
    small, first = REPORT * steps, min(columns, SketchSamples.first_columns(matrix.tree, matrix.report["leaf_size"]))
    return {
        "tree": (8 * n + 8 * leaves + 8 * N + REPORT) * steps,
        "sketch": w * first * n * part + small,
        "near blocks": small,
        "exact probes": w * PROBES * n * part + small,
        "skeletons": w * (columns - first) * n * part + attempts * (4 * moved(columns + 4, w) + 16 * leaves + depth * small),
        "errors of the attempts": attempts * (product(PROBES) + 6 * 8 * square + 4 * 8 * PROBES * 2 * steps + 4 * small),
        "verification": w * PROBES * n * part + product(PROBES) + 4 * 8 * PROBES * 2 * steps + 4 * small,
        "exact product": 2 * w * N * k * part + small,
        "product H̃V": permuted(k) + product(k) + depth * small,
        "Woodbury factors": 8 * 6 * square + 16 * leaves + depth * small,
        "Woodbury solve": permuted(k) + product(k) + depth * small,
    }
