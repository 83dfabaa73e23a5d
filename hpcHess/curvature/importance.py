r"""Entries by importance sampling of the samples (Chen, Reiz, Yu, Bungartz & Biros, SIMAX 2021, §3).

With G_ij = x_iq C_i e_p ∈ R^r for the parameter j = (ℓ, p, q), a block is a mean over the samples

    H_IJ = (1/n) Σ_i G_iI ᵀ G_iJ,   of which c drawn ones, with probabilities P_i, give   H̃_IJ = (1/c) Σ_t G_{i_t I}ᵀ G_{i_t J} / (n P_{i_t}).

P_i ∝ ‖G_iI‖_F ‖G_iJ‖_F, ‖G_iI‖_F² = Σ_{j∈I} x_iq² ‖C_i e_p‖², makes H̃_IJ unbiased with

    E ‖H̃_IJ − H_IJ‖_F² ≤ ((1/n) Σ_i ‖G_iI‖_F ‖G_iJ‖_F)² / c ≤ tr H_II · tr H_JJ / c

(Cauchy–Schwarz), for a single entry H_jj H_kk / c. The squares of a partition's blocks add up to (tr H)² / c, which is also what one draw for the
whole matrix has, P_i ∝ ‖G_i‖_F². Draws are stratified, one from each of c equal parts of the sum of the P_i: their mean is the same and their
variance no larger than that of c independent ones.

Draws depend on the seed and on the sets I and J alone (not on their order, nor on which of them is rows): they are the same on every rank,
whatever was asked before, and so H̃_JI = H̃_IJ ᵀ, bit for bit.
"""

import numpy as np

from hpcHess.curvature.quadrature import Quadrature
from hpcHess.parallel.random import scramble
from hpcHess.parallel.shared import HostArray

_PIECE = 1 << 16  # numbers of one temporary that stays in the cache
_KERNEL = 1 << 20  # of κ at some of the drawn samples
_COLUMNS = 16  # products of a matrix product in the time of an elementwise one
_ODD = np.uint64(0xD1342543DE82EF95)  # between the counters of one block's draws


