r"""Exact entries of the Hessian (Bishop, Neural Computation 1992, §3), grouped by neurons.

For j = (ℓ, p, q), k = (ℓ', p', q') with ℓ ≤ ℓ', B the Hessian with respect to the pre-activations and F(q', p) = ∂x_q'/∂a_p (`HessianKernel`)

    H_jk = (1/n) Σ_i x_iq [x_iq' B_i(p, p') + [ℓ < ℓ'] δ_ip' F_i(q', p)],   F = 0 for a bias q',   H_jk = H_kj for ℓ > ℓ'.

* The first term is that of the Gauss–Newton matrix with another kernel, and evaluated as there (`entries.Entries`) where B is stored; else a sweep
  makes B(p, ·) and  H_{I_p, J} += (1/n) X_{I_p} (B(p, ·) ∘ X_J)ᵀ  for every neuron p of the side that has fewer. Where the factors C of both
  neurons are shared by the samples (squared error, last two layers), B adds t_p to it in the diagonal p = p' of the hidden layer alone.
* The second, for every neuron p of ℓ:  H_{I_p, J} += (1/n) X_{I_p} (δ_{p'} ∘ F(q', p))ᵀ over the J of a layer ℓ' > ℓ. From the next layer only
  the inputs q' = p count, F = s'_p.
"""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.curvature.entries import Entries

_ROWS = 1 << 20  # numbers in one [|J|, samples] temporary of the second term
_PIECE = 1 << 17  # of the first where the kernel is not stored
_SUMS = 1 << 21  # entries of the blocks whose sums are kept in float64 at once


