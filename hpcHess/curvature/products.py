r"""Products with a Gauss–Newton matrix by one forward and one backward sweep, many vectors at once.

For a vector v with layer parts V_ℓ = [V_W V_b] and x̃ = [x; 1], over the samples (last index):

    da^ℓ = V_ℓ x̃^{ℓ−1} + W_ℓ dx^{ℓ−1} = [V_ℓ W_ℓ] [x̃^{ℓ−1}; dx^{ℓ−1}],   dx^ℓ = s'^ℓ ∘ da^ℓ,
    u^L = Q da^L,   u^{ℓ−1} = s'^{ℓ−1} ∘ W_ℓᵀ u^ℓ,   (Hv)_ℓ = (1/n) u^ℓ (x̃^{ℓ−1})ᵀ.

Every line is one matrix product a layer, for all vectors of a block together where the other factor is common to them.
"""

import numpy as np

from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows

TEMPORARY_BYTES = 1 << 28  # of all temporaries of one product or probe together, its result aside
_SAMPLES = 1024  # samples of one sweep: the inner dimension of the gradients' products
_COLUMNS = 64


class _Layer:
    """A layer's place in the parameters and in the samples' inputs; its [V_W V_b] has d_{ℓ−1} columns, + 1 with a bias, none where it is not chosen."""

    def __init__(self, W, offsets, own, rows, first):
        (self.out, self.inner), self.W, self.own = W.shape, W, own
        self.weight = slice(offsets[0], offsets[0] + self.out * own)
        self.bias = None if offsets[1] is None else slice(offsets[1], offsets[1] + self.out)
        self.columns = own + (self.bias is not None)
        self.rows = slice(rows, rows + self.columns)
        self.width = self.columns + (0 if first else self.inner)  # of [V W]; the first layer's dx is 0

    def parts(self, V, G):
        """Pairs (view [k, …] of parameters V [N, k], view of G [k, d_ℓ, c]) of the weight and, if there is one, the bias."""
        k = V.shape[1]
        yield V[self.weight].T.reshape(k, self.out, self.own), G[:k, :, : self.own]
        if self.bias is not None:
            yield V[self.bias].T, G[:k, :, self.own]


