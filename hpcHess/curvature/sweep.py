r"""One forward and one backward sweep through a network for many vectors at once: J_i V and Σ_i J_iᵀ u_i.

For a vector v with layer parts V_ℓ = [V_W V_b] and x̃ = [x; 1], over the samples (last index):

    da^ℓ = V_ℓ x̃^{ℓ−1} + W_ℓ dx^{ℓ−1},   dx^ℓ = s'^ℓ ∘ da^ℓ,
    u^{ℓ−1} = s'^{ℓ−1} ∘ W_ℓᵀ u^ℓ,   G_ℓ = Σ_i u_i^ℓ (x̃_i^{ℓ−1})ᵀ.

Multivectors over the samples are [d_ℓ, k, m], so that each of the four products of a layer is one matrix product for all vectors and samples.

Squared error's Q = 2 I, the same for all samples, allows to contract the last layer (`Contracted`) with S = Σ_i x̃_i x̃_iᵀ: nothing of
the size outputs × samples is formed,

    u^{L−1} = 2 s' ∘ ((W_LᵀV_L) x̃ + (W_LᵀW_L) dx),   G_L = 2 (V_L S + W_L Σ_i dx_i x̃_iᵀ).
"""

import math

from hpcHess.networks.losses import CrossEntropy, Diagonal


def apply_hessian(backend, loss, U, output):
    """U ← Q U in place for U [d, k, m], what Q is made of in `output` [d, m]; by the backend's kernels where they are for that."""
    if loss is CrossEntropy:
        backend.softmax_hessian(U, output)
    elif loss is Diagonal:
        backend.scale_samples(U, output)
    else:
        loss.apply_hessian(U.transpose(1, 0, 2), output)


class Layer:
    """A layer's place in the parameters and in the samples' inputs; its [V_W V_b] has d_{ℓ−1} columns, + 1 with a bias, none where it is not chosen."""

    def __init__(self, W, offsets, own, rows):
        (self.out, self.inner), self.W, self.own = W.shape, W, own
        self.weight = slice(offsets[0], offsets[0] + self.out * own)
        self.bias = None if offsets[1] is None else slice(offsets[1], offsets[1] + self.out)
        self.columns = own + (self.bias is not None)
        self.rows = slice(rows, rows + self.columns)

    @property
    def size(self):
        """Its number of parameters."""
        return self.out * self.columns

    def gather(self, V, A, backend):
        """V [N, k] → its part A [out, k, c]."""
        if self.columns:
            backend.swap_axes(V[self.weight].reshape(self.out, self.own, -1), A[:, :, : self.own])
            if self.bias is not None:
                A[:, :, self.own] = V[self.bias]

    def scatter(self, G, result, scale, backend):
        """Its part of result [N, k] ← scale · G [out, k, c]."""
        if self.columns:
            backend.swap_axes(G[:, :, : self.own], result[self.weight].reshape(self.out, self.own, -1), scale)
            if self.bias is not None:
                backend.xp.multiply(G[:, :, self.own], scale, out=result[self.bias])


class Data:
    """What sweeps read: `layers`, this rank's X [rows, n] and slopes (list of [d_ℓ, n]), dtype, backend."""

    def __init__(self, backend, dtype, layers, X, slopes):
        self.backend, self.xp, self.dtype, self.layers, self.X, self.slopes = backend, backend.xp, dtype, layers, X, slopes
        self._gram = None

    def last_gram(self):
        """(Σ_i x̃x̃ᵀ [c, c] of the last layer, WᵀW), made at the first call."""
        if self._gram is None:
            layer = self.layers[-1]
            x = self.X[layer.rows]
            self._gram = self.xp.matmul(x, x.T), self.xp.matmul(layer.W.T, layer.W)
        return self._gram


