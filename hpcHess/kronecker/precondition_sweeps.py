r"""The coupling of the last layers, E, with the layers before them, R: products with H_ER and H_RE by the parts of a sweep that they need.

A product with the whole matrix (`curvature.products`) runs forward through all layers and back; H_ER needs no tangents of the layers E on the way
forward and no gradients of R on the way back, H_RE the reverse. Where E is squared error's last layer with its factor √2 I the outputs, usually the
widest layer, are never formed: with h̃ the last layer's inputs

    H_ER v = (2/n) W_L Σ_i dx_i h̃_iᵀ,      u_i^{L−1} = (2/n) s'_i ∘ (W_Lᵀ V_L) h̃_i.
"""

import numpy as np

from hpcHess.parallel.ownership import starts_of

_NUMBERS = 1 << 25  # in one temporary


def layer_sizes(network):
    """Parameters of every layer, 0 of a constant one."""
    return [out * (inner + has) for out, inner, has in zip(network.widths[1:], network.inner, network.has_bias, strict=True)]


class Sweeps:
    """H_ER and H_RE of the samples `operator.mine`, E the layers from `first` on. Vectors are rows: [k, N_R] and [k, N_E], of `dtype`;
    the sum over ranks of what a method returns is the product. Not collective.
    """

    def __init__(self, operator, first, skip_outputs, dtype):
        samples, self.mine, self.first, self.skip = operator.samples, operator.mine, first, skip_outputs
        self.samples, self.loss, self.dtype = samples, samples.loss, np.dtype(dtype)
        self.weights = [np.ascontiguousarray(W, self.dtype) for W in operator.network.weights]
        self.sizes = layer_sizes(operator.network)
        self.starts = starts_of(self.sizes)
        self.n_rest, self.n_last = int(self.starts[first]), int(self.starts[-1] - self.starts[first])

    def part(self, V, layer):
        """[W b] of a layer, [k, d_ℓ, c], of rows V [k, N_R] or [k, N_E] (copied where there is a bias); None of a constant one."""
        if not self.sizes[layer]:
            return None
        W, at = self.weights[layer], int(self.starts[layer]) - (self.n_rest if layer >= self.first else 0)
        weight = V[:, at : at + W.size].reshape(len(V), *W.shape)
        if not self.samples.has_bias[layer]:
            return weight
        return np.concatenate([weight, V[:, at + W.size : at + self.sizes[layer], None]], axis=2)

    def put(self, V, layer, G):
        """V's part of a layer ← G [k, d_ℓ, c]."""
        W, at = self.weights[layer], int(self.starts[layer]) - (self.n_rest if layer >= self.first else 0)
        V[:, at : at + W.size] = G[:, :, : W.shape[1]].reshape(len(V), W.size)
        if self.samples.has_bias[layer]:
            V[:, at + W.size : at + self.sizes[layer]] = G[:, :, -1]

    def to_last(self, V):
        """H_ER V for V [k, N_R] → [k, N_E]."""
        V, last, first = self._typed(V), len(self.weights) - 1, self.first
        parts, sums = [self.part(V, layer) for layer in range(first)], {}
        for piece in self._pieces(len(V)):
            dx = self._forward(parts, 0, last if self.skip else last + 1, piece)
            if self.skip:
                self._collect(sums, last, dx, piece)
            else:
                self._backward(sums, last, self._hessian(dx, piece), first, first, piece)
        if self.skip and sums:
            sums[last] = np.matmul(2 * self.weights[last], sums[last])
        return self._assembled(sums, range(first, last + 1), len(V), self.n_last)

    def to_rest(self, V):
        """H_RE V for V [k, N_E] → [k, N_R]."""
        V, last, first = self._typed(V), len(self.weights) - 1, self.first
        parts, sums = [None] * first + [self.part(V, layer) for layer in range(first, last + 1)], {}
        if self.skip:
            moved = np.matmul(2 * self.weights[last].T, parts[last])
        for piece in self._pieces(len(V)):
            if self.skip:
                u = self._times_inputs(moved, last, piece) * self._slope(last - 1, piece)
                self._backward(sums, last - 1, u, 0, first, piece, below=True)
            else:
                u = self._hessian(self._forward(parts, first, last + 1, piece), piece)
                self._backward(sums, last, u, 0, first, piece, below=True)
        return self._assembled(sums, range(first), len(V), self.n_rest)

    def last_block(self):
        """H_EE, [N_E, N_E] (without `skip_outputs`)."""
        first, last = self.first, len(self.weights) - 1
        width = max(1, _NUMBERS // max(self.n_last, max(self.samples.widths) * 64))
        result = np.empty((self.n_last, self.n_last), self.dtype)
        for lo in range(0, self.n_last, width):
            V, sums = np.eye(min(width, self.n_last - lo), self.n_last, lo, dtype=self.dtype), {}
            parts = [None] * first + [self.part(V, layer) for layer in range(first, last + 1)]
            for piece in self._pieces(len(V)):
                u = self._hessian(self._forward(parts, first, last + 1, piece), piece)
                self._backward(sums, last, u, first, first, piece)
            result[lo : lo + width] = self._assembled(sums, range(first, last + 1), len(V), self.n_last)
        return result

    def _typed(self, V):
        return np.ascontiguousarray(V, self.dtype)

    def _pieces(self, k):
        """Slices of the own samples whose temporaries are bounded."""
        step = max(1, _NUMBERS // (max(1, k) * max(self.samples.widths)))
        return [slice(at, min(self.mine.stop, at + step)) for at in range(self.mine.start, self.mine.stop, step)]

    def _inputs(self, layer, piece):
        return self.samples.parameter_inputs(layer)[:, piece].astype(self.dtype, copy=False)

    def _slope(self, layer, piece):
        return self.samples.slope(layer)[:, piece].astype(self.dtype, copy=False)

    def _times_inputs(self, G, layer, piece):
        """G x̃, [k, d, m] for G [k, d, c]."""
        x = self._inputs(layer, piece)
        return (G.reshape(-1, len(x)) @ x).reshape(*G.shape[:2], x.shape[1])

    def _forward(self, parts, start, stop, piece):
        """dx of the layer before `stop` (da of the outputs), [k, d, m], for tangents `parts` (a layer beyond them has none)."""
        dx = None
        for layer in range(start, stop):
            a = self._times_inputs(parts[layer], layer, piece) if layer < len(parts) and parts[layer] is not None else None
            if dx is not None:
                a = np.matmul(self.weights[layer], dx) if a is None else a + np.matmul(self.weights[layer], dx)
            if a is None:
                continue
            if layer < len(self.weights) - 1:
                a *= self._slope(layer, piece)
            dx = a
        return dx

    def _hessian(self, a, piece):
        output = self.samples.output
        self.loss.apply_hessian(a, None if output is None else output[:, piece].astype(self.dtype, copy=False))
        return a

    def _backward(self, sums, layer, u, stop, first, piece, below=False):
        """Add the gradients of the layers from `layer` down to `stop`: of E, or (below) of R, the layers before `first`."""
        while True:
            if below == (layer < first):
                self._collect(sums, layer, u, piece)
            if layer == stop:
                return
            u = np.matmul(self.weights[layer].T, u)
            u *= self._slope(layer - 1, piece)
            layer -= 1

    def _collect(self, sums, layer, u, piece):
        if not self.sizes[layer]:
            return
        x = self._inputs(layer, piece)
        G = (u.reshape(-1, u.shape[2]) @ x.T).reshape(*u.shape[:2], len(x))
        sums[layer] = sums[layer] + G if layer in sums else G

    def _assembled(self, sums, layers, k, size):
        result = np.zeros((k, size), self.dtype)
        for layer in layers:
            if layer in sums:
                self.put(result, layer, sums[layer] * self.dtype.type(1 / self.samples.n))
        return result
