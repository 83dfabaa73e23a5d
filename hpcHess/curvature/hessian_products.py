r"""Products with the exact Hessian of a multilayer perceptron by Pearlmutter's R-operator, many vectors at once.

For a vector v with layer parts V_ℓ = [V_W V_b], x̃ = [x; 1], δ = ∂f/∂a and t = s'' ∘ ∂f/∂x (`Gradients`), over the samples (last index):

    da^ℓ = V_ℓ x̃^{ℓ−1} + W_ℓ dx^{ℓ−1},   dx^ℓ = s'^ℓ ∘ da^ℓ,
    u^L = Q da^L + t^L ∘ da^L,   u^{ℓ−1} = s'^{ℓ−1} ∘ (W_ℓᵀ u^ℓ + V_Wᵀ δ^ℓ) + t^{ℓ−1} ∘ da^{ℓ−1},
    (Hv)_ℓ = (1/n) Σ_i u^ℓ (x̃^{ℓ−1})ᵀ + δ^ℓ [dx^{ℓ−1}; 0]ᵀ.

Pearlmutter, Neural Computation 1994, §4.3. Multivectors over the samples are [d_ℓ, k, m]: every product above is one matrix product for all
vectors and samples of a block; V_W [d_ℓ, d_{ℓ−1}·k] and its gradient δ dxᵀ are used as they lie in V and HV.

Where Q = 2 I, u^L and da^L of the size outputs × samples need not be formed: with S = Σ_i x̃x̃ᵀ and P = Σ_i dx x̃ᵀ

    W_LᵀQ da^L = 2 (W_LᵀV_L) x̃ + 2 (W_LᵀW_L) dx,   Σ_i Q da^L x̃ᵀ = 2 (V_L S + W_L P).
"""

import math

import numpy as np

from hpcHess.curvature.blocking import blocking
from hpcHess.curvature.sweep import Layer, apply_hessian
from hpcHess.parallel.ownership import row_starts


class HessianProducts:
    """Sweeps over the samples `mine` (a slice) of `samples` and their `gradients`; `backend` holds the arrays. Not collective."""

    def __init__(self, network, samples, gradients, mine, backend):
        self.xp, self.backend, self.loss, self.n, self.dtype = backend.xp, backend, samples.loss, samples.n, samples.dtype
        self.n_params, self.n_mine = network.n_params, mine.stop - mine.start
        self.X = backend.asarray(samples.X[:, mine])
        self.output = None if samples.output is None else backend.asarray(np.ascontiguousarray(samples.output[:, mine]))
        first = network.chosen[0]  # nothing changes before this layer
        self.layers = [_Layer(network, samples, gradients, layer, mine, backend) for layer in range(first, network.n_layers)]
        self.contracted = self._contracts()
        if self.contracted:
            last = self.layers[-1]
            x = self.X[last.rows]
            self.gram, self.square = self.xp.matmul(x, x.T) * 2, self.xp.matmul(last.W.T, last.W) * 2  # 2 S, 2 WᵀW

    def _contracts(self):
        """Whether the last layer's da is not formed: with c its inputs, d outputs, about 6 c² (d + n) in place of 8 c d n operations a vector."""
        last = self.layers[-1]
        return self.loss.constant and len(self.layers) > 1 and 3 * last.inner * (last.out + self.n_mine) < 4 * last.out * self.n_mine

    def matmat(self, V):
        """(1/n) Σ_{i mine} ∂²f_i/∂θ² V, [N, k] for V [N, k], row-major."""
        V = self.backend.asarray(V)
        k = V.shape[1]
        if not self.n_mine or not k:
            return np.zeros((self.n_params, k), self.dtype)
        width, n_blocks = blocking(*_Sweep.numbers(self), self.n_mine, k, self.dtype.itemsize)
        starts = row_starts(self.n_mine, n_blocks)
        sweep, result = _Sweep(self, width, int(starts[1])), self.xp.empty((self.n_params, k), self.dtype)
        given, part = (None, None) if width >= k else (self.xp.empty(self.n_params * width, self.dtype) for _ in range(2))
        for a in range(0, k, width):
            columns, shape = slice(a, min(k, a + width)), (self.n_params, min(width, k - a))
            source, target = (self.xp.ascontiguousarray(V, self.dtype), result) if part is None else (sweep.of(each, *shape) for each in (given, part))
            if part is not None:
                source[...] = V[:, columns]
            sweep.load(source, target)
            for lo, hi in zip(starts[:-1], starts[1:], strict=True):
                sweep.add(slice(int(lo), int(hi)))
            sweep.store(self.dtype.type(1 / self.n))
            if part is not None:
                result[:, columns] = target
        return self.backend.to_host(result)


