"""Products with a Gauss–Newton matrix or outer products of gradients, many vectors at once, by blocks of vectors and samples."""

import numpy as np

from hpcHess.curvature.blocking import KEPT_BYTES, blocking
from hpcHess.curvature.rank_one import RankOne
from hpcHess.curvature.sweep import Contracted, Data, Layer, Sweep, apply_hessian
from hpcHess.networks.losses import OuterProduct
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows


class Products:
    """Sweeps (`curvature.sweep`, `curvature.rank_one`) over the samples `mine` (a slice) of `samples`; `backend` holds the arrays. Not collective."""

    def __init__(self, network, samples, mine, backend):
        self.xp, self.backend = backend.xp, backend
        self.loss, self.n, self.dtype = samples.loss, samples.n, samples.dtype
        self.first_sample, self.n_mine = mine.start, mine.stop - mine.start
        self.n_params, self.n_outputs = network.n_params, network.n_outputs
        first = network.chosen[0]  # nothing changes before this layer
        put = lambda array: backend.asarray(np.ascontiguousarray(array, self.dtype))  # noqa: E731
        each = list(zip(map(put, network.weights), network.layer_offsets, network.inner, samples.row_starts[:-1].tolist(), strict=True))[first:]
        slopes = [backend.asarray(samples.slope(layer)[:, mine]) for layer in range(first, samples.n_layers - 1)]
        self.data = Data(backend, self.dtype, [Layer(*one) for one in each], backend.asarray(samples.X[:, mine]), slopes)
        self.output = None if samples.output is None else put(samples.output[:, mine])
        self._deltas = self._gradients() if self.loss is OuterProduct else None
        self._last = None

    def _gradients(self):
        """δ^ℓ = ∂f/∂a^ℓ [d_ℓ, n_mine] of the layers from the first chosen one."""
        deltas = [self.output]
        for layer, slope in zip(self.data.layers[:0:-1], self.data.slopes[::-1], strict=True):
            deltas.append(self.xp.matmul(layer.W.T, deltas[-1]) * slope)
        return deltas[::-1]

    def matmat(self, V):
        """(1/n) Σ_{i mine} J_iᵀ Q_i J_i V, [N, k] for V [N, k], row-major."""
        V = self.backend.asarray(V, self.dtype)
        return self._assemble(V.shape[1], 1 / self.n, self._product_sweep(), V, _product)

    def _product_sweep(self):
        """What makes the cheapest sweep, of its numbers of vectors and samples, and its class."""
        if self._deltas is not None:
            return self._rank_one, RankOne
        if self.loss.constant and Contracted.pays(self.data.layers, self.n_mine):
            return self._contracted, Contracted
        return self._whole, Sweep

    def _rank_one(self, k, m):
        return RankOne(self.data, self._deltas, k, m)

    def _contracted(self, k, m):
        return Contracted(self.data, k, m)

    def _whole(self, k, m):
        return Sweep(self.data, k, m, hessian=self._hessian)

    def _back(self, k, m):
        return Sweep(self.data, k, m, forward=False)

    def _hessian(self, U, block):
        apply_hessian(self.backend, self.loss, U, None if self.output is None else self.output[:, block])

    def probe(self, k, seed):
        """(nk)^{-1/2} Σ_{i mine} J_iᵀ R_i ξ_i, [N, k], row-major; ξ_i standard normal, determined by (seed, sample, output, column)."""
        d, first = self.n_outputs, self.first_sample

        def outputs(block, columns):
            rows = (first + block.start) * d, (first + block.stop) * d
            xi = self.backend.asarray(gaussian_rows(seed, "probe", *rows, range(columns.start, columns.stop), self.dtype))
            U = xi.reshape(-1, d, xi.shape[1]).transpose(2, 1, 0)
            self.loss.apply_root(U, None if self.output is None else self.output[:, block], self.xp)
            return U

        return self._transposed(k, outputs, 1 / np.sqrt(self.n * max(k, 1)))

    def jacobian(self, V):
        """J_i V of this rank's samples, [k, d, n_mine] for V [N, k], row-major."""
        V = self.backend.asarray(V, self.dtype)
        result = np.empty((V.shape[1], self.n_outputs, self.n_mine), self.dtype)
        for columns, blocks, sweep in self._blocks(V.shape[1], (self._whole, Sweep), True):
            sweep.load(V[:, columns])
            for block in blocks:
                result[columns, :, block] = self.backend.to_host(sweep.forward(block, columns.stop - columns.start)).transpose(1, 0, 2)
        return result

    def jacobian_transposed(self, U):
        """Σ_{i mine} J_iᵀ u_i, [N, k], row-major, for u [k, d, n_mine]."""
        return self._transposed(len(U), lambda block, columns: self.backend.asarray(U[columns, :, block]), 1)

    def _transposed(self, k, outputs, scale):
        """scale · Σ_{i mine} J_iᵀ u_i, [N, k]; `outputs(samples, columns)` gives u [k', d, m]."""

        def add_block(sweep, block, columns, add):
            U = sweep.tangent(len(sweep.layers) - 1, columns.stop - columns.start, block.stop - block.start)
            U[...] = outputs(block, columns).transpose(1, 0, 2)
            sweep.backward(U, block, add)

        return self._assemble(k, scale, (self._back, Sweep), None, add_block)

    def _assemble(self, k, scale, kind, V, add_block):
        """scale · Σ over blocks of samples, [N, k]; `add_block(sweep, samples, columns, add)` adds one to the sweep's sums."""
        if not self.n_mine or not k:
            return np.zeros((self.n_params, k), self.dtype)
        result = self.xp.empty((self.n_params, k), self.dtype)
        for columns, blocks, sweep in self._blocks(k, kind, V is not None):
            if V is not None:
                sweep.load(V[:, columns])
            for at, block in enumerate(blocks):
                add_block(sweep, block, columns, at > 0)
            sweep.store(result[:, columns], self.dtype.type(scale))
        return self.backend.to_host(result)

    def _blocks(self, k, kind, forward):
        """(columns, slices of the samples, the sweep) of every block of columns; kind: as of `_product_sweep`."""
        if not k or not self.n_mine:
            return
        fixed, per_sample = kind[1].numbers(self.data.layers, forward)
        width, n_blocks = blocking(fixed, per_sample, self.n_mine, k, self.dtype.itemsize)
        starts = row_starts(self.n_mine, n_blocks).tolist()
        blocks = [slice(lo, hi) for lo, hi in zip(starts[:-1], starts[1:], strict=True)]
        sweep = self._kept(kind[0], width, starts[1], width * (fixed + per_sample * starts[1]))
        for a in range(0, k, width):
            yield slice(a, min(k, a + width)), blocks, sweep

    def _kept(self, make, k, m, numbers):
        """The sweep of k vectors and m samples with so many numbers in its buffers: the last one, where they are few and it fits."""
        if self._last is None or self._last[0] != (make, k, m):
            self._last, sweep = None, make(k, m)
            if numbers * self.dtype.itemsize > KEPT_BYTES:
                return sweep
            self._last = (make, k, m), sweep
        return self._last[1]


def _product(sweep, block, columns, add):
    sweep.product(block, columns.stop - columns.start, add)
