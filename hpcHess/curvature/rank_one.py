r"""Products with outer products of gradients, H = (1/n) Σ_i g_i g_iᵀ: two gemms a layer for all vectors, no sweep.

The gradient of sample i is g_i^ℓ = δ_i^ℓ (x̃_i^{ℓ−1})ᵀ, δ^ℓ = ∂f/∂a^ℓ [d_ℓ, n]. With t_ik = ⟨g_i, v_k⟩ = Σ_ℓ δ_i^ℓᵀ V_ℓk x̃_i^{ℓ−1},

    (H v_k)_ℓ = (1/n) Σ_i t_ik δ_i^ℓ (x̃_i^{ℓ−1})ᵀ.

A layer goes by whichever of its sides is shorter, so that the temporaries are: V x̃ and δ ∘ t, [d_ℓ, k, m], or δᵀV and x̃ ∘ t, [m, c, k].
"""

import math


class RankOne:
    """Buffers of k vectors and m samples. `deltas`: of the layers of `sweep.Data`, [d_ℓ, n]."""

    def __init__(self, data, deltas, k, m):
        self.xp, self.data, self.deltas, self.layers = data.xp, data, deltas, data.layers
        empty = lambda *shape: self.xp.empty(math.prod(shape), data.dtype)  # noqa: E731
        self.A, self.G = ([empty(k, layer.size) for layer in self.layers] for _ in range(2))
        self.T = empty(k, m, self._shorter(self.layers))

    @staticmethod
    def _shorter(layers):
        return max(min(layer.out, layer.columns) for layer in layers)

    @classmethod
    def numbers(cls, layers, forward=True):
        """Numbers in the buffers (for one vector, for one vector and one sample)."""
        return 2 * sum(layer.size for layer in layers), cls._shorter(layers) + 2

    def _of(self, buffer, *shape):
        return buffer[: math.prod(shape)].reshape(shape)

    def load(self, V):
        """V [N, k] → A: [out, k, c], or [out, c, k] of layers that go by their inputs."""
        for layer, A in zip(self.layers, self.A, strict=True):
            self._turned(layer, A, V.shape[1], lambda part, layer=layer: layer.gather(V, part, self.data.backend))

    def _turned(self, layer, buffer, k, use):
        """`use` of the buffer as [out, k, c], whatever its order is."""
        if layer.out <= layer.columns:
            use(self._of(buffer, layer.out, k, layer.columns))
        else:
            use(self._of(buffer, layer.out, layer.columns, k).transpose(0, 2, 1))

    def product(self, block, k, add):
        """G ← Σ_i g_i g_iᵀ V of a block of samples, or G += that."""
        xp, m, t = self.xp, block.stop - block.start, None
        for layer, delta, A in zip(self.layers, self.deltas, self.A, strict=True):
            if layer.columns:
                part = self._inner(layer, delta[:, block], self.data.X[layer.rows, block], A, k, m)
                t = part if t is None else t + part
        for layer, delta, G in zip(self.layers, self.deltas, self.G, strict=True):
            if layer.columns:
                left, right = self._scaled(layer, delta[:, block], self.data.X[layer.rows, block], t, k, m)
                G = self._of(G, len(left), right.shape[1])
                if add:
                    self.data.backend.add_product(left, right, G)
                else:
                    xp.matmul(left, right, out=G)

    def _inner(self, layer, delta, x, A, k, m):
        """δᵀVx̃ of a layer, [k, m]."""
        xp, out, c = self.xp, layer.out, layer.columns
        if out <= c:
            T = self._of(self.T, out * k, m)
            xp.matmul(self._of(A, out * k, c), x, out=T)
            T = T.reshape(out, k, m)
            T *= delta[:, None]
            return T.sum(axis=0)
        T = self._of(self.T, m, c * k)
        xp.matmul(delta.T, self._of(A, out, c * k), out=T)
        return xp.matmul(x.T[:, None, :], T.reshape(m, c, k))[:, 0].T

    def _scaled(self, layer, delta, x, t, k, m):
        """(left, right) whose product is the layer's G."""
        xp, out, c = self.xp, layer.out, layer.columns
        if out <= c:
            T = self._of(self.T, out, k, m)
            xp.multiply(delta[:, None], t, out=T)
            return T.reshape(-1, m), x.T
        T = self._of(self.T, m, c, k)
        xp.multiply(x.T[:, :, None], t.T[:, None], out=T)
        return delta, T.reshape(m, -1)

    def store(self, result, scale):
        """result [N, k] ← scale · G."""
        for layer, G in zip(self.layers, self.G, strict=True):
            self._turned(layer, G, result.shape[1], lambda part, layer=layer: layer.scatter(part, result, scale, self.data.backend))
