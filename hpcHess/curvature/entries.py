"""Exact entries of Gram-type curvature matrices, grouped by neuron pairs.

    H_jk = (1/n) Σ_i x_iq x_iq' κ_i(p, p'),   κ_i(p, p') = ⟨C_i e_p, C_i e_p'⟩,   j = (ℓ, p, q), k = (ℓ', p', q')

κ(p, p') is one vector over the samples; all entries of a neuron p with a set of columns are one matrix product with inner
dimension n: O(n) an entry, plus n·d for every pair of neurons that meets in the block.
"""

import numpy as np

from hpcHess.backend.blocks import Blocks


class Entries:
    """Evaluates entries from `Samples`. Neurons are numbered through all layers; input q = d_{ℓ−1} is the bias."""

    def __init__(self, samples):
        self.samples = samples
        neuron, row, n_before, rows_before = [], [], 0, 0
        for W, b in zip(samples.weights, samples.biases):
            out, inner = W.shape
            neuron.append(np.repeat(np.arange(out, dtype=np.int32) + n_before, inner))
            row.append(np.tile(np.arange(inner, dtype=np.int32) + rows_before, out))
            if b is not None:
                neuron.append(np.arange(out, dtype=np.int32) + n_before)
                row.append(np.full(out, inner + rows_before, np.int32))
            n_before, rows_before = n_before + out, rows_before + inner + 1
        self._neuron, self._row = np.concatenate(neuron), np.concatenate(row)
        self._layer_starts = np.concatenate([[0], np.cumsum([len(W) for W in samples.weights])])
        self._row_starts = np.concatenate([[0], np.cumsum([W.shape[1] + 1 for W in samples.weights])])

    def block(self, I, J):
        """H[I, J], [|I|, |J|]."""
        I, J = np.asarray(I, np.int64), np.asarray(J, np.int64)
        neurons_I, of_I = np.unique(self._neuron[I], return_inverse=True)
        neurons_J, of_J = np.unique(self._neuron[J], return_inverse=True)
        if len(neurons_J) < len(neurons_I):
            return self.block(J, I).T
        result = np.zeros((len(I), len(J)), self.samples.dtype)
        X_J = self._inputs(self._row[J])
        for at, p in enumerate(neurons_I):
            mine = np.flatnonzero(of_I == at)
            kappa, meets = self._kappa(p, neurons_J)
            X_I = self._inputs(self._row[I[mine]])
            columns = np.flatnonzero(meets[of_J]) if not meets.all() else slice(None)
            weighted = X_J[columns] * kappa[of_J[columns]]
            result[mine[:, None], np.arange(len(J))[columns]] = X_I @ weighted.T
        result /= self.samples.n
        return result

    def _inputs(self, rows):
        """Input rows over the samples, [len(rows), n]."""
        layer = np.searchsorted(self._row_starts, rows, side="right") - 1
        if len(rows) and layer.min() == layer.max():
            return self.samples.inputs_t[layer[0]][rows - self._row_starts[layer[0]]]
        result = np.empty((len(rows), self.samples.n), self.samples.dtype)
        for each in np.unique(layer):
            result[layer == each] = self.samples.inputs_t[each][rows[layer == each] - self._row_starts[each]]
        return result

    def _kappa(self, p, others):
        """κ(p, p') for p' in others (sorted), [len(others), n], and whether it can differ from zero, bool [len(others)]."""
        M_p, g_p = self._factor(p)
        kappa, meets = np.empty((len(others), self.samples.n), self.samples.dtype), np.ones(len(others), bool)
        cuts = np.searchsorted(others, self._layer_starts)
        for layer, (a, b) in enumerate(zip(cuts[:-1], cuts[1:])):
            if a == b:
                continue
            local = others[a:b] - self._layer_starts[layer]
            M, g = self.samples.M[layer], self.samples.g[layer]
            if M.ndim == 3:  # per sample: Σ_e C_i[e, p] C_i[e, p']
                kappa[a:b] = np.einsum("en,pen->pn", M_p, M[local]) if M_p.ndim == 2 else np.einsum("e,pen->pn", M_p, M[local])
            elif M_p.ndim == 2:
                kappa[a:b] = M[local] @ M_p
            else:
                gram = M[local] @ M_p
                meets[a:b] = gram != 0
                kappa[a:b] = gram[:, None]
            if g is not None:
                kappa[a:b] *= g[local]
        if g_p is not None:
            kappa *= g_p
        return kappa, meets

    def _factor(self, p):
        """(M [d, n] or [d], g [n] or None) of one neuron."""
        layer = int(np.searchsorted(self._layer_starts, p, side="right")) - 1
        local, g = p - self._layer_starts[layer], self.samples.g[layer]
        return self.samples.M[layer][local], None if g is None else g[local]

    def batch(self, I, starts_I, J, starts_J):
        """`Blocks` of H[I_b, J_b] for flat index arrays cut at the starts [b + 1]."""
        result = Blocks.shaped(np.empty(int((np.diff(starts_I) * np.diff(starts_J)).sum()), self.samples.dtype), np.diff(starts_I), np.diff(starts_J))
        for b in range(len(result)):
            result[b][...] = self.block(I[starts_I[b] : starts_I[b + 1]], J[starts_J[b] : starts_J[b + 1]])
        return result

    def own_kernel(self, layer, rows):
        """κ_i(p, p) of a layer's neurons for a slice of samples, [d_ℓ, len]."""
        M, g = self.samples.M[layer], self.samples.g[layer]
        if g is None:
            return np.einsum("pen,pen->pn", M[:, :, rows], M[:, :, rows])
        return np.square(g[:, rows]) * np.einsum("pe,pe->p", M, M)[:, None]
