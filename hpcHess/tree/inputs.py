"""Trees that respect the network: parameters that share an input stay together, inputs are clustered by their correlations.

A Gram-type curvature is H_jk = (1/n) Σ_i x_iq x_iq' κ_i(p, p') for weights j = (ℓ, p, q), k = (ℓ', p', q'): the neurons' kernel κ does
not decay, the inputs' correlations do. So all neurons' weights of one input form a group, and nodes of groups are cut at the
median along the principal axis of their inputs' unit vectors (in an embedding of the n samples by a random projection,
Johnson & Lindenstrauss 1984). Measured against the other distances in docs/MATHEMATICS.md.
"""

import numpy as np

from hpcHess.parallel.exchange import ranges
from hpcHess.parallel.ownership import starts_of

EMBEDDING_COLUMNS = 128


def input_order(groups, rows, depth):
    """Order of n parameters, int64 [n], to be halved `depth` times (`tree.Tree.halved`).

    groups int [n]: each parameter's input; rows [n_groups, k]: the inputs' vectors. The parameters of a group stay in their order.
    """
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = (rows / np.where(norms > 0, norms, 1)).astype(np.float64)
    by_group = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=len(rows))
    starts = starts_of(sizes)[:-1]
    present = np.flatnonzero(sizes)
    pieces = [(present, starts[present], sizes[present])]  # a node: groups, first parameter in by_group, number of parameters
    for _ in range(depth):
        pieces = [half for piece in pieces for half in _halves(rows, *piece)]
    first, counts = (np.concatenate([piece[at] for piece in pieces]) for at in (1, 2))
    return by_group[ranges(first, counts)]


def _halves(rows, group, first, count):
    """Cut a node at its median along the principal axis; the group on the cut is divided."""
    order = np.lexsort((group, along_principal_axis(rows[group], count)))
    group, first, count = group[order], first[order], count[order]
    ends = np.cumsum(count)
    left = (ends[-1] + 1) // 2 if len(ends) else 0
    at = int(np.searchsorted(ends, left))
    taken = left - (ends[at] - count[at]) if len(ends) else 0
    count_left, first_right, count_right = count[: at + 1].copy(), first[at:].copy(), count[at:].copy()
    if len(ends):
        count_left[-1], first_right[0], count_right[0] = taken, first_right[0] + taken, count[at] - taken
    keep = count_right > 0
    return (group[: at + 1], first[: at + 1], count_left), (group[at:][keep], first_right[keep], count_right[keep])


def along_principal_axis(rows, weights):
    """Coordinates of the rows along the principal axis of their weighted covariance; rounded, so that ties do not depend on rounding."""
    if len(rows) < 2:
        return np.zeros(len(rows))
    centered = rows - weights @ rows / weights.sum()
    scaled = centered * np.sqrt(weights)[:, None]
    if len(rows) <= rows.shape[1]:
        axis = scaled.T @ np.linalg.eigh(scaled @ scaled.T)[1][:, -1]
    else:
        axis = np.linalg.eigh(scaled.T @ scaled)[1][:, -1]
    coordinates = centered @ axis
    peak = np.abs(coordinates).max(initial=0.0)
    if peak == 0:
        return coordinates
    coordinates = np.round(coordinates / peak, 6)
    return coordinates * (1 if coordinates[np.argmax(np.abs(coordinates))] > 0 else -1)
