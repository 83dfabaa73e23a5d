"""What the network did with the samples: inputs of every layer, derivatives, and pre-activation factors, once per host.

For sample i and layer ℓ: x_i^{ℓ−1} [d_{ℓ−1}] the layer's input, s'_i^ℓ [d_ℓ], and C_i^ℓ = R_iᵀ ∂z_i/∂a_i^ℓ [d, d_ℓ]:
C^L = Rᵀ, C^{ℓ−1} = C^ℓ W_ℓ diag(s'^{ℓ−1}). A factor is kept as M ∘ g: M [d_ℓ, d, n] with g = 1 where it differs from
sample to sample, or M [d_ℓ, d] for all samples and g [d_ℓ, n] where the loss's Hessian is constant (the last two layers).
"""

import numpy as np

from hpcHess.networks.activations import ACTIVATIONS
from hpcHess.networks.losses import LOSSES
from hpcHess.parallel.shared import HostArray

_BLOCK_BYTES = 1 << 26


class Samples:
    """Per layer ℓ = 0 … L−1: `inputs[ℓ]` [n, d_ℓ] and its transpose with the bias input 1 in `inputs_t[ℓ]` [d_ℓ + 1, n],
    `derivatives[ℓ]` [n, d_{ℓ+1}] of hidden layers, `M[ℓ]`, `g[ℓ]` (None where M is per sample), `outputs` [n, d].

    Collective; every host's ranks share the work and the memory.
    """

    def __init__(self, network, inputs, comm, dtype):
        self.network, self.dtype, self.n = network, np.dtype(dtype), len(inputs)
        self.weights = [np.ascontiguousarray(W, dtype) for W in network.weights]
        self.biases = [None if b is None else np.ascontiguousarray(b, dtype) for b in network.biases]
        self._comm, self._held = comm, []
        widths, n, layers = network.widths, self.n, len(self.weights)
        self.loss = LOSSES[network.loss]
        self.inputs = [self._shared((n, width)) for width in widths[:-1]]
        self.inputs_t = [self._shared((width + 1, n)) for width in widths[:-1]]
        self.derivatives = [self._shared((n, width)) for width in widths[1:-1]]
        self.outputs = self._shared((n, widths[-1]))
        constant = [self.loss.constant and layer >= layers - 2 for layer in range(layers)]
        self.M = [None if fixed else self._shared((width, widths[-1], n)) for fixed, width in zip(constant, widths[1:])]
        self.g = [self._shared((width, n)) if fixed else None for fixed, width in zip(constant, widths[1:])]
        self._fill(inputs)
        if self.loss.constant:
            root = self.loss(self.outputs[:1]).root_transposed()
            self.M[-1] = np.ascontiguousarray(root.T)
            if layers > 1:
                self.M[-2] = np.ascontiguousarray((root @ self.weights[-1]).T)
        for held in self._held:
            held.fence()

    def _shared(self, shape):
        self._held.append(HostArray(self._comm, shape, self.dtype))
        return self._held[-1].array

    def close(self):
        """Free the host's memory. Collective."""
        for held in self._held:
            held.close()
        self._held = []

    def _fill(self, inputs):
        """Forward and backward passes for this rank's share of the host's samples."""
        widths = self.network.widths
        share = self._held[0].share_of(self.n)
        step = max(1, _BLOCK_BYTES // (self.dtype.itemsize * (max(widths) * (1 if self.loss.constant else widths[-1]) + sum(widths))))
        for a in range(share.start, share.stop, step):
            block = slice(a, min(share.stop, a + step))
            self._forward(np.asarray(inputs[block], self.dtype), block)
            self._backward(block)

    def _forward(self, x, block):
        activation, last = ACTIVATIONS[self.network.activation], len(self.weights) - 1
        for layer, (W, b) in enumerate(zip(self.weights, self.biases)):
            self.inputs[layer][block] = x
            self.inputs_t[layer][:-1, block], self.inputs_t[layer][-1, block] = x.T, 1
            a = x @ W.T if b is None else x @ W.T + b
            if layer == last:
                self.outputs[block] = a
            else:
                x, self.derivatives[layer][block] = activation(a)

    def _backward(self, block):
        """C^L = Rᵀ, C^{ℓ} = C^{ℓ+1} W_{ℓ+1} diag(s'^ℓ)."""
        loss, C = self.loss(self.outputs[block]), None
        for layer in range(len(self.weights) - 1, -1, -1):
            last = layer == len(self.weights) - 1
            if self.M[layer] is None:
                self.g[layer][:, block] = 1 if last else self.derivatives[layer][block].T
                continue
            if last:
                C = loss.root_transposed()
            else:
                if C is None:  # below a layer whose factor is √2 W diag(s')
                    C = np.sqrt(self.dtype.type(2)) * self.weights[layer + 2] * self.derivatives[layer + 1][block][:, None, :]
                C = (C @ self.weights[layer + 1]) * self.derivatives[layer][block][:, None, :]
            self.M[layer][:, :, block] = C.transpose(2, 1, 0)
