"""The Frobenius norm of a nested-basis matrix, exactly, from its level arrays."""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.exchange import Halo, ranges
from hpcHess.parallel.ownership import neighbours_within, starts_of
from hpcHess.skeleton.levels import to_parents

_PIECE = 1 << 17  # numbers of an array in float64: nodes, pairs or blocks that are taken together


def norm_frobenius(H):
    """‖H̃‖_F = (Σ ‖D‖² + 2 Σ_{far pairs} ⟨B, G_α B G_β⟩)^½ with the bases' Gram matrices G_α = U_αᵀU_α,

    G_α = P G Pᵀ,  P = [I T],  G = blockdiag(G_left, G_right), I at the leaves.
    O(N s²), in float64; beside G of two levels at most some arrays of `_PIECE` numbers, or of one node. Collective.
    """
    total, inner = _near_squares(H.backend, H.near), None
    for number in range(len(H.levels) - 1, 0, -1):
        level = H.levels[number]
        gram = _basis_gram(H.comm, H.backend, level, inner)
        total += 2 * _coupling_squares(H.comm, H.backend, level, gram)
        if number > 1:
            above = H.levels[number - 1]
            data = to_parents(H.comm, H.backend, gram.data[:, None], level, above, level.ranks**2)
            children = level.ranks[2 * above.owned[H.comm.rank] : 2 * above.owned[H.comm.rank + 1]]
            inner = Blocks.shaped(data[:, 0], children, children)
    return float(np.sqrt(H.comm.allreduce(total)))


def _near_squares(backend, near):
    """Σ ‖D‖² over the own near pairs, both ways."""
    blocks, weights, total = near.blocks, np.where(near.own[:, 0] == near.own[:, 1], 1.0, 2.0), 0.0
    for first, last in neighbours_within(blocks.rows * blocks.cols, _PIECE):
        squares = np.square(backend.to_host(blocks.data[blocks.offsets[first] : blocks.offsets[last]]), dtype=np.float64)
        total += float(squares @ np.repeat(weights[first:last], np.diff(blocks.offsets[first : last + 1])))
    return total


def _basis_gram(comm, backend, level, inner):
    """G of the own nodes = P (G_inner (Pᵀ I)); `inner` holds the children's G (None at the leaves, whose inner Gram matrix is I)."""
    xp, (columns, ranks) = backend.xp, (level.own(comm, counts) for counts in (level.columns, level.ranks))
    gram = Blocks.shaped(lambda size: xp.empty(size, np.float64), ranks, ranks)
    for first, last in neighbours_within(columns * ranks, _PIECE):
        at = level.column_starts[first]
        skeleton = level.skeleton_rows[level.skeleton_starts[first] : level.skeleton_starts[last]] - at
        redundant = level.redundant_rows[level.redundant_starts[first] : level.redundant_starts[last]] - at
        T, s = level.T.part(slice(first, last)), ranks[first:last]
        width = int(s.max(initial=0))
        ones = _filled(backend, s, width, np.arange(int(s.sum())) * width + ranges(np.zeros_like(s), s), 1.0)
        rows = backend.expand_rows(T, skeleton, redundant, ones)
        if inner is not None:
            children = inner.part(slice(2 * first, 2 * last))
            starts, rows, given = starts_of(children.rows)[:-1], xp.zeros_like(rows), rows
            backend.multiply(children, given, starts, rows, starts)
        rows = backend.compress_rows(T, skeleton, redundant, rows)
        gram.data[gram.offsets[first] : gram.offsets[last]] = rows.reshape(-1)[backend.asarray(_inside(s, s, width))]
    return gram


def _coupling_squares(comm, backend, level, gram):
    """Σ ⟨B, G_α B G_β⟩ over the own pairs."""
    xp, far, total = backend.xp, level.far, 0.0
    halo = Halo(comm, far.pairs, level.owned, level.ranks**2)
    flat = gram.data
    if not halo.empty:
        flat = xp.concatenate([flat, backend.exchanged(comm, halo.fetch, flat[:, None])[:, 0]])
    row_at, col_at = halo.starts(far.own[:, 0]), halo.starts(far.own[:, 1])
    for first, last in neighbours_within(np.maximum(far.rows, far.cols) * far.cols, _PIECE):
        m, n = far.rows[first:last], far.cols[first:last]
        width, rows, cols = int(n.max(initial=0)), starts_of(m)[:-1], starts_of(n)[:-1]
        right = _filled(backend, n, width, _inside(n, n, width), flat[backend.asarray(ranges(col_at[first:last], n * n))])
        B, left = far.blocks.part(slice(first, last)), Blocks(flat, m, m, row_at[first:last])
        product, both = xp.zeros((int(m.sum()), width)), xp.zeros((int(m.sum()), width))
        backend.multiply(B, right, cols, product, rows)
        backend.multiply(left, product, rows, both, rows)
        values = far.blocks.data[far.blocks.offsets[first] : far.blocks.offsets[last]].astype(np.float64)
        total += float(values @ both.reshape(-1)[backend.asarray(_inside(m, n, width))])
    return total


def _filled(backend, rows, width, where, values):
    """[Σ rows, width], zero but for `values` at the flat positions `where`."""
    result = backend.xp.zeros((int(rows.sum()), width))
    result.reshape(-1)[backend.asarray(where)] = values
    return result


def _inside(rows, cols, width):
    """Where blocks [rows[i] × cols[i]], one below the other in an array of `width` columns, have their numbers."""
    return ranges(np.arange(int(rows.sum())) * width, np.repeat(cols, rows))