class _Layer(Layer):
    """With s' [d_ℓ, n] of a hidden layer, δ [d_ℓ, n], and t [d_ℓ, n] or None where it is zero."""

    def __init__(self, network, samples, gradients, layer, mine, backend):
        put = lambda array: backend.asarray(np.ascontiguousarray(array, samples.dtype))  # noqa: E731
        super().__init__(put(network.weights[layer]), network.layer_offsets[layer], network.inner[layer], int(samples.row_starts[layer]))
        self.slope = None if layer == samples.n_layers - 1 else backend.asarray(samples.slope(layer)[:, mine])
        self.delta = backend.asarray(gradients.delta(layer)[:, mine])
        self.bend = None if gradients.bend(layer) is None else backend.asarray(gradients.bend(layer)[:, mine])


class _Sweep:
    """Buffers of k vectors and m samples, reused from block to block.

    A_ℓ, G_ℓ [out, k, c]: the vectors, and Σ u x̃ᵀ;  D_ℓ [out, k, m]: da;  T: temporaries [widest, k, m]
    M, P [in, k, c] of a contracted last layer: 2 WᵀV and Σ dx x̃ᵀ;  more: one gradient
    """

    def __init__(self, products, k, m):
        self.products, self.backend, self.xp, self.layers = products, products.backend, products.xp, products.layers
        self.contracted = products.contracted
        self.full = self.layers[:-1] if self.contracted else self.layers  # whose da is formed
        empty = lambda *shape: self.xp.empty(math.prod(shape), products.dtype)  # noqa: E731
        self.A, self.G = ([empty(k, layer.size) for layer in self.full] for _ in range(2))
        self.D = [empty(k, m, layer.out) for layer in self.full]
        self.T = [empty(k, m, max(layer.out for layer in self.full)) for _ in range(self._temporaries(len(self.layers)))]
        self.more = empty(k, self._most(self.layers)) if self.contracted else None
        if self.contracted:
            last = self.layers[-1]
            self.M, self.P = (empty(k, last.inner * last.columns) for _ in range(2))

    @staticmethod
    def _temporaries(n_layers):
        return min(2, n_layers)

    @staticmethod
    def _most(layers):
        return max(max(layer.size for layer in layers), layers[-1].inner * layers[-1].columns)

    @classmethod
    def numbers(cls, products):
        """Numbers in the buffers (for one vector, for one vector and one sample)."""
        layers, contracted = products.layers, products.contracted
        full = layers[:-1] if contracted else layers
        fixed = 2 * sum(layer.size for layer in full) + contracted * cls._most(layers)
        fixed += contracted * 2 * layers[-1].inner * layers[-1].columns + 2 * products.n_params  # the columns of V and HV
        per_sample = sum(layer.out for layer in full) + cls._temporaries(len(layers)) * max(layer.out for layer in full)
        return fixed, per_sample + (0 if contracted else 2 * layers[-1].out)  # the last: p ∘ u, t ∘ da

    @staticmethod
    def of(buffer, *shape):
        """The beginning of a buffer, in that shape."""
        return buffer[: math.prod(shape)].reshape(shape)

    def load(self, V, result):
        """Begin with V [N, k], to be multiplied into result [N, k], both row-major."""
        self.V, self.result, self.k, self.fresh = V, result, V.shape[1], True
        for layer, A in zip(self.full, self.A, strict=True):
            layer.gather(V, self.of(A, layer.out, self.k, layer.columns), self.backend)
        last, k = self.layers[-1], self.k
        if self.contracted and last.columns:
            M, W = self.of(self.M, last.inner, k, last.columns), last.W.T * 2
            found = self.of(self.more, last.inner, last.own * k)
            self.xp.matmul(W, V[last.weight].reshape(last.out, -1), out=found)
            M[:, :, : last.own] = found.reshape(last.inner, last.own, k).transpose(0, 2, 1)
            if last.bias is not None:
                M[:, :, last.own] = self.xp.matmul(W, V[last.bias])

    def add(self, block):
        """Add the share of a block of samples."""
        self._backward(self._forward(block), block)
        self.fresh = False

    def _accumulate(self, total, left, right):
        """total ← left right, or total += that."""
        if self.fresh:
            self.xp.matmul(left, right, out=total)
        else:
            self.backend.add_product(left, right, total)

    def _forward(self, block):
        """da of the layers, δ dxᵀ on the way; returns what is below u^L: u^L [d, k, m], or of a contracted layer W_LᵀQ da^L [d_{L−1}, k, m]."""
        xp, k, m, X = self.xp, self.k, block.stop - block.start, self.products.X[:, block]
        for at, layer in enumerate(self.layers):
            if at == 0:
                D = self.of(self.D[0], layer.out * k, m)
                xp.matmul(self.of(self.A[0], layer.out * k, layer.columns), X[layer.rows], out=D)
                continue
            below = self.layers[at - 1]
            dx = self.of(self.T[0], below.out, k, m)
            self.backend.scale_samples(self.of(self.D[at - 1], below.out, k, m), below.slope[:, block], out=dx)
            if layer.columns:
                self._accumulate(self.result[layer.weight].reshape(layer.out, -1), layer.delta[:, block], dx.reshape(-1, m).T)
            if layer is self.layers[-1] and self.contracted:
                return self._contracted(dx, X[layer.rows])
            D = self.of(self.D[at], layer.out, k, m)
            xp.matmul(layer.W, dx.reshape(layer.inner, -1), out=D.reshape(layer.out, -1))
            if layer.columns:
                self.backend.add_product(self.of(self.A[at], layer.out * k, layer.columns), X[layer.rows], D.reshape(-1, m))
        return self._outputs(self.of(self.D[-1], self.layers[-1].out, k, m), block)

    def _contracted(self, dx, x):
        """W_LᵀQ da^L = 2 (W_LᵀV_L) x̃ + 2 (W_LᵀW_L) dx, [d_{L−1}, k, m], in T[1]; dx is in T[0]."""
        last, (_, k, m) = self.layers[-1], dx.shape
        found = self.of(self.T[1], *dx.shape)
        self.xp.matmul(self.products.square, dx.reshape(last.inner, -1), out=found.reshape(last.inner, -1))
        if last.columns:
            self._accumulate(self.of(self.P, last.inner * k, last.columns), dx.reshape(-1, m), x.T)
            self.backend.add_product(self.of(self.M, last.inner * k, last.columns), x, found.reshape(-1, m))
        return found

    def _outputs(self, U, block):
        """u^L = Q da^L + t^L da^L, in the place of da^L."""
        output, bend, bent = self.products.output, self.layers[-1].bend, None
        if bend is not None:
            bent = bend[:, None, block] * U
        apply_hessian(self.backend, self.products.loss, U, None if output is None else output[:, block])
        if bent is not None:
            U += bent
        return U

    def _backward(self, U, block):
        """u of the layers and Σ u x̃ᵀ, from what `_forward` returned."""
        xp, k, m, X, used = self.xp, self.k, block.stop - block.start, self.products.X[:, block], 1 if self.contracted else None
        for at in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[at]
            through = at == len(self.layers) - 1 and self.contracted
            if layer.columns and not through:
                self._accumulate(self.of(self.G[at], layer.out * k, layer.columns), U.reshape(-1, m), X[layer.rows].T)
            if at == 0:
                return
            if not through:
                used = 0 if used is None else 1 - used
                g = self.of(self.T[used], layer.inner, k, m)
                xp.matmul(layer.W.T, U.reshape(layer.out, -1), out=g.reshape(layer.inner, -1))
                U = g
            below = self.layers[at - 1]
            if layer.columns:
                V = self.V[layer.weight].reshape(layer.out, -1)
                self.backend.add_product(V.T, layer.delta[:, block], U.reshape(-1, m))
            self.backend.scale_samples(U, below.slope[:, block])
            if below.bend is not None:
                D = self.of(self.D[at - 1], *U.shape)
                self.backend.scale_samples(D, below.bend[:, block])
                U += D

    def store(self, scale):
        """result ← scale · (δ dxᵀ, which is there, + Σ u x̃ᵀ)."""
        k = self.k
        for at, layer in enumerate(self.layers):
            if not layer.columns:
                continue
            H = self.result[layer.weight].reshape(layer.out, layer.own, k)
            if layer is self.layers[-1] and self.contracted:
                self._store_contracted(H, scale)
                continue
            G = self.of(self.G[at], layer.out, k, layer.columns)
            if at:
                H += G[:, :, : layer.own].transpose(0, 2, 1)
                H *= scale
            else:
                self.xp.multiply(G[:, :, : layer.own].transpose(0, 2, 1), scale, out=H)
            if layer.bias is not None:
                self.xp.multiply(G[:, :, layer.own], scale, out=self.result[layer.bias])

    def _store_contracted(self, H, scale):
        """Of the last layer: Σ u x̃ᵀ = 2 (V S + W P); products.gram is 2 S."""
        xp, last, k, gram = self.xp, self.layers[-1], self.k, self.products.gram
        V = self.V[last.weight].reshape(last.out, last.own, k)
        P = self.of(self.P, last.inner, k, last.columns) * 2
        more = self.of(self.more, last.out, last.own, k)
        H += xp.matmul(gram[: last.own, : last.own], V, out=more)
        turned = xp.ascontiguousarray(P[:, :, : last.own].transpose(0, 2, 1)).reshape(last.inner, -1)
        H += xp.matmul(last.W, turned, out=more.reshape(last.out, -1)).reshape(H.shape)
        if last.bias is not None:
            edge, b = gram[last.own, : last.own], self.V[last.bias]
            H += xp.multiply(edge[None, :, None], b[:, None], out=more)
            found = xp.matmul(edge, V) + gram[last.own, last.own] * b + xp.matmul(last.W, P[:, :, last.own])
            xp.multiply(found, scale, out=self.result[last.bias])
        H *= scale
