"""The Frobenius norm of a nested-basis matrix, exactly, from its level arrays."""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.exchange import Halo
from hpcHess.skeleton.levels import to_parents


def norm_frobenius(H):
    """‖H̃‖_F = (Σ ‖D‖² + 2 Σ_{far pairs} tr(B_αβᵀ G_α B_αβ G_β))^½ with the bases' Gram matrices G_α = U_αᵀU_α,

    G_α = P G Pᵀ = G_JJ + X + Xᵀ,  X = (G_JR + ½ T G_RR) Tᵀ,  P = [I T],  G = blockdiag(G_left, G_right), I at the leaves.
    O(N s²), on the host in float64. Collective.
    """
    near = H.near
    squares = np.square(H.backend.to_host(near.blocks.data), dtype=np.float64)
    total = float(squares @ np.repeat(np.where(near.own[:, 0] == near.own[:, 1], 1.0, 2.0), near.rows * near.cols))
    inner = None
    for number in range(len(H.levels) - 1, 0, -1):
        level = H.levels[number]
        gram = _basis_gram(H.comm, H.backend, level, inner)
        total += 2 * _coupling_squares(H.comm, H.backend, level, gram)
        if number > 1:
            data = to_parents(H.comm, H.backend, H.backend.asarray(gram.data[:, None]), level, H.levels[number - 1], level.ranks**2)
            children = level.ranks[2 * H.levels[number - 1].owned[H.comm.rank] : 2 * H.levels[number - 1].owned[H.comm.rank + 1]]
            inner = Blocks.shaped(H.backend.to_host(data)[:, 0], children, children)
    return float(np.sqrt(H.comm.allreduce(total)))


def _basis_gram(comm, backend, level, inner):
    """G of the own nodes; `inner` holds the children's G (None at the leaves, whose inner Gram matrix is I)."""
    T = Blocks(backend.to_host(level.T.data).astype(np.float64), level.T.rows, level.T.cols, level.T.offsets)
    gram = Blocks.shaped(np.zeros, T.rows, T.rows)
    for i in range(len(T)):
        if inner is None:
            gram[i][...] = np.eye(T.rows[i]) + T[i] @ T[i].T
            continue
        left, right = inner[2 * i], inner[2 * i + 1]
        both = np.zeros((len(left) + len(right),) * 2)
        both[: len(left), : len(left)], both[len(left) :, len(left) :] = left, right
        order = level.order[level.column_starts[i] : level.column_starts[i + 1]]
        J, R = order[: T.rows[i]], order[T.rows[i] :]
        X = (both[np.ix_(J, R)] + 0.5 * T[i] @ both[np.ix_(R, R)]) @ T[i].T
        gram[i][...] = both[np.ix_(J, J)] + X + X.T
    return gram


def _coupling_squares(comm, backend, level, gram):
    """Σ tr(Bᵀ G_α B G_β) over the own pairs."""
    far = level.far
    halo = Halo(comm, far.pairs, level.owned, level.ranks**2)
    flat = gram.data
    if not halo.empty:
        flat = np.concatenate([flat, halo.fetch(flat[:, None])[:, 0]])
    values, total = backend.to_host(far.blocks.data).astype(np.float64), 0.0
    for i, (a, b) in enumerate(zip(halo.starts(far.own[:, 0]), halo.starts(far.own[:, 1]))):
        m, n = far.rows[i], far.cols[i]
        B = values[far.blocks.offsets[i] : far.blocks.offsets[i + 1]].reshape(m, n)
        total += float(np.sum((flat[a : a + m * m].reshape(m, m) @ B) * (B @ flat[b : b + n * n].reshape(n, n))))
    return total

