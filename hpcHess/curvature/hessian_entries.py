r"""Exact entries of the Hessian (Bishop, Neural Computation 1992, §3), grouped by neurons.

For j = (ℓ, p, q), k = (ℓ', p', q') with ℓ ≤ ℓ', B the Hessian with respect to the pre-activations and F(q', p) = ∂x_q'/∂a_p (`HessianKernel`)

    H_jk = (1/n) Σ_i x_iq [x_iq' B_i(p, p') + [ℓ < ℓ'] δ_ip' F_i(q', p)],   F = 0 for a bias q',   H_jk = H_kj for ℓ > ℓ'.

* The first term is that of the Gauss–Newton matrix with another kernel, and grouped as there (`entries.Entries`). Where the factors C of both
  neurons are shared by the samples (squared error, last two layers), B adds t_p to it in the diagonal p = p' of the hidden layer alone.
* The second, for every neuron p of ℓ:  H_{I_p, J} += (1/n) X_{I_p} (δ_{p'} ∘ F(q', p))ᵀ over the J of a layer ℓ' > ℓ. From the next layer only
  the inputs q' = p count, F = s'_p.
"""

import numpy as np

from hpcHess.curvature.entries import Entries

_ROWS = 1 << 20  # numbers in one [|J|, samples] temporary of the second term


class HessianEntries(Entries):
    """Evaluates entries from `Samples`, `Gradients` and a `HessianKernel` of them, for parameters in PyTorch's order. Not collective."""

    def __init__(self, network, samples, gradients, kernel):
        super().__init__(network, samples, kernel)
        self.gradients = gradients

    def _add(self, I, J, H):
        super()._add(I, J, H)
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