class ImportanceSampler:
    """Blocks from `count` draws each, of an operator's `Entries`. Making it is collective over `comm`, its methods are not.

    norms   [Σ d_ℓ, n]: ‖C_i e_p‖ of all neurons and samples, once per host
    """

    def __init__(self, entries, comm, count, seed):
        self.entries, self.samples, self.count, self.seed = entries, entries.samples, int(count), int(seed)
        starts = self.samples.neuron_starts
        self._held = HostArray(comm, (int(starts[-1]), self.samples.n), self.samples.dtype)
        share = self._held.share_of(self.samples.n)
        step = max(1, _PIECE // max(1, int(starts[-1])))
        for lo in range(share.start, share.stop, step):
            piece = slice(lo, min(share.stop, lo + step))
            for layer in np.flatnonzero(self.samples.inner):  # the chosen ones
                self._held.array[starts[layer] : starts[layer + 1], piece] = np.sqrt(self.samples.own_kernel(int(layer), piece))
        self._held.fence()
        self.norms = self._held.array

    def block(self, I, J):
        """H̃[I, J], [|I|, |J|], for int64 parameter indices in any order; P of the block as a whole: O(n (|I| + |J|)) and the drawn samples."""
        (I, of_I), (J, of_J) = (np.unique(np.asarray(each, np.int64), return_inverse=True) for each in (I, J))
        if not len(I) or not len(J):
            return np.zeros((len(of_I), len(of_J)), self.samples.dtype)
        if len(I) == len(J) == 1:
            H = self.pairs(I, J)[:, None]
        else:
            a, b = _Set(I, self.entries), _Set(J, self.entries)
            H = self._block(b, a).T if b.order() < a.order() else self._block(a, b)
        return H.astype(self.samples.dtype)[of_I][:, of_J]

    def pairs(self, j, k):
        """H̃_jk of every pair of parameters, [m] float64, each from a draw of its own, P_i ∝ |x_iq x_iq'| ‖C_i e_p‖ ‖C_i e_p'‖: O(n + r c) each."""
        j, k = np.minimum(j, k), np.maximum(j, k)
        (p, q), (p2, q2) = self.entries.locate(j), self.entries.locate(k)
        keys = self._keys(scramble(j, 1), scramble(k, 1))
        X, n, result = self.samples.X, self.samples.n, np.zeros(len(keys))
        step = max(1, _PIECE // n)
        for lo in range(0, len(keys), step):
            some = slice(lo, min(len(keys), lo + step))
            products = X[q[some]] * X[q2[some]]
            for at, sizes in enumerate(np.abs(products) * (self.norms[p[some]] * self.norms[p2[some]]), some.start):
                drawn, weights = self._drawn(keys[at], sizes)
                kappa = self._kernel(p[at : at + 1], p2[at : at + 1], drawn)[0, 0]
                result[at] = np.sum(weights * products[at - some.start, drawn] * kappa)
        return result

    def whole(self):
        """The `Quadrature` of one draw for the whole matrix, P_i ∝ ‖G_i‖_F² = tr H_i; its error is not known. The same on every rank."""
        samples, sizes = self.samples, np.zeros(self.samples.n)
        for layer in range(samples.n_layers):
            own = self.norms[samples.neuron_starts[layer] : samples.neuron_starts[layer + 1]]
            sizes += _column_squares(own) * _column_squares(samples.parameter_inputs(layer))
        drawn, weights = self._drawn(self._keys(np.zeros(1, np.uint64), np.zeros(1, np.uint64))[0], sizes)
        if not len(drawn):
            drawn, weights = np.zeros(1, np.int64), np.ones(1)
        return Quadrature(drawn, weights, np.nan, np.nan, samples.n)

    def _keys(self, a, b):
        """uint64 of pairs of sets' numbers, the same for (b, a)."""
        return scramble(scramble(a, 2) + scramble(b, 2), self.seed)

    def _drawn(self, key, sizes):
        """(different samples drawn with P ∝ sizes [n], w_i = #i / (c n P_i)); none where all are 0."""
        cumulative, counters = np.cumsum(sizes, dtype=np.float64), np.arange(self.count)
        total = cumulative[-1]
        if not total > 0:
            return np.zeros(0, np.int64), np.zeros(0)
        uniform = (scramble(key + counters.astype(np.uint64) * _ODD, 3) >> np.uint64(11)) * 2.0**-53
        at = np.searchsorted(cumulative, (counters + uniform) * (total / self.count), side="right")
        drawn, times = np.unique(np.minimum(at, np.searchsorted(cumulative, total)), return_counts=True)
        return drawn, times * (total / (self.count * len(sizes))) / sizes[drawn]

    def _sizes(self, side):
        """‖G_iI‖_F of all samples, float64 [n]; summed in the samples' type: any P will do where the weights follow it."""
        n, neuron, result = self.samples.n, side.neurons[side.of], np.empty(self.samples.n, self.samples.dtype)
        step = max(256, _PIECE // len(neuron))
        for lo in range(0, n, step):
            piece = slice(lo, min(n, lo + step))
            A = self.samples.X[side.row, piece]
            A *= self.norms[neuron, piece]
            np.einsum("jn,jn->n", A, A, out=result[piece])
        return np.sqrt(result, dtype=np.float64)

    def _block(self, I, J):
        """H̃_IJ in the order of the sets' parameters, float64."""
        sizes, same = self._sizes(I), np.array_equal(I.row, J.row) and np.array_equal(I.of, J.of) and np.array_equal(I.neurons, J.neurons)
        drawn, weights = self._drawn(self._keys(I.number, J.number)[0], sizes * (sizes if same else self._sizes(J)))
        H, n_I, n_J, rank = np.zeros((len(I.row), len(J.row))), len(I.neurons), len(J.neurons), self.samples.rank
        some_shared, all_shared = (min(I.neurons[at], J.neurons[at]) >= self.entries._separable for at in (-1, 0))
        add = self._add_columns if rank * len(I.row) < _COLUMNS * n_I and not some_shared else self._add_by_neuron
        add = self._add_shared if all_shared else add
        step = max(1, _KERNEL // max(n_I * n_J, (len(I.row) + len(J.row)) * rank))
        for lo in range(0, len(drawn), step):
            some = drawn[lo : lo + step]
            X_I, X_J = (self.samples.X[np.ix_(each.row, some)].astype(np.float64) for each in (I, J))
            X_I *= weights[lo : lo + step]
            add(I, J, X_I, X_J, some, H)
        H = (H + H.T) / 2 if same else H
        return H[I.place][:, J.place]

    def _add_by_neuron(self, I, J, X_I, X_J, drawn, H):
        """H += Σ_i x_iq κ_i(p, p') x_iq', neuron by neuron of I: #p |J| products besides the |I| |J| of a sample."""
        kappa = self._kernel(I.neurons, J.neurons, drawn)
        for p in range(len(I.neurons)):
            mine = slice(I.starts[p], I.starts[p + 1])
            H[mine] += X_I[mine] @ (kappa[p][J.of] * X_J).T

    def _add_shared(self, I, J, X_I, X_J, drawn, H):
        """H += ⟨M e_p, M e_p'⟩ ∘ A_I A_Jᵀ, A = (g_ip x_iq), where all factors are C_i e_p = g_ip M e_p."""
        A_I, A_J = (X * self._slopes(each.neurons, drawn)[each.of] for each, X in ((I, X_I), (J, X_J)))
        gram = self.entries._gram[np.ix_(I.neurons - self.entries._separable, J.neurons - self.entries._separable)]
        H += gram[I.of][:, J.of] * (A_I @ A_J.T)

    def _add_columns(self, I, J, X_I, X_J, drawn, H):
        """H += Σ_i G_iIᵀG_iJ as one matrix product, r |I| |J| of a sample: where I has about as many neurons as parameters and r is small."""
        G_I, G_J = (self._columns(each.neurons, drawn)[:, each.of] * X.T[:, :, None] for each, X in ((I, X_I), (J, X_J)))
        H += np.tensordot(G_I, G_J, axes=((0, 2), (0, 2)))

    def _kernel(self, I, J, drawn):
        """κ_i(p, p') for neurons I and J, sorted, at drawn samples, float64 [|I|, |J|, #drawn]."""
        stored, rank, entries = self.entries.kernel.stored, self.samples.rank, self.entries
        if stored is not None and len(I) * len(J) <= rank * (len(I) + len(J)):
            place = entries.kernel.place
            return stored[place[I][:, None, None], place[J][:, None], drawn].astype(np.float64)
        result, a, b = np.empty((len(I), len(J), len(drawn))), *(np.searchsorted(each, entries._separable) for each in (I, J))
        for rows, columns in ((slice(0, a), slice(0, None)), (slice(a, None), slice(0, b))):
            if result[rows, columns].size:
                result[rows, columns] = self._products(I[rows], J[columns], drawn)
        if result[a:, b:].size:  # C_i e_p = g_ip M e_p
            gram = entries._gram[np.ix_(I[a:] - entries._separable, J[b:] - entries._separable)].astype(np.float64)
            result[a:, b:] = gram[:, :, None] * self._slopes(I[a:], drawn)[:, None] * self._slopes(J[b:], drawn)
        return result

    def _products(self, I, J, drawn):
        """⟨C_i e_p, C_i e_p'⟩, [|I|, |J|, #drawn]: by ⟨C_i e_p, v⟩ = √o_p v_p, o = p or q, where p is of a last layer without stored factors."""
        first = self.samples.neuron_starts[-2] if self.samples.C[-1] is None and self.samples.output is not None else self.samples.neuron_starts[-1]
        a = np.searchsorted(J, first)
        F, result = self._columns(I, drawn), np.empty((len(drawn), len(I), len(J)))
        if a:
            np.matmul(F, self._columns(J[:a], drawn).transpose(0, 2, 1), out=result[:, :, :a])
        if a < len(J):
            local = J[a:] - first
            result[:, :, a:] = F[:, :, local] * np.sqrt(self.samples.output[np.ix_(local, drawn)].T.astype(np.float64))[:, None]
        return result.transpose(1, 2, 0)

    def _columns(self, neurons, drawn):
        """C_i e_p of neurons, sorted, [#drawn, #neurons, r], float64."""
        return self.samples.columns(neurons, drawn, np.float64).transpose(2, 0, 1)

    def _slopes(self, neurons, drawn):
        """g of layers with shared factors, [#neurons, #drawn]: s', 1 in the last layer."""
        hidden, result = np.searchsorted(neurons, self.samples.neuron_starts[-2]), np.ones((len(neurons), len(drawn)))
        result[:hidden] = self.samples.slopes[np.ix_(neurons[:hidden], drawn)]
        return result

    def close(self):
        """Free the host's memory. Collective."""
        self.norms = None
        self._held.close()


class _Set:
    """Different parameters sorted by neuron and input: `row` [len] of X, the `neurons`, `starts` of their groups and `of` [len], the number of
    each one's neuron; `place` [len], where the parameters given (sorted) stand; `number` uint64 [1], the set's."""

    def __init__(self, parameters, entries):
        neuron, row = entries.locate(parameters)
        order = np.lexsort((row, neuron))
        self.place = np.empty_like(order)
        self.place[order] = np.arange(len(order))
        self.row, neuron = row[order], neuron[order]
        self.neurons, first, self.of = np.unique(neuron, return_index=True, return_inverse=True)
        self.starts = np.append(first, len(neuron))
        self.number = np.sum(scramble(parameters, 1), keepdims=True)

    def order(self):
        """Blocks are evaluated with the set of fewer neurons first."""
        return len(self.neurons), int(self.number[0])


def _column_squares(A):
    """Σ_j A_jn², float64 [n]."""
    result, step = np.empty(A.shape[1]), max(256, _PIECE // max(1, len(A)))
    for lo in range(0, A.shape[1], step):
        piece = A[:, lo : lo + step]
        result[lo : lo + step] = np.einsum("jn,jn->n", piece, piece, dtype=np.float64)
    return result
