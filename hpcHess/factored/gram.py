r"""The Gram matrix G Gᵀ [nr, nr] of H = GᵀG, G = n^{-1/2} (R_iᵀ J_i)_i: with x̃_i^ℓ and C_i^ℓ [r, d_ℓ] of `FactoredForm.factors`, its blocks are

    (GGᵀ)_ij = (1/n) Σ_ℓ ⟨x̃_i^ℓ, x̃_j^ℓ⟩ C_i^ℓ C_j^{ℓᵀ},   [r, r],

one matrix product a layer and pair of blocks of samples. The Jacobians, nrN numbers, are never formed.
"""

import numpy as np


def gram_blocks(form, progress=None):
    """Yields (rows, columns, block) that cover the lower triangle of GGᵀ for the own samples' rows: slices of all n · r rows, float64.

    Every rank hears every rank's samples once, block by block. Blocks on the diagonal are whole. Collective: to be exhausted on all ranks.
    """
    comm, r, first = form.comm, form.rank, int(form.sample_starts[form.comm.rank])
    own = form.blocks()
    every = [(owner, lo, hi) for owner, blocks in enumerate(comm.allgather(own)) for lo, hi in blocks]
    width = form.block(0, 0).shape[1]
    for owner, lo, hi in every:
        other = np.ascontiguousarray(form.block(lo, hi)) if owner == comm.rank else np.empty((hi - lo, width))
        comm.Bcast(other, owner)
        begin = int(form.sample_starts[owner]) + lo
        wanted = [(a, b) for a, b in own if first + b > begin and r]
        right = list(form.factors(other)) if wanted else []
        for a, b in wanted:
            block = _pairs(form.factors(form.block(a, b)), right) / form.n
            yield slice((first + a) * r, (first + b) * r), slice(begin * r, (begin + hi - lo) * r), block
        if progress is not None:
            progress.advance(hi - lo)


def _pairs(left, right):
    """Σ_ℓ ⟨x̃_i, x̃_j⟩ C_i C_jᵀ, [m r, m' r]."""
    total = None
    for (x, C), (x2, C2) in zip(left, right, strict=True):
        if not x.shape[1]:  # a layer that is not chosen
            continue
        (m, r, d), m2 = C.shape, len(C2)
        part = C.reshape(m * r, d) @ C2.reshape(m2 * r, d).T
        part.reshape(m, r, m2, r)[...] *= (x @ x2.T)[:, None, :, None]
        total = part if total is None else np.add(total, part, out=total)
    return total


def gram_flops(form):
    """Arithmetic of the lower triangle."""
    widths = [form.network.widths[layer + 1] for layer in form.network.chosen]
    return float(form.n * form.rank) ** 2 * (sum(widths) + 4 * len(widths))


def norm_from_gram(form):
    """‖H‖_F = ‖GGᵀ‖_F, exact. Collective."""
    total = 0.0
    for rows, columns, block in gram_blocks(form):
        below = np.arange(rows.start, rows.stop)[:, None] - np.arange(columns.start, columns.stop)
        squares = np.square(block)
        total += 2 * float(squares[below > 0].sum()) + float(squares[below == 0].sum())
    return float(np.sqrt(form.comm.allreduce(total)))