class Sweep:
    """Buffers of k vectors and m samples, reused from block to block; `hessian(U, samples)` puts Q U in the place of U [d, k, m].

    A_ℓ, G_ℓ [out, k, c]: the vectors and the gradients;  T: two of [d_ℓ, k, m], da and u.
    """

    def __init__(self, data, k, m, forward=True, hessian=None):
        self.data, self.layers, self.hessian, self.backend, self.xp = data, data.layers, hessian, data.backend, data.xp
        self._forward = forward
        self._allocate(k, m)

    def _empty(self, *shape):
        return self.xp.empty(math.prod(shape), self.data.dtype)

    def _allocate(self, k, m):
        layers = self.layers
        self.G = [self._empty(k, layer.size) for layer in layers]
        self.T = [self._empty(k, m, max(layer.out for layer in layers)) for _ in range(min(2, len(layers)))]
        if self._forward:
            self.A = [self._empty(k, layer.size) for layer in layers]

    @staticmethod
    def numbers(layers, forward=True):
        """Numbers in the buffers (for one vector, for one vector and one sample)."""
        fixed = (2 if forward else 1) * sum(layer.size for layer in layers)
        return fixed, min(2, len(layers)) * max(layer.out for layer in layers) + (1 if forward else 2) * layers[-1].out  # the last: p ∘ u, and ξ

    def of(self, buffer, *shape):
        """The beginning of a buffer, in that shape."""
        return buffer[: math.prod(shape)].reshape(shape)

    def tangent(self, layer, k, m):
        """T [out, k, m] of a layer, counted from 0; neighbouring layers have different ones."""
        return self.of(self.T[layer % len(self.T)], self.layers[layer].out, k, m)

    def load(self, V):
        """V [N, k] → A."""
        for layer, A in zip(self.layers, self.A, strict=True):
            layer.gather(V, self.of(A, layer.out, V.shape[1], layer.columns), self.backend)

    def forward(self, block, k, stop=None):
        """da of the last layer (or the one before `stop`) for a block of samples, [out, k, m]."""
        xp, m, before = self.xp, block.stop - block.start, None
        for at, layer in enumerate(self.layers[:stop]):
            T, x = self.tangent(at, k, m), self.data.X[layer.rows, block]
            A = self.of(self.A[at], layer.out * k, layer.columns)
            if at == 0:
                xp.matmul(A, x, out=T.reshape(-1, m))
            else:
                self.backend.scale_samples(before, self.data.slopes[at - 1][:, block])
                xp.matmul(layer.W, before.reshape(layer.inner, -1), out=T.reshape(layer.out, -1))
                if layer.columns:
                    self.backend.add_product(A, x, T.reshape(-1, m))
            before = T
        return before

    def backward(self, U, block, add, last=None):
        """G ← Σ_i J_iᵀ u_i for u [out, k, m] of the last layer (or `last`) and a block of samples, or G += that."""
        xp, (_, k, m) = self.xp, U.shape
        for at in range(len(self.layers) - 1 if last is None else last, -1, -1):
            layer = self.layers[at]
            if layer.columns:
                self.collect(self.G[at], U.reshape(-1, m), self.data.X[layer.rows, block], add)
            if at:
                U = xp.matmul(layer.W.T, U.reshape(layer.out, -1), out=self.tangent(at - 1, k, m).reshape(layer.inner, -1)).reshape(-1, k, m)
                self.backend.scale_samples(U, self.data.slopes[at - 1][:, block])

    def collect(self, G, u, x, add):
        """G ← u xᵀ, or G += that."""
        G = self.of(G, len(u), len(x))
        if add:
            self.backend.add_product(u, x.T, G)
        else:
            self.xp.matmul(u, x.T, out=G)

    def product(self, block, k, add):
        """G ← Σ_i J_iᵀ Q_i J_i V of a block of samples, or G += that."""
        U = self.forward(block, k)
        self.hessian(U, block)
        self.backward(U, block, add)

    def store(self, result, scale):
        """result [N, k] ← scale · G."""
        for layer, G in zip(self.layers, self.G, strict=True):
            layer.scatter(self.of(G, layer.out, result.shape[1], layer.columns), result, scale, self.backend)


class Contracted(Sweep):
    """The sweep of squared error with its last layer contracted. M = W_LᵀV_L, P = Σ_i dx_i x̃_iᵀ [d_{L−1}, k, c]."""

    def _allocate(self, k, m):
        hidden, last = self.layers[:-1], self.layers[-1]
        self.G = [self._empty(k, layer.size) for layer in self.layers]
        self.A = [self._empty(k, layer.size) for layer in self.layers]
        if hidden:
            self.M, self.P = (self._empty(k, last.inner * last.columns) for _ in range(2))
            self.T = [self._empty(k, m, max(layer.out for layer in hidden)) for _ in range(2)]

    @staticmethod
    def numbers(layers, forward=True):
        """As of `Sweep`: no multivector of the outputs is among them."""
        hidden, last = layers[:-1], layers[-1]
        moments = last.inner * last.columns if hidden else 0
        return 2 * sum(layer.size for layer in layers) + 2 * moments, 2 * max([layer.out for layer in hidden], default=0)

    @staticmethod
    def pays(layers, n):
        """Whether it takes fewer operations than the plain sweep: about 6 c² (d + n) instead of 8 c d n a vector, c the last layer's inputs, d outputs."""
        d, c = layers[-1].out, layers[-1].inner + 1
        return 3 * c * (d + n) < 4 * d * n

    def load(self, V):
        """V [N, k] → A, and M = W_LᵀV_L."""
        super().load(V)
        last, k = self.layers[-1], V.shape[1]
        if len(self.layers) > 1 and last.columns:
            self.xp.matmul(last.W.T, self.of(self.A[-1], last.out, k * last.columns), out=self.of(self.M, last.inner, k * last.columns))

    def product(self, block, k, add):
        """G of the hidden layers, and P, of a block of samples, or added to what there is."""
        xp, last, hidden = self.xp, self.layers[-1], len(self.layers) - 1
        if not hidden:
            return
        m, x, slope = block.stop - block.start, self.data.X[last.rows, block], self.data.slopes[-1][:, block]
        dx = self.forward(block, k, hidden)
        self.backend.scale_samples(dx, slope)
        U = self.of(self.T[hidden % 2], last.inner, k, m)
        xp.matmul(self.data.last_gram()[1], dx.reshape(last.inner, -1), out=U.reshape(last.inner, -1))
        if last.columns:
            self.collect(self.P, dx.reshape(-1, m), x, add)
            self.backend.add_product(self.of(self.M, last.inner * k, last.columns), x, U.reshape(-1, m))
        self.backend.scale_samples(U, 2 * slope, out=dx)
        self.backward(dx, block, add, hidden - 1)

    def store(self, result, scale):
        """result [N, k] ← scale · G, the last layer's G = 2 (V_L S + W_L P) of all samples."""
        last, k, xp = self.layers[-1], result.shape[1], self.xp
        if last.columns:
            G = self.of(self.G[-1], last.out * k, last.columns)
            xp.matmul(self.of(self.A[-1], *G.shape), self.data.last_gram()[0], out=G)
            if len(self.layers) > 1:
                moments = self.of(self.P, last.inner, k * last.columns)
                self.backend.add_product(last.W, moments, G.reshape(last.out, k * last.columns))
            G *= 2
        super().store(result, scale)
