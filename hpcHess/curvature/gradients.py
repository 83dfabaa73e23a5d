"""What the Hessian has beside the Gauss–Newton factors: gradients and curvatures of the activations, sample by sample, once per host."""

import numpy as np

from hpcHess.networks.activations import activation, curved
from hpcHess.networks.losses import LOSSES
from hpcHess.parallel.ownership import starts_of
from hpcHess.parallel.shared import HostArray

_BLOCK = 1 << 22  # numbers in one temporary of the sweeps


class Gradients:
    r"""Arrays over the samples, one copy per host (all samples on every host), of f_i as a function of the pre-activations a^ℓ:

    deltas  δ [Σ d_ℓ, n]: ∂f/∂a; layer ℓ's: `delta(ℓ)`. With weights w_i scaled by √(n w_i) as the inputs X of `Samples`, of which each
            term of H has two, or one and one δ
    bends   t = s''(a) ∘ ∂f/∂x [d_ℓ, n] of every layer, None where s'' = 0: what the activation's curvature adds to ∂²f/∂a²; layer ℓ's:
            `bend(ℓ)`. Of the last layer t = s''_L ∘ ∂f/∂z. Never scaled

    Layers count from 0, neurons go on through all layers (`starts`). Made by a forward and a backward sweep in float64, rounded once to
    `dtype`. Making it is collective over `comm`; every host's ranks share the work. Pearlmutter, Neural Computation 1994.
    """

    def __init__(self, network, inputs, targets, weights, comm, dtype):
        self.n, self.dtype, self.starts, self._held = len(inputs), np.dtype(dtype), starts_of(network.widths[1:]), []
        names = [*network.activations, network.output]
        self.deltas = self._allocate(comm, (int(self.starts[-1]), self.n))
        self._bends = [self._allocate(comm, (len(W), self.n)) if curved(name) else None for W, name in zip(network.weights, names, strict=True)]
        scale = None if weights is None else np.sqrt(self.n * np.asarray(weights, np.float64))
        share = self._held[0].share_of(self.n)
        step = max(1, _BLOCK // (4 * sum(network.widths)))
        for lo in range(share.start, share.stop, step):
            block = slice(lo, min(share.stop, lo + step))
            with np.errstate(over="ignore", invalid="ignore"):  # see `finite`
                self._fill(network, names, inputs, targets, scale, block)
        for held in self._held:
            held.fence()

    def _allocate(self, comm, shape):
        self._held.append(HostArray(comm, shape, self.dtype))
        return self._held[-1].array

    def _fill(self, network, names, inputs, targets, scale, block):
        """δ and t of a slice of samples."""
        x, slopes, seconds = np.asarray(inputs[block], np.float64).T, [], []
        for W, b, name in zip(network.weights, network.biases, names, strict=True):
            x, slope, second = activation(name)(W @ x if b is None else W @ x + b[:, None])
            slopes.append(slope)
            seconds.append(second)
        g = LOSSES[network.loss].gradient(x, targets[block])  # ∂f/∂x of the layer
        for layer in range(network.n_layers - 1, -1, -1):
            if self._bends[layer] is not None:
                self._bends[layer][:, block] = seconds[layer] * g
            delta = slopes[layer] * g
            self.delta(layer)[:, block] = delta if scale is None else delta * scale[block]
            if layer:
                g = network.weights[layer].T @ delta

    def delta(self, layer):
        """δ of a layer, [d_ℓ, n]."""
        return self.deltas[self.starts[layer] : self.starts[layer + 1]]

    def bend(self, layer):
        """t of a layer, [d_ℓ, n], or None: zero."""
        return self._bends[layer]

    def finite(self, rows):
        """Whether everything stored for a slice of samples is finite. Not collective."""
        return all(np.isfinite(each[:, rows]).all() for each in (self.deltas, *self._bends) if each is not None)

    def close(self):
        """Free the host's memory. Collective."""
        self.deltas, self._bends = None, [None] * len(self._bends)
        for held in self._held:
            held.close()
        self._held = []
