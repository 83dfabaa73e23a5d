"""What the network does with the samples: inputs of every layer, derivatives, and pre-activation factors, once per host.

For sample i and layer ℓ: x_i^{ℓ−1} [d_{ℓ−1}] the layer's input, s'_i^ℓ [d_ℓ], and C_i^ℓ = R_iᵀ ∂z_i/∂a_i^ℓ [d, d_ℓ]:

    C^L = Rᵀ,   C^{ℓ−1} = C^ℓ W_ℓ diag(s'^{ℓ−1}).

Only inner products of columns of C matter, so a cheaper C with the same ones may stand in. Three kinds of layers:

* squared error, ℓ = L−1 and L: C = M diag(g) with one M for all samples, M^L = √2 I, M^{L−1} = √2 W_L, g^{L−1} = s', g^L = 1.
  With W_L = Q T (QR, if L−1 is narrower) M^{L−1} = √2 T and M^L = √2 Qᵀ, r = min(d, d_{L−1}) rows each (but ⟨M^L e_p, M^L e_p'⟩ = 2 δ_pp').
* cross-entropy, ℓ = L: C_e = √p_e (δ_ep − p_p), never stored. Every column of every layer's C is orthogonal to √p, hence
  ⟨C e_p, v⟩ = √p_p v_p for a column v of any layer.
* binary cross-entropy (q = σ(1 − σ)) and squared error behind an output activation (q = 2 s'²), ℓ = L: C_e = √q_p δ_ep, never stored;
  ⟨C e_p, v⟩ = √q_p v_p as well.
* all others: C stored sample by sample, [d_ℓ, r, n].

With targets, Q_i = δ_i δ_iᵀ, the outer product of the gradient δ_i = ∂f/∂a_i^L, R_i = δ_i: C_i^ℓ = ∂f/∂a_i^ℓ, r = 1, stored for all layers.

Arrays have the samples last. Factors are computed in float64 and rounded once.
"""

import copy

import numpy as np

from hpcHess.networks.activations import activation
from hpcHess.networks.losses import LOSSES, BinaryCrossEntropy, CrossEntropy, Diagonal, OuterProduct, SquaredError, softmax
from hpcHess.parallel.ownership import starts_of
from hpcHess.parallel.replicated import replicated
from hpcHess.parallel.shared import HostArray

_BLOCK = 1 << 22  # numbers in one temporary of the sweeps


