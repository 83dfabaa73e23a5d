"""Exact entries of Gram-type curvature matrices, grouped by neurons.

    H_jk = (1/n) Σ_i x_iq x_iq' κ_i(p, p'),   κ_i(p, p') = ⟨C_i e_p, C_i e_p'⟩,   j = (ℓ, p, q), k = (ℓ', p', q')

* Where both factors are the same for all samples up to a scalar, C_i e_p = g_ip M e_p (squared error, last two layers),
      H_IJ = ⟨M e_p, M e_p'⟩ ∘ (1/n) A_I A_Jᵀ,   A_I = (g_ip x_iq) [|I|, n]:  one matrix product a block.
* Else for every neuron p of I:  H_{I_p, J} = (1/n) X_{I_p} (κ(p, ·) ∘ X_J)ᵀ, where κ(p, p') [n] is made once for every neuron p'
  of J: #p·#p'·n·r + #p·|J|·n + |I||J|·n operations in place of the |I||J|·n·d of the Jacobian's Gram matrix.
* Where nearly every entry has a pair of neurons of its own and κ is not at hand, as the Gram matrix of the columns (x_iq C_i e_p) after all.
* Where I and J are nearly all pairs of some neurons and some inputs:  H_{(p,p'), (q,q')} = (1/n) Σ_i κ_i(p, p') (x_iq x_iq').

Samples are taken in pieces that stay in the cache; sums over pieces are in float64.
"""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.runtime.errors import InputError

_PIECE = 1 << 17  # numbers in one [|J|, samples] temporary of the second kind
_SPARSITY = 4  # most work by pairs of neurons and inputs, as a multiple of the block's entries
_PAIRS = 0.6  # of the products neuron by neuron: from here on pairs of inputs are fewer and faster (measured on 784-20-30-10)
_GEMM = 8  # entries a pair of neurons up to which their Jacobian columns' products, n r each, take less than κ made pair by pair (measured)
_ROWS = 1 << 21  # numbers in one [|I|, samples] temporary of the first kind