class Products:
    """Sweeps over the samples `mine` (a slice) of `samples`; `backend` holds the arrays. Not collective."""

    def __init__(self, network, samples, mine, backend):
        self.xp, self.backend = backend.xp, backend
        self.loss, self.n, self.mine, self.dtype = samples.loss, samples.n, mine, samples.dtype
        self.n_params, self.n_outputs = network.n_params, network.n_outputs
        self.X = backend.asarray(samples.X[:, mine])
        first = network.chosen[0]  # nothing changes before this layer
        self.slopes = [backend.asarray(samples.slope(layer)[:, mine]) for layer in range(first, samples.n_layers - 1)]
        self.output = None if samples.output is None else backend.asarray(np.ascontiguousarray(samples.output[:, mine]))
        weights = [backend.asarray(np.ascontiguousarray(W, self.dtype)) for W in network.weights]
        layers = list(zip(weights, network.layer_offsets, network.inner, samples.row_starts[:-1].tolist(), strict=True))[first:]
        self.layers = [_Layer(*each, first=at == 0) for at, each in enumerate(layers)]

    def matmat(self, V):
        """(1/n) Σ_{i mine} J_iᵀ Q_i J_i V, [N, k] for V [N, k], row-major."""
        V = self.backend.asarray(V)

        def outputs(sweep, block, columns):
            sweep.load(V[:, columns])
            U = sweep.forward(block, columns.stop - columns.start)
            self.loss.apply_hessian(U, None if self.output is None else self.output[:, block])
            return U

        return self._assemble(V.shape[1], outputs, 1 / self.n, forward=True)

    def probe(self, k, seed):
        """(nk)^{-1/2} Σ_{i mine} J_iᵀ R_i ξ_i, [N, k], row-major; ξ_i standard normal, determined by (seed, sample, output, column)."""
        d, first = self.n_outputs, self.mine.start

        def outputs(sweep, block, columns):
            rows = (first + block.start) * d, (first + block.stop) * d
            xi = gaussian_rows(seed, "probe", *rows, range(columns.start, columns.stop), self.dtype).T
            U = sweep.buffer(self.layers[-1].out, columns.stop - columns.start, block, len(self.layers) - 1)
            U[...] = self.backend.asarray(xi).reshape(len(xi), -1, d).transpose(0, 2, 1)
            self.loss.apply_root(U, None if self.output is None else self.output[:, block])
            return U

        return self._assemble(k, outputs, 1 / np.sqrt(self.n * max(k, 1)), forward=False)

    def jacobian(self, V):
        """J_i V of this rank's samples, [k, d, n_mine] for V [N, k], row-major."""
        V, n_mine = self.backend.asarray(V), self.X.shape[1]
        result = np.empty((V.shape[1], self.n_outputs, n_mine), self.dtype)
        if not result.size:
            return result
        width, n_blocks = self._blocking(V.shape[1], n_mine, forward=True)
        starts = row_starts(n_mine, n_blocks)
        sweep = _Sweep(self, width, int(starts[1]), n_blocks > 1, forward=True)
        for a in range(0, V.shape[1], width):
            columns = slice(a, min(V.shape[1], a + width))
            sweep.load(V[:, columns])
            for lo, hi in zip(starts[:-1], starts[1:], strict=True):
                block = slice(int(lo), int(hi))
                result[columns, :, block] = self.backend.to_host(sweep.forward(block, columns.stop - a))
        return result

    def jacobian_transposed(self, U):
        """Σ_{i mine} J_iᵀ u_i, [N, k], row-major, for u [k, d, n_mine]."""

        def outputs(sweep, block, columns):
            result = sweep.buffer(self.layers[-1].out, columns.stop - columns.start, block, len(self.layers) - 1)
            result[...] = self.backend.asarray(U[columns, :, block])
            return result

        return self._assemble(len(U), outputs, 1, forward=False)

    def _assemble(self, k, outputs, scale, forward):
        """scale · Σ_{i mine} J_iᵀ u_i, [N, k], by blocks of columns and samples; `outputs(sweep, samples, columns)` gives u [k', d, m]."""
        n_mine = self.X.shape[1]
        if not n_mine or not k:
            return np.zeros((self.n_params, k), self.dtype)
        result = self.xp.empty((self.n_params, k), self.dtype)
        width, n_blocks = self._blocking(k, n_mine, forward)
        starts = row_starts(n_mine, n_blocks)
        sweep = _Sweep(self, width, int(starts[1]), n_blocks > 1, forward)
        for a in range(0, k, width):
            columns = slice(a, min(k, a + width))
            for at, (lo, hi) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
                block = slice(int(lo), int(hi))
                sweep.backward(outputs(sweep, block, columns), block, add=at > 0)
            sweep.store(result[:, columns], self.dtype.type(scale))
        return self.backend.to_host(result)

    def _blocking(self, k, n_mine, forward):
        """(columns, number of sample blocks) of one sweep that keep its buffers within TEMPORARY_BYTES."""
        budget = TEMPORARY_BYTES // self.dtype.itemsize
        n_blocks = -(-n_mine // _SAMPLES)
        while True:
            fixed, per_sample = _Sweep.numbers(self.layers, n_blocks > 1, forward)
            width = budget // (fixed + per_sample * -(-n_mine // n_blocks))
            if width >= min(4, k) or -(-n_mine // n_blocks) <= 64:
                return max(1, min(k, width, _COLUMNS)), n_blocks
            n_blocks *= 2


class _Sweep:
    """Buffers of k vectors and m samples, reused from block to block.

    A_ℓ [k, d_ℓ, w]: [V W] of every vector;  B [k, w, m]: [x̃; dx];  T, two of [k, d_ℓ, m]: da and u;  G_ℓ [k, d_ℓ, c]: gradients.
    """

    def __init__(self, products, k, m, several, forward):
        self.xp, self.products, self.layers = products.xp, products, products.layers
        empty = lambda *shape: self.xp.empty(shape, products.dtype)  # noqa: E731
        self.G = [empty(k, layer.out, layer.columns) for layer in self.layers]
        self.more = empty(k * max(layer.out * layer.columns for layer in self.layers)) if several else None
        self.T = [empty(k * m * max(layer.out for layer in self.layers)) for _ in range(min(2, len(self.layers)))]
        if forward:
            self.A = [empty(k, layer.out, layer.width) for layer in self.layers]
            self.B = empty(k * m * max(layer.width for layer in self.layers[1:])) if len(self.layers) > 1 else None
            for A, layer in zip(self.A[1:], self.layers[1:], strict=True):
                A[:, :, layer.columns :] = layer.W

    @staticmethod
    def numbers(layers, several, forward):
        """Numbers in the buffers (for one vector, for one vector and one sample)."""
        gradients = [layer.out * layer.columns for layer in layers]
        fixed = sum(gradients) + several * max(gradients)
        per_sample = min(2, len(layers)) * max(layer.out for layer in layers) + layers[-1].out  # the last: ξ, p ∘ u
        if forward:
            fixed += sum(layer.out * layer.width for layer in layers)
            per_sample += max([layer.width for layer in layers[1:]], default=0)
        return fixed, per_sample

    def buffer(self, rows, k, block, layer):
        """T [k, rows, m] of a layer; neighbouring layers have different ones."""
        m = block.stop - block.start
        return self.T[layer % len(self.T)][: k * rows * m].reshape(k, rows, m)

    def load(self, V):
        """V [N, k] → the left parts of A."""
        for layer, A in zip(self.layers, self.A, strict=True):
            for source, target in layer.parts(V, A):
                target[...] = source

    def forward(self, block, k):
        """J V of a block of samples, [k, d, m]."""
        xp, X, m, T = self.xp, self.products.X[:, block], block.stop - block.start, None
        for at, layer in enumerate(self.layers):
            x, before, T = X[layer.rows], T, self.buffer(layer.out, k, block, at)
            if at == 0:
                xp.matmul(self.A[0][:k].reshape(-1, layer.width), x, out=T.reshape(-1, m))
                continue
            B = self.B[: k * layer.width * m].reshape(k, layer.width, m)
            B[:, : layer.columns] = x
            xp.multiply(before, self.products.slopes[at - 1][:, block], out=B[:, layer.columns :])
            xp.matmul(self.A[at][:k], B, out=T)
        return T

    def backward(self, U, block, add):
        """G ← Σ_i J_iᵀ u_i for u [k, d, m] of a block of samples, or G += that."""
        xp, X, (k, _, m) = self.xp, self.products.X[:, block], U.shape
        for at in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[at]
            if layer.columns:
                u, x, G = U.reshape(-1, m), X[layer.rows], self.G[at][:k].reshape(-1, layer.columns)
                if add:
                    G += xp.matmul(u, x.T, out=self.more[: G.size].reshape(G.shape))
                else:
                    xp.matmul(u, x.T, out=G)
            if at:
                U = xp.matmul(layer.W.T, U, out=self.buffer(layer.inner, k, block, at - 1))
                U *= self.products.slopes[at - 1][:, block]

    def store(self, result, scale):
        """result [N, k] ← scale · G."""
        for layer, G in zip(self.layers, self.G, strict=True):
            for target, source in layer.parts(result, G):
                self.xp.multiply(source, scale, out=target)