class HessianEntries(Entries):
    """Evaluates entries from `Samples`, `Gradients` and a `HessianKernel` of them, for parameters in PyTorch's order. Not collective."""

    def __init__(self, network, samples, gradients, kernel, backend):
        super().__init__(network, samples, kernel, backend)
        self.gradients = gradients
        self._batched = kernel.stored is not None or not self._separable

    def _evaluated(self, I, J):
        H = Blocks.shaped(lambda size: np.empty(size, self.samples.dtype), np.diff(I.starts), np.diff(J.starts))
        for lo, hi in _runs(H.offsets, _SUMS):
            rows, columns = I.some(lo, hi), J.some(lo, hi)
            sums = Blocks.shaped(self.backend.xp.zeros, H.rows[lo:hi], H.cols[lo:hi])
            if self._batched:
                self.backend.gram_entries(self._factors, rows, columns, 1.0, sums)
            sums.data = self.backend.to_host(sums.data)
            for b in range(hi - lo):
                left, right = _Side(*rows.part(b)), _Side(*columns.part(b))
                more = np.zeros((len(left.row), len(right.row)))
                self._add(left, right, more)
                sums[b][left.place[:, None], right.place] += more
                H[lo + b][...] = sums[b] / self.samples.n
        return H

    def _add(self, I, J, H):
        """H += Σ_i of the terms left, sides sorted by neuron."""
        if not self._batched:
            self._add_first(I, J, H)
        starts = self.samples.neuron_starts
        cuts_I, cuts_J = (np.searchsorted(side.neuron, starts) for side in (I, J))
        layers = range(self.samples.n_layers)
        parts_I, parts_J = ([slice(int(cuts[at]), int(cuts[at + 1])) for at in layers] for cuts in (cuts_I, cuts_J))
        for low in layers:
            if self._separable <= starts[low] and self.gradients.bend(low) is not None:
                self._add_bends(low, I.part(parts_I[low]), J.part(parts_J[low]), H[parts_I[low], parts_J[low]])
            for high in layers[low + 1 :]:
                add = self._add_next if high == low + 1 else self._add_beyond
                add(low, high, I.part(parts_I[low]), J.part(parts_J[high]), H[parts_I[low], parts_J[high]])
                add(low, high, J.part(parts_J[low]), I.part(parts_I[high]), H[parts_I[high], parts_J[low]].T)

    def _add_first(self, I, J, H):
        """H += Σ_i x_iq x_iq' B_i(p, p'), B not stored."""
        a, b = np.searchsorted(I.neuron, self._separable), np.searchsorted(J.neuron, self._separable)
        self._add_by_neuron(I.part(slice(0, a)), J, H[:a])
        self._add_by_neuron(J.part(slice(0, b)), I.part(slice(a, None)), H[a:, :b].T)
        self._add_shared(I.part(slice(a, None)), J.part(slice(b, None)), H[a:, b:])

    def _add_by_neuron(self, I, J, H):
        """The same, neuron by neuron of the side that has fewer, where B is not that of shared factors."""
        if not H.size:
            return
        if len(J.neurons) < len(I.neurons):
            I, J, H = J, I, H.T
        n, step = self.samples.n, max(32, _PIECE // max(len(J.row), self.kernel.count))
        for lo in range(0, n, step):
            piece = slice(lo, min(n, lo + step))
            X_I, X_J, rows = self.samples.X[I.row, piece], self.samples.X[J.row, piece], self.kernel.rows(J.neurons, piece)
            B = np.empty_like(X_J)
            for at, p in enumerate(I.neurons):
                rows.expand(p, J, B)
                B *= X_J
                mine = I.group(at)
                H[mine] += X_I[mine] @ B.T

    def _add_shared(self, I, J, H):
        """H += Σ_i of the entries with shared factors, ⟨M e_p, M e_p'⟩ ∘ A_I A_Jᵀ."""
        if not H.size:
            return
        total = np.zeros(H.shape)
        for piece in self._pieces(I, J):
            total += self._scaled_inputs(I, piece) @ self._scaled_inputs(J, piece).T
        gram = self._gram[np.ix_(I.neurons - self._separable, J.neurons - self._separable)]
        H += total * gram[I.of][:, J.of]

    def _scaled_inputs(self, side, piece):
        """A = (g_ip x_iq), [len, samples]; g = 1 in the last layer."""
        A = self.samples.X[side.row, piece]
        hidden = np.searchsorted(side.neuron, self.samples.neuron_starts[-2])
        if hidden:
            A[:hidden] *= self.samples.slopes[side.neuron[:hidden], piece]
        return A

    def _pieces(self, I, J, most=_ROWS):
        """Slices of the samples, at most so many each, for temporaries of both sides."""
        n, step = self.samples.n, min(most, max(32, _ROWS // max(len(I.row), len(J.row), 1)))
        return (slice(lo, min(n, lo + step)) for lo in range(0, n, step))

    def _add_bends(self, layer, I, J, H):
        """H += Σ_i t_p x_iq x_iq' where p = p', neurons with shared factors."""
        _, at_I, at_J = np.intersect1d(I.neurons, J.neurons, assume_unique=True, return_indices=True)
        for piece in self._pieces(I, J) if len(at_I) else ():
            X_I, X_J, bend = self.samples.X[I.row, piece], self.samples.X[J.row, piece], self.gradients.bend(layer)
            for a, b in zip(at_I, at_J, strict=True):
                rows, columns = I.group(a), J.group(b)
                H[rows, columns] += (X_I[rows] * bend[I.neurons[a] - self.samples.neuron_starts[layer], piece]) @ X_J[columns].T

    def _add_next(self, low, high, I, J, H):
        """H += Σ_i x_iq s'_p δ_ip' where q' = p, J of the layer after I's."""
        inputs = J.row - self.samples.row_starts[high]
        order = np.argsort(inputs, kind="stable")
        firsts, ends = (np.searchsorted(inputs[order], I.neurons - self.samples.neuron_starts[low], side) for side in ("left", "right"))
        common = np.flatnonzero(firsts < ends)
        for piece in self._pieces(I, J) if len(common) else ():
            X_I, delta, slope = self.samples.X[I.row, piece], self.gradients.deltas[J.neuron, piece], self.samples.slope(low)[:, piece]
            for at in common:
                rows, columns = I.group(at), order[firsts[at] : ends[at]]
                H[rows, columns] += (X_I[rows] * slope[I.neurons[at] - self.samples.neuron_starts[low]]) @ delta[columns].T

    def _add_beyond(self, low, high, I, J, H):
        """H += Σ_i x_iq δ_ip' F_i(q', p), J of a layer at least two after I's."""
        inputs = J.row - self.samples.row_starts[high]
        weights = np.flatnonzero(inputs < self.samples.widths[high])  # not biases
        most = self.samples.n if self.kernel.moves is not None else self.kernel.at_once
        for piece in self._pieces(I, J, most) if len(weights) and len(I.row) else ():
            X_I, delta, moved = self.samples.X[I.row, piece], self.gradients.deltas[J.neuron[weights], piece], inputs[weights]
            for at, p in enumerate(I.neurons):
                F = self.kernel.moved(p, high - 1, piece)[moved]
                F *= delta
                H[I.group(at), weights] += X_I[I.group(at)] @ F.T


def _runs(offsets, most):
    """(first, end) of blocks with at most so many entries together, one at least."""
    first = 0
    while first < len(offsets) - 1:
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1)
        yield first, end
        first = end


class _Side:
    """Rows or columns of a block sorted by neuron: `neuron`, `row` and `place` [len] of each (`backend.entries.Sides`), the different `neurons`,
    `of` [len] their numbers among them, `starts` of their groups."""

    def __init__(self, neuron, row, place=None):
        self.neuron, self.row, self.place = neuron, row, place
        new = np.ones(len(neuron), bool)
        new[1:] = neuron[1:] != neuron[:-1]
        self.starts = np.append(np.flatnonzero(new), len(neuron))
        self.neurons, self.of = neuron[new], np.cumsum(new) - 1

    def group(self, at):
        """The slice of one neuron."""
        return slice(int(self.starts[at]), int(self.starts[at + 1]))

    def part(self, rows):
        """Some of them."""
        return _Side(self.neuron[rows], self.row[rows])