class Entries:
    """Evaluates entries from `Samples` and a `Kernel` of them, for parameters in PyTorch's order. Not collective."""

    def __init__(self, network, samples, kernel):
        self.samples, self.kernel, self.n_params = samples, kernel, network.n_params
        self._starts = np.array([at for at, _ in network.layer_offsets] + [network.n_params], np.int64)
        self._inner = np.array(network.inner, np.int64)
        self._n_weights = self._inner * network.widths[1:]
        first = samples.n_layers if samples.M[-1] is None else max(0, samples.n_layers - 2)
        self._separable = int(samples.neuron_starts[first])  # neurons from here on have C_i e_p = g_ip M e_p
        by_columns = hasattr(kernel, "columns")  # the Hessian's has none
        stored = samples.C[-1] is not None or samples.output is None
        self._outer = 0 if not by_columns else int(samples.neuron_starts[-1 if stored else -2])
        self._gram = None if first == samples.n_layers else self._shared_gram(first)

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
        ones = self.samples.row_starts[layer + 1] - 1
        return self._block(neurons, ones, neurons, ones)

    def block(self, I, J):
        """H[I, J], [|I|, |J|], for int64 parameter indices in any order."""
        return self._block(*self.locate(I), *self.locate(J))

    def batch(self, I, starts_I, J, starts_J):
        """`Blocks` of H[I_b, J_b] for flat index arrays cut at the starts [b + 1]."""
        result = Blocks.shaped(lambda size: np.empty(size, self.samples.dtype), np.diff(starts_I), np.diff(starts_J))
        at_I, at_J = self.locate(I), self.locate(J)
        for b in range(len(result)):
            rows, columns = slice(starts_I[b], starts_I[b + 1]), slice(starts_J[b], starts_J[b + 1])
            result[b][...] = self._block(at_I[0][rows], at_I[1][rows], at_J[0][columns], at_J[1][columns])
        return result

    def _block(self, neuron_I, row_I, neuron_J, row_J):
        I, J = _Side.sorted(neuron_I, row_I), _Side.sorted(neuron_J, row_J)
        H = np.zeros((len(neuron_I), len(neuron_J)))  # sums in float64, rows and columns sorted by neuron
        self._add(I, J, H)
        H /= self.samples.n
        return H.astype(self.samples.dtype)[I.place][:, J.place]

    def _add(self, I, J, H):
        """H += Σ_i of the entries."""
        a, b = np.searchsorted(I.neuron, self._separable), np.searchsorted(J.neuron, self._separable)
        self._add_by_neuron(I.part(slice(0, a)), J, H[:a])
        self._add_by_neuron(J.part(slice(0, b)), I.part(slice(a, None)), H[a:, :b].T)
        self._add_separable(I.part(slice(a, None)), J.part(slice(b, None)), H[a:, b:])

    def _add_separable(self, I, J, H):
        """H += ⟨M e_p, M e_p'⟩ ∘ A_I A_Jᵀ."""
        if not H.size:
            return
        same, step = I.equals(J), max(1, _ROWS // max(H.shape))
        for lo in range(0, self.samples.n, step):
            piece = slice(lo, min(self.samples.n, lo + step))
            A_I = self._scaled_inputs(I, piece)
            H += A_I @ (A_I if same else self._scaled_inputs(J, piece)).T
        gram = self._gram[np.ix_(I.neurons - self._separable, J.neurons - self._separable)]
        H *= gram[I.of][:, J.of]

    def _scaled_inputs(self, side, piece):
        """A = (g_ip x_iq), [len, samples]; g = 1 in the last layer."""
        A = self.samples.X[side.row, piece]
        hidden = np.searchsorted(side.neuron, self.samples.neuron_starts[-2])
        if hidden:
            A[:hidden] *= self.samples.slopes[side.neuron[:hidden], piece]
        return A

    def _add_by_neuron(self, I, J, H):
        """H += Σ_i x_iq x_iq' κ_i(p, p') where κ is not that of shared factors."""
        if not H.size:
            return
        if self.kernel.stored is not None and I.extent() * J.extent() <= _SPARSITY * H.size and _fewer_products(I, J):
            return self._add_by_pairs(I, J, H)
        a, b = (np.searchsorted(side.neuron, self._outer) for side in (I, J))  # κ with neurons from there on is one number a sample
        hidden_I, hidden_J = I.part(slice(0, a)), J.part(slice(0, b))
        if self.kernel.stored is not None or not 0 < a * b <= _GEMM * len(hidden_I.neurons) * len(hidden_J.neurons):
            return self._add_one_by_one(I, J, H)
        self._add_columns(hidden_I, hidden_J, H[:a, :b])
        self._add_one_by_one(hidden_I, J.part(slice(b, None)), H[:a, b:])
        self._add_one_by_one(I.part(slice(a, None)), J, H[a:])

    def _add_one_by_one(self, I, J, H):
        """The same, neuron by neuron of the side that has fewer."""
        if not H.size:
            return
        if len(J.neurons) < len(I.neurons):
            I, J, H = J, I, H.T
        n, step = self.samples.n, max(32, _PIECE // max(len(J.row), self.kernel.width(len(J.neurons))))
        for lo in range(0, n, step):
            piece = slice(lo, min(n, lo + step))
            X_I, X_J, rows = self.samples.X[I.row, piece], self.samples.X[J.row, piece], self.kernel.rows(J.neurons, piece)
            B = np.empty_like(X_J)
            for at, p in enumerate(I.neurons):
                rows.expand(p, J, B)
                B *= X_J
                mine = I.group(at)
                H[mine] += X_I[mine] @ B.T

    def _add_columns(self, I, J, H):
        """The same as a Gram matrix of Jacobian columns x_iq C_i e_p, for blocks with about as many pairs of neurons as entries."""
        n, rank = self.samples.n, self.samples.rank
        step = max(8, _ROWS // (rank * (len(I.row) + len(J.row))))
        for lo in range(0, n, step):
            piece = slice(lo, min(n, lo + step))
            G_I, G_J = (self.kernel.columns(each.neurons, piece)[each.of] * self.samples.X[each.row, None, piece] for each in (I, J))
            H += G_I.reshape(len(G_I), -1) @ G_J.reshape(len(G_J), -1).T

    def _add_by_pairs(self, I, J, H):
        """The same for blocks of (nearly) all pairs of some neurons and some inputs: Σ_i κ_i(p, p') (x_iq x_iq'), one matrix product
        from the pairs of neurons to the pairs of inputs."""
        X, n = self.samples.X, self.samples.n
        shape = len(I.neurons) * len(J.neurons), len(I.inputs) * len(J.inputs)
        total, step = np.zeros(shape), max(32, _ROWS // max(shape))
        for lo in range(0, n, step):
            piece = slice(lo, min(n, lo + step))
            kappa = self.kernel.stored[self.kernel.place[I.neurons][:, None], self.kernel.place[J.neurons], piece]
            pairs = X[I.inputs, None, piece] * X[J.inputs, piece]
            total += kappa.reshape(shape[0], -1) @ pairs.reshape(shape[1], -1).T
        H += total[I.of[:, None] * len(J.neurons) + J.of, I.of_input[:, None] * len(J.inputs) + J.of_input]


def _fewer_products(I, J):
    """Whether the elementwise products x_iq x_iq' of all pairs of inputs are not many more than those κ_i(p, p') x_iq' of neuron by neuron."""
    one_by_one = min(len(I.neurons) * len(J.row), len(J.neurons) * len(I.row))
    return len(I.inputs) * len(J.inputs) <= _PAIRS * one_by_one


class _Side:
    """Rows or columns of a block sorted by neuron: `neuron`, `row` [len] of each, the different `neurons`, `of` [len] their
    numbers among them, `starts` of their groups, and `place` [len], the sorted position of each given index."""

    def __init__(self, neuron, row, place=None):
        self.neuron, self.row, self.place = neuron, row, place
        new = np.ones(len(neuron), bool)
        new[1:] = neuron[1:] != neuron[:-1]
        self.starts = np.append(np.flatnonzero(new), len(neuron))
        self.neurons, self.of = neuron[new], np.cumsum(new) - 1

    @classmethod
    def sorted(cls, neuron, row):
        order = np.argsort(neuron, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return cls(neuron[order], row[order], place)

    def group(self, at):
        """The slice of one neuron."""
        return slice(int(self.starts[at]), int(self.starts[at + 1]))

    def extent(self):
        """#neurons · #inputs; makes `inputs` and `of_input` [len]."""
        self.inputs, self.of_input = np.unique(self.row, return_inverse=True)
        return len(self.neurons) * len(self.inputs)

    def part(self, rows):
        return _Side(self.neuron[rows], self.row[rows])

    def equals(self, other):
        return np.array_equal(self.neuron, other.neuron) and np.array_equal(self.row, other.row)
