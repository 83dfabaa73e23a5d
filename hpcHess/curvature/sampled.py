"""Operators whose entries are sampled, and whose products are exact."""

from numbers import Integral, Real

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.curvature.importance import ImportanceSampler
from hpcHess.parallel.agree import tell, together
from hpcHess.runtime.errors import InputError


class SampledEntries:
    r"""An operator of Gram type, H = (1/n) Σ_i G_iᵀ G_i, whose entries come from c samples a block in place of n (`curvature.importance`):

    .. math:: \tilde H_{IJ} = \frac{1}{c} \sum_{t=1}^c \frac{G_{i_t I}^T G_{i_t J}}{n P_{i_t}}, \quad P_i \propto \|G_{iI}\|_F \|G_{iJ}\|_F, \quad
              E \tilde H_{IJ} = H_{IJ}, \quad E \|\tilde H_{IJ} - H_{IJ}\|_F^2 \le \frac{tr H_{II} \, tr H_{JJ}}{c}

    for a single entry: standard deviation ≤ √(H_jj H_kk / c). Chen, Reiz, Yu, Bungartz, Biros, SIMAX 2021.

    operator            a `GaussNewton`, `Fisher`, `MonteCarloFisher` or `EmpiricalFisher`; `exact`
    samples_per_entry   c, the draws of a block; 0: ⌈1/error²⌉
    error               ε = 1/√c
    seed                of the draws
    global_draw         one draw for the whole matrix, P_i ∝ tr H_i, in place of one a block: entries then are those of one positive semidefinite
                        matrix of at most c weighted samples, the same whatever the blocks, evaluated as exact ones are (`curvature.entries`), and the
                        deviation of the whole has the same bound; single blocks may be much worse than their own

    Everything else, `diagonal` and `samples` too, is the operator's own and exact: formats that use no entries (kronecker-sum, low-rank, none,
    data-woodbury) are as exact as without. Draws depend on the seed and the block's two sets of parameters alone. `entry_draws` is c, and 0 where
    c ≥ n: then entries are exact, and a warning says so. Never combine sampled entries with exact products in one compression: their
    difference is noise of full rank (`refuse_mixing`). Making it is collective; InputError for values out of range, for operators of other types.
    """

    def __init__(self, operator, samples_per_entry=0, error=0.1, seed=0, global_draw=False):
        comm = operator.comm
        with together(comm):
            _check(operator, samples_per_entry, error, seed)
        count = int(samples_per_entry) or int(np.ceil(1 / error**2 - 1e-6))
        self.exact, self._options = operator, {"samples_per_entry": count, "seed": int(seed), "global_draw": bool(global_draw)}
        self.entry_draws = count if count < operator.samples.n else 0
        self._sampler = self._whole = None
        if not self.entry_draws:
            tell(comm, [f"{count} draws a block are no fewer than the {operator.samples.n} samples: entries are exact"])
            return
        self._sampler = ImportanceSampler(operator._entries, comm, count, seed)
        if global_draw:
            self._whole = operator.reduced(self._sampler.whole())

    def __getattr__(self, name):
        if name == "exact":  # not made yet
            raise AttributeError(name)
        return getattr(self.exact, name)

    def __repr__(self):
        way = "one draw" if self._whole is not None else "a block"
        return f"SampledEntries({self.exact!r}, {f'{self.entry_draws} samples, {way}' if self.entry_draws else 'exact'})"

    def __matmul__(self, V):
        return self.exact.matmat(V)

    def reduced(self, quadrature):
        """The operator of a `Quadrature`'s samples and weights, its entries sampled among those. Collective."""
        return SampledEntries(self.exact.reduced(quadrature), **self._options)

    def entries(self, I, J):
        """H̃[I, J], [|I|, |J|], for int64 parameter indices, from one draw. Not collective."""
        if self.entry_draws and self._whole is None:
            return self._sampler.block(I, J)
        return (self._whole or self.exact).entries(I, J)

    def entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of H̃[I_b, J_b] for flat index arrays cut at the starts, each from its own draw. Not collective."""
        if not self.entry_draws or self._whole is not None:
            return (self._whole or self.exact).entries_batch(I, starts_I, J, starts_J)
        result = Blocks.shaped(lambda size: np.empty(size, self.exact.dtype), np.diff(starts_I), np.diff(starts_J))
        for b in range(len(result)):
            result[b][...] = self._sampler.block(I[starts_I[b] : starts_I[b + 1]], J[starts_J[b] : starts_J[b + 1]])
        return result

    def sampled_pairs(self, j, k):
        """H̃_jk, [m] float64, for int64 parameter indices j, k [m]: each pair with probabilities of its own, O(n + r c) a pair; the same as
        `entries([j], [k])` without a global draw, sampled even where c ≥ n says otherwise of blocks. Not collective.
        """
        if self._sampler is None:
            raise InputError("entries are exact here, of as many draws as samples or more: use entries, or fewer samples_per_entry")
        return self._sampler.pairs(np.asarray(j, np.int64), np.asarray(k, np.int64))

    def close(self):
        """Free the host's shared memory, the operator's too. Collective."""
        for each in (self._sampler, self._whole, self.exact):
            if each is not None:
                each.close()


def _check(operator, count, error, seed):
    if not hasattr(operator, "samples") or not hasattr(operator, "_entries"):
        raise InputError(f"entries are sampled of matrices of Gram type (gauss-newton, fisher, mc-fisher, opg), not of {type(operator).__name__}")
    for name, value in (("samples_per_entry", count), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
            raise InputError(f"{name} must be an integer of at least 0, not {value!r}")
    if not isinstance(error, Real) or not 0 < error < 1:
        raise InputError(f"the error of sampled entries must be larger than 0 and smaller than 1, not {error!r}")


def refuse_mixing(operator, mixed, instead):
    """InputError where the operator's entries are sampled: `mixed` says what would combine them with exact products."""
    if getattr(operator, "entry_draws", 0):
        raise InputError(
            f"{mixed} combines exact products with entries, which are sampled here (the difference is noise of full rank): {instead}, or exact entries"
        )


def noise_of(operator, norm, rtol):
    """A line on what sampled entries leave of an error, and what would lower it, given ‖H‖_F; "" where entries are exact. Collective."""
    count = getattr(operator, "entry_draws", 0)
    if not count or not norm:
        return ""
    ratio = float(operator.diagonal().astype(np.float64).sum()) / norm
    needed = int(np.ceil((ratio / rtol) ** 2))
    more = f"raise samples_per_entry (to at most {needed:,}) or rtol, or" if needed < operator.n_samples else "raise rtol or"
    return f"entries are sampled, {count} draws a block leave noise of up to tr H / (√{count} ‖H‖_F) = {ratio / np.sqrt(count):.3g}: {more} use exact entries"
