"""Exact entries of Gram-type curvature matrices, grouped by neurons.

    H_jk = (1/n) Σ_i x_iq x_iq' κ_i(p, p'),   κ_i(p, p') = ⟨C_i e_p, C_i e_p'⟩,   j = (ℓ, p, q), k = (ℓ', p', q')

* Where both factors are the same for all samples up to a scalar, C_i e_p = g_ip M e_p (squared error, last two layers),
      H_IJ = ⟨M e_p, M e_p'⟩ ∘ (1/n) A_I A_Jᵀ,   A_I = (g_ip x_iq) [|I|, n]:  one matrix product a block.
* Else for every pair of neurons p of I and p' of J:  H_{I_p, J_p'} = (1/n) (X_{I_p} ∘ κ(p, p')) X_{J_p'}ᵀ: #p·#p'·n·r operations for κ, none where
  it is stored, and |I||J|·n in place of the |I||J|·n·d of the Jacobian's Gram matrix.
* Where many diagonal blocks have the same neurons and few inputs each, and κ is not stored: one matrix product for all of them (`neuron_grids`).

Here parameters become pairs (p, q), sorted by neuron and input block by block; a backend evaluates a whole batch in one call (`backend.entries`).
"""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.backend.entries import GramFactors, Sides
from hpcHess.curvature.neuron_grids import Grids, add_group
from hpcHess.runtime.errors import InputError


class Entries:
    """Evaluates entries from `Samples` and a `Kernel` of them by a backend, for parameters in PyTorch's order. Not collective."""

    def __init__(self, network, samples, kernel, backend):
        self.samples, self.kernel, self.backend, self.n_params = samples, kernel, backend, network.n_params
        self._starts = np.array([at for at, _ in network.layer_offsets] + [network.n_params], np.int64)
        self._inner = np.array(network.inner, np.int64)
        self._n_weights = self._inner * network.widths[1:]
        first = samples.n_layers if samples.M[-1] is None else max(0, samples.n_layers - 2)
        self._separable = int(samples.neuron_starts[first])  # neurons from here on have C_i e_p = g_ip M e_p
        self._gram = None if first == samples.n_layers else self._shared_gram(first)
        self._factors = self._made(first)

    def _made(self, first):
        """`GramFactors` of the samples; layers from `first` on share their factors."""
        samples, put = self.samples, lambda array: None if array is None else self.backend.asarray(np.ascontiguousarray(array, self.samples.dtype))
        output = samples.output if samples.C[-1] is None else None  # else C says it all
        shared = None if self._gram is None else np.concatenate(samples.M[first:])
        return GramFactors(
            put(samples.X), samples.neuron_starts, [put(C) for C in samples.C], put(samples.slopes), self._separable, put(shared), put(self._gram),
            put(output), put(samples.rest), None if output is None else put(np.sqrt(output)), put(self.kernel.stored), self.kernel.place,
        )  # fmt: skip

    def _shared_gram(self, first):
        """⟨M e_p, M e_p'⟩ for the neurons of the layers from `first`, in the samples' type."""
        M = np.concatenate(self.samples.M[first:])
        gram = M @ M.T
        last = self.samples.widths[-1]
        gram[-last:, -last:] = 2 * np.eye(last)
        return gram.astype(self.samples.dtype)

    def locate(self, indices):
        """(neuron numbered through all layers, row of `samples.X`) of parameters; InputError for what are no indices of them."""
        indices = np.asarray(indices)
        if indices.size and (indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= self.n_params):
            raise InputError(f"indices of parameters must be integers of 0 … {self.n_params - 1}")
        indices = indices.astype(np.int64, copy=False)
        layer = np.searchsorted(self._starts, indices, side="right") - 1
        local, inner = indices - self._starts[layer], self._inner[layer]
        is_bias = local >= self._n_weights[layer]
        neuron, column = np.divmod(local, inner)
        neuron = np.where(is_bias, local - self._n_weights[layer], neuron)
        column = np.where(is_bias, inner, column)
        return neuron + self.samples.neuron_starts[layer], column + self.samples.row_starts[layer]

    def mean_kernel(self, neurons):
        """(1/n) Σ_i κ_i(p, p') for neurons numbered through all layers, [c, c]: the entries between their biases, there or not."""
        layer = np.searchsorted(self.samples.neuron_starts, neurons, side="right") - 1
        ones, starts = self.samples.row_starts[layer + 1] - 1, np.array([0, len(neurons)])
        side = self._sides(np.asarray(neurons, np.int64), ones, starts)
        return self._evaluated(side, side)[0]

    def block(self, I, J):
        """H[I, J], [|I|, |J|], for int64 parameter indices in any order."""
        return self.batch(I, np.array([0, len(I)]), J, np.array([0, len(J)]))[0]

    def batch(self, I, starts_I, J, starts_J):
        """`Blocks` of H[I_b, J_b] for flat index arrays cut at the starts [b + 1]."""
        rows = self._sides(*self.locate(I), np.asarray(starts_I, np.int64))
        same = I is J and np.array_equal(starts_I, starts_J)
        return self._evaluated(rows, rows if same else self._sides(*self.locate(J), np.asarray(starts_J, np.int64)))

    def _sides(self, neuron, row, starts):
        """`Sides` of (neuron, row of X) in any order, cut at the starts."""
        neuron, row, starts = neuron[starts[0] : starts[-1]], row[starts[0] : starts[-1]], starts - starts[0]
        block = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        order = np.argsort((block * self.samples.neuron_starts[-1] + neuron) * self.samples.row_starts[-1] + row, kind="stable")
        return Sides(neuron[order], row[order], order - starts[block], starts)

    def _evaluated(self, I, J):
        """Host `Blocks` of two `Sides`."""
        xp, dtype, scale = self.backend.xp, self.samples.dtype, 1 / self.samples.n
        H = Blocks.shaped(lambda size: xp.empty(size, dtype), np.diff(I.starts), np.diff(J.starts))
        rest = self._grids(I, J, scale, H)
        if rest is None:
            self.backend.gram_entries(self._factors, I, J, scale, H)
        elif len(rest):
            same, I = I is J, I.chosen(rest)
            self.backend.gram_entries(self._factors, I, I if same else J.chosen(rest), scale, H.part(rest))
        return Blocks(self.backend.to_host(H.data), H.rows, H.cols, H.offsets)

    def _grids(self, I, J, scale, H):
        """Evaluates the diagonal blocks that share neurons (`neuron_grids`), where κ is not stored; the other blocks' numbers, or None: all."""
        factors = self._factors
        if factors.stored is not None or factors.separable < factors.layer_starts[-1] or not (I is J or I.equals(J)):
            return None
        grids = Grids(I, factors.layer_starts, self.samples.rank)
        for neurons, blocks in grids.groups:
            add_group(self.backend, factors, I, neurons, blocks, scale, H)
        return grids.rest if grids.groups else None

    def close(self):
        """Let go of the samples' arrays and free the kernel's. Collective."""
        self._factors = None
        self.kernel.close()