class Samples:
    """Arrays over the samples, one copy per host (all samples on every host):

    X       [Σ (d_{ℓ−1} + 1), n]: the inputs of all layers, each followed by the bias input 1 (or both scaled); layer ℓ's rows: `inputs(ℓ)`
    slopes  [Σ_{ℓ<L} d_ℓ, n]: s' of the hidden layers; layer ℓ's: `slope(ℓ)`
    p, rest [d, n]: probabilities and 1 − p (cross-entropy, else None)
    q       [d, n]: the diagonal of Q (binary cross-entropy, squared error behind an output activation; else None)
    C       list over the layers: [d_ℓ, r, n], or None where the factor is not stored: shared, of the last layer, or of a layer that is not chosen
    M       list over the layers: [d_ℓ, r] of the shared factors, or None; `rank` is r

    loss    what takes the place of the loss as a function of a^L: CrossEntropy, SquaredError, Diagonal or OuterProduct

    Layers count from 0 in code. `targets` (outer products): those of the samples, or a function (z [d, m], a slice of the samples) → targets. Weights w_i [n] in place of 1/n scale all of X, and nothing else, by √(n w_i), the bias input too: x̃_i
    occurs in H_i = J_iᵀ Q_i J_i twice, the rest of the factored form stays. Collective; every host's ranks share the work.
    """

    def __init__(self, network, inputs, comm, dtype, weights=None, targets=None):
        self.loss, self.n, self.dtype = _effective(network) if targets is None else OuterProduct, len(inputs), np.dtype(dtype)
        self._targets = targets
        self.widths, self.n_layers, self._held = network.widths, network.n_layers, []
        self.has_bias, self.inner = network.has_bias, network.inner
        self.row_starts = starts_of(np.array(self.widths[:-1]) + 1)
        self.neuron_starts = starts_of(self.widths[1:])
        self.M, self._root = self._shared_factors(network, comm)
        self.rank = 1 if targets is not None else self.widths[-1] if self._root is None else len(self._root)
        self.X = self._allocate(comm, (int(self.row_starts[-1]), self.n))
        self.slopes = self._allocate(comm, (int(self.neuron_starts[-2]), self.n))
        self.p, self.rest = (None if self.loss is not CrossEntropy else self._allocate(comm, (self.widths[-1], self.n)) for _ in range(2))
        self.q = None if self.loss is not Diagonal else self._allocate(comm, (self.widths[-1], self.n))
        last = self.n_layers - (2 if self.loss.constant else 1 if targets is None else 0)  # from here on C is not stored
        stored = {layer for layer in network.chosen if layer < last} | ({self.n_layers - 1} if targets is not None else set())
        self.C = [self._allocate(comm, (width, self.rank, self.n)) if layer in stored else None for layer, width in enumerate(self.widths[1:])]
        self._lowest = min(stored, default=self.n_layers)  # down to which C is made
        self._scale = None if weights is None else np.sqrt(self.n * np.asarray(weights, np.float64))
        self._fill(network, inputs)
        self._targets = None

    def chosen(self, samples, weights, comm):
        """The `Samples` of Σ_k w_k H_{i_k} for sample numbers i [c] and weights w [c]; these ones' scale (1/n) Σ_i H_i. Collective."""
        result = copy.copy(self)
        result.n, result._held, result._scale = len(samples), [], np.sqrt(len(samples) * np.asarray(weights, np.float64))

        def part(array):
            mine = result._allocate(comm, (*array.shape[:-1], result.n))
            share = result._held[-1].share_of(result.n)
            mine[..., share] = array[..., samples[share]]
            return mine

        result.X, result.slopes = part(self.X), part(self.slopes)
        result.p, result.rest, result.q = (None if each is None else part(each) for each in (self.p, self.rest, self.q))
        result.C = [None if each is None else part(each) for each in self.C]
        share = result._held[0].share_of(result.n)
        result.X[:, share] *= result._scale[share]
        for held in result._held:
            held.fence()
        return result

    def _allocate(self, comm, shape):
        self._held.append(HostArray(comm, shape, self.dtype))
        return self._held[-1].array

    def _shared_factors(self, network, comm):
        """(M list of all layers, √2 W_L or its triangle T [r, d_{L−1}]). Collective."""
        M = [None] * self.n_layers
        if not self.loss.constant:
            return M, None
        if self.n_layers == 1:
            M[-1] = np.sqrt(2.0) * np.eye(self.widths[-1])
            root = M[-1]
        elif self.widths[-1] > self.widths[-2]:
            basis, triangle = replicated(comm, np.linalg.qr, network.weights[-1])
            M[-2], M[-1], root = np.sqrt(2.0) * triangle.T, np.sqrt(2.0) * basis, np.sqrt(2.0) * triangle
        else:
            root = np.sqrt(2.0) * network.weights[-1]
            M[-2], M[-1] = root.T, np.sqrt(2.0) * np.eye(self.widths[-1])
        return [None if each is None else np.ascontiguousarray(each) for each in M], root

    def finite(self, rows):
        """Whether everything stored for a slice of samples is finite. Not collective."""
        stored = [self.X, self.slopes, *(each for each in (self.p, self.q, *self.C) if each is not None)]
        return all(np.isfinite(each[..., rows]).all() for each in stored)

    def inputs(self, layer):
        """x of a layer with the bias input last, [d_{ℓ−1} + 1, n]."""
        return self.X[self.row_starts[layer] : self.row_starts[layer + 1]]

    def parameter_inputs(self, layer):
        """x of a layer that meets parameters, the bias input last where there are biases, [d_{ℓ−1} or d_{ℓ−1} + 1, n]; [0, n] of a layer that
        is not chosen (`Network.restricted`)."""
        return self.inputs(layer)[: self.inner[layer] + self.has_bias[layer]]

    def slope(self, layer):
        """s' of a hidden layer, [d_ℓ, n]."""
        return self.slopes[self.neuron_starts[layer] : self.neuron_starts[layer + 1]]

    def _fill(self, network, inputs):
        """Forward and backward sweeps in float64 for this rank's share of the host's samples. Collective over the host."""
        share = self._held[0].share_of(self.n)
        widest = max(max(self.widths), self.rank * max(self.widths[1 + self._lowest :], default=0))
        step = max(1, _BLOCK // widest)
        for a in range(share.start, share.stop, step):
            block = slice(a, min(share.stop, a + step))
            slopes = self._forward(network, np.asarray(inputs[block], np.float64).T, block)
            self._backward(network, slopes, block)
        for held in self._held:
            held.fence()

    def _forward(self, network, x, block):
        """Store x, s', p; returns s' of the hidden layers in float64."""
        slopes = []
        for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
            rows = self.inputs(layer)[:, block]
            scale = 1 if self._scale is None else self._scale[block]
            rows[:-1], rows[-1] = x * scale, scale
            a = W @ x
            if b is not None:
                a += b[:, None]
            if layer < self.n_layers - 1:
                x, slope, _ = activation(network.activations[layer])(a)
                self.slope(layer)[:, block] = slope
                slopes.append(slope)
        self._outputs(network, a, block)
        return slopes

    def _outputs(self, network, a, block):
        """Store p or q, or keep the gradients ∂f/∂a^L, for a^L [d, m]."""
        z, slope, _ = activation(network.output)(a)
        if self.p is not None:
            self.p[:, block], self.rest[:, block] = self._probabilities = softmax(a)
        if self.q is not None:
            self.q[:, block] = self._diagonal = BinaryCrossEntropy.curvature(a) if network.loss == "binary-cross-entropy" else 2 * slope**2
        if self._targets is not None:
            targets = self._targets(z, block) if callable(self._targets) else self._targets[block]
            self._gradients = slope * LOSSES[network.loss].gradient(z, targets)

    def _backward(self, network, slopes, block):
        """Store C of the layers that have one, from the last of them to the first, and none below: [d_ℓ, r, samples]."""
        C = None
        if self._targets is not None:
            C = self._gradients[:, None]
            self.C[-1][:, :, block] = C
        for layer in range(self.n_layers - 2, self._lowest - 1, -1):
            W = network.weights[layer + 1]
            if C is not None:
                C = (W.T @ C.reshape(len(W), -1)).reshape(W.shape[1], *C.shape[1:]) * slopes[layer][:, None]
            elif self.q is not None:  # √q_e W_ep s'_p
                C = W.T[:, :, None] * (slopes[layer][:, None] * np.sqrt(self._diagonal))
            elif self.p is None:
                C = self.M[layer][:, :, None] * slopes[layer][:, None]
            else:  # √p_e (W_ep − Σ_c p_c W_cp) s'_p, of W less its row of the likeliest class: nothing cancels
                p = self._probabilities[0]
                C = W.T[:, :, None] - W.T[:, None, p.argmax(axis=0)]
                C -= np.einsum("pen,en->pn", C, p)[:, None]
                C *= slopes[layer][:, None] * np.sqrt(p)
            if self.C[layer] is not None:
                self.C[layer][:, :, block] = C

    def active(self, layer, rows):
        """Whether C_i e_p ≠ 0, for a slice of samples, bool [d_ℓ, len]."""
        if self.C[layer] is not None:
            return self.C[layer][:, :, rows].any(axis=1)
        if self.p is not None:
            return (self.p[:, rows] != 0) & (self.rest[:, rows] != 0)
        if self.q is not None:
            return self.q[:, rows] != 0
        shape = self.widths[layer + 1], rows.stop - rows.start
        if layer == self.n_layers - 1:
            return np.ones(shape, bool)
        return self.M[layer].any(axis=1)[:, None] & (self.slope(layer)[:, rows] != 0)

    @property
    def output(self):
        """What Q_i and R_i are made of, [d, n]: p, or q, or the gradients ∂f/∂a^L, or None."""
        return self.C[-1][:, 0] if self.loss is OuterProduct else self.q if self.p is None else self.p

    def own_kernel(self, layer, rows):
        """κ_i(p, p) for a slice of samples, float64 [d_ℓ, len]."""
        if self.C[layer] is not None:
            return np.einsum("pen,pen->pn", self.C[layer][:, :, rows], self.C[layer][:, :, rows], dtype=np.float64)
        if self.p is not None:
            return np.multiply(self.p[:, rows], self.rest[:, rows], dtype=np.float64)
        if self.q is not None:
            return self.q[:, rows].astype(np.float64)
        if layer == self.n_layers - 1:
            return np.full((self.widths[-1], rows.stop - rows.start), 2.0)
        return np.square(self.slope(layer)[:, rows], dtype=np.float64) * np.square(self.M[layer]).sum(axis=1)[:, None]

    def columns(self, neurons, rows, dtype=None):
        """C_i e_p of neurons numbered through all layers (sorted), for a slice or an index array of samples, [#neurons, r, #samples]."""
        at, dtype = np.searchsorted(neurons, self.neuron_starts), np.dtype(dtype or self.dtype)
        part = lambda array, local: _part(array, local, rows).astype(dtype, copy=False)  # noqa: E731
        result = np.empty((len(neurons), self.rank, len(range(self.n)[rows]) if isinstance(rows, slice) else len(rows)), dtype)
        for layer, (a, b) in enumerate(zip(at[:-1], at[1:], strict=True)):
            local = neurons[a:b] - self.neuron_starts[layer]
            if a == b:
                continue
            if self.C[layer] is not None:
                result[a:b] = part(self.C[layer], local)
            elif self.output is None:  # g_p M e_p
                result[a:b] = self.M[layer][local, :, None]
                if layer < self.n_layers - 1:
                    result[a:b] *= part(self.slope(layer), local)[:, None]
            else:  # √p_e (δ_ep − p_p), or √q_p δ_ep
                every, own = np.arange(self.widths[-1]), (np.arange(a, b), local)
                if self.p is None:
                    result[a:b] = 0
                    result[own] = np.sqrt(part(self.q, local))
                else:
                    p = part(self.p, every)
                    result[a:b] = -p[local, None] * np.sqrt(p)
                    result[own] = np.sqrt(p[local]) * part(self.rest, local)
        return result

    def close(self):
        """Free the host's memory. Collective."""
        self.X = self.slopes = self.p = self.rest = self.q = None
        self.C = [None] * self.n_layers
        for held in self._held:
            held.close()
        self._held = []


def _effective(network):
    """The loss as a function of a^L."""
    loss = LOSSES[network.loss]
    return Diagonal if loss is BinaryCrossEntropy or loss is SquaredError and network.output != "identity" else loss


def _part(array, local, rows):
    """array[local, …, rows] for a slice or an index array of its last axis."""
    if isinstance(rows, slice):
        return array[local, ..., rows]
    return array[np.ix_(local, *map(np.arange, array.shape[1:-1]), rows)]
