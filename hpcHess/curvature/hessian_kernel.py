r"""The cross-layer Hessian with respect to the pre-activations, B_i(p, p') = ∂²f_i/∂a_p ∂a_p', neuron by neuron.

With F(h, p) = ∂x_h/∂a_p of the hidden neurons, A(h, p) = ∂a_h/∂a_p and t (`Gradients`)

    B_i(p, p') = ⟨C_i e_p, C_i e_p'⟩ + Σ_h t_h A(h, p) A(h, p'):

the kernel of the Gauss–Newton matrix and a signed Gram matrix. A row B(p, ·) is made by Pearlmutter's sweep forward and backward from the unit change
of a_p: F upwards on the way, B(p, ·) of all layers downwards. Bishop, Neural Computation 1992, §3.
"""

import numpy as np

from hpcHess.curvature import kernel
from hpcHess.parallel.shared import HostArray

_NUMBERS = 1 << 21  # in the arrays of one sweep


class HessianKernel:
    """B and F for pairs of neurons, numbered through all layers: stored once per host where they fit in 8 · `kernel.STORED_BYTES`, else made anew.

    stored   [s, #neurons, n]: B(p, ·) of the neurons p < s, those before the ones with factors that the samples share (`Entries`), or None
    moves    [#p, #hidden, n]: F(·, p) of the neurons p at least two layers below the last

    Making it is collective over `comm`.
    """

    def __init__(self, network, samples, gradients, comm):
        self.samples, self.gradients = samples, gradients
        self.weights = [np.ascontiguousarray(W, samples.dtype) for W in network.weights]
        self.starts, n_layers = samples.neuron_starts, samples.n_layers
        self.stored = self.moves = None
        self._held = []
        self.count, self.n_hidden = int(self.starts[-1]), int(self.starts[-2])
        self.place = np.arange(self.count)
        n_rows = self.count if samples.M[-1] is None else int(self.starts[max(0, n_layers - 2)])
        n_moves = int(self.starts[max(0, n_layers - 2)])
        if n_rows and (n_rows * self.count + n_moves * self.n_hidden) * samples.n * samples.dtype.itemsize <= 8 * kernel.STORED_BYTES:
            self._store(comm, n_rows, n_moves)

    def _store(self, comm, n_rows, n_moves):
        """Make B and F of all neurons. Collective."""
        shapes = (n_rows, self.count, self.samples.n), (n_moves, self.n_hidden, self.samples.n)
        self._held = [HostArray(comm, shape, self.samples.dtype) for shape in shapes]
        B, F = (held.array for held in self._held)
        share = self._held[0].share_of(self.samples.n)
        for layer in range(self.samples.n_layers):
            first, last = int(self.starts[layer]), min(n_rows, int(self.starts[layer + 1]))
            for local, piece in self.batches(np.arange(last - first), share):
                rows, moves = self.sweep(layer, local, piece)
                p = local + first
                B[p[0] : p[-1] + 1, :, piece] = rows.transpose(1, 0, 2)
                if p[0] < n_moves:
                    F[p[0] : p[-1] + 1, :, piece] = moves.transpose(1, 0, 2)
        for held in self._held:
            held.fence()
        self.stored, self.moves = B, F

    @property
    def at_once(self):
        """Samples of a sweep that is not too large, for one neuron at least."""
        return max(32, min(1024, _NUMBERS // max(1, self.count)))

    def batches(self, local, share):
        """(neurons, slice of samples) of sweeps that are not too large, for neurons of one layer and a slice of samples."""
        step = self.at_once
        width = max(1, _NUMBERS // (step * self.count))
        for lo in range(share.start, share.stop, step):
            piece = slice(lo, min(share.stop, lo + step))
            yield from ((local[a : a + width], piece) for a in range(0, len(local), width))

    def forward(self, layer, local, piece, top):
        """(A [#neurons of the layers to `top`, c, m], F [#hidden of them, c, m]) for c neurons of a layer and m samples; zero below."""
        samples, c, m, chosen = self.samples, len(local), piece.stop - piece.start, np.arange(len(local))
        A = np.zeros((int(self.starts[top + 1]), c, m), samples.dtype)
        F = np.zeros((min(self.n_hidden, len(A)), c, m), samples.dtype)
        A[local + self.starts[layer], chosen] = 1
        if layer < samples.n_layers - 1:
            F[local + self.starts[layer], chosen] = samples.slope(layer)[local, piece]
        for above in range(layer + 1, top + 1):
            rows, W, below = self.rows_of(above), self.weights[above], F[self.rows_of(above - 1)]
            if above == layer + 1:
                np.multiply(W[:, local, None], below[local, chosen], out=A[rows])
            else:
                np.matmul(W, below.reshape(len(below), -1), out=A[rows].reshape(len(W), -1))
            if above < samples.n_layers - 1:
                np.multiply(A[rows], samples.slope(above)[:, None, piece], out=F[rows])
        return A, F

    def rows_of(self, layer):
        """The neurons of a layer, a slice."""
        return slice(int(self.starts[layer]), int(self.starts[layer + 1]))

    def sweep(self, layer, local, piece, lowest=0):
        """(B(·, p) [#neurons, c, m], F(·, p) [#hidden, c, m]) for c neurons p of a layer and m samples; B of the layers from `lowest` on."""
        samples, last = self.samples, self.samples.n_layers - 1
        A, F = self.forward(layer, local, piece, last)
        B = A  # overwritten from the last layer on
        top = B[self.rows_of(last)]
        self._outputs(top, piece)
        for at in range(last - 1, lowest - 1, -1):
            rows, above, W = self.rows_of(at), B[self.rows_of(at + 1)], self.weights[at + 1]
            bent = self.gradients.bend(at)
            if at >= layer and bent is not None:
                kept = A[rows] * bent[:, None, piece]
            np.matmul(W.T, above.reshape(len(W), -1), out=B[rows].reshape(W.shape[1], -1))
            B[rows] *= samples.slope(at)[:, None, piece]
            if at >= layer and bent is not None:
                B[rows] += kept
        return B, F

    def _outputs(self, U, piece):
        """U ← Q U + t^L ∘ U, [d, c, m]."""
        samples, bent = self.samples, self.gradients.bend(self.samples.n_layers - 1)
        kept = None if bent is None else U * bent[:, None, piece]
        samples.loss.apply_hessian(U.transpose(1, 0, 2), None if samples.output is None else samples.output[:, piece])
        if kept is not None:
            U += kept

    def signed_squares(self, layer, piece):
        """Σ_h t_h A(h, p)² of all neurons p of a layer, float64 [d_ℓ, m]."""
        bends = [self.gradients.bend(at) for at in range(self.samples.n_layers)]
        total = np.zeros((len(self.weights[layer]), piece.stop - piece.start))
        top = max((at for at in range(layer, len(bends)) if bends[at] is not None), default=None)
        if top == layer:
            total += bends[layer][:, piece]
        elif top is not None:
            for local, part in self.batches(np.arange(len(total)), piece):
                A, _ = self.forward(layer, local, part, top)
                columns = slice(part.start - piece.start, part.stop - piece.start)
                for at in range(layer, top + 1):
                    if bends[at] is not None:
                        mine = A[self.rows_of(at)]
                        total[local, columns] += np.einsum("hm,hcm,hcm->cm", bends[at][:, part], mine, mine, dtype=np.float64)
        return total

    def layer_of(self, p):
        """The layer of a neuron."""
        return int(np.searchsorted(self.starts, p, side="right")) - 1

    def moved(self, p, above, piece):
        """F(h, p) of the neurons h of the hidden layer `above` that of p, [d, m]; where they are not stored, m ≤ `at_once` keeps the sweep small."""
        if self.moves is not None:
            return self.moves[p, self.rows_of(above), piece]
        layer = self.layer_of(p)
        return self.forward(layer, np.array([p - self.starts[layer]]), piece, above)[1][self.rows_of(above), 0]

    def rows(self, neurons, piece):
        """An object whose `expand(p, side, out)` sets out [len, samples] to B(p, p') for p' = side.neuron, `neurons` its different ones."""
        return _Rows(self, self.layer_of(neurons[0]), piece)

    def close(self):
        """Free the host's memory. Collective."""
        self.stored = self.moves = None
        for held in self._held:
            held.close()


class _Rows:
    """Rows of B on a slice of samples for neurons p' of the layers from `lowest` on, made by sweeps."""

    def __init__(self, made, lowest, piece):
        self.kernel, self.lowest, self.piece = made, lowest, piece

    def expand(self, p, side, out):
        layer = self.kernel.layer_of(p)
        row = self.kernel.sweep(layer, np.array([p - self.kernel.starts[layer]]), self.piece, self.lowest)[0][:, 0]
        np.take(row, side.neuron, axis=0, out=out, mode="clip")
