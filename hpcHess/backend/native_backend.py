"""NumPy arrays with the compiled kernels where they are faster."""

import numpy as np

from hpcHess import _native
from hpcHess.backend.array_backend import ArrayBackend
from hpcHess.backend.blocks import Blocks
from hpcHess.backend.elimination import GROWTH, Elimination, assemble, eliminate_block
from hpcHess.backend.interpolate import Interpolation
from hpcHess.parallel.ownership import starts_of


def _index(a):
    return np.ascontiguousarray(a, np.int64)


class NativeBackend(ArrayBackend):
    """NumPy arrays; OpenMP over the blocks of a batch (OMP_NUM_THREADS), BLAS with one thread inside each.

    Results do not depend on the number of threads.
    """

    def __init__(self):
        super().__init__("native", np)

    def add_product(self, A, B, C):
        _native.add_product(A, B, C)

    def swap_axes(self, source, out, scale=1.0):
        _native.swap_axes(source, out, float(scale))

    def scale_samples(self, U, s, out=None):
        _native.scale_samples(U, s, U if out is None else out)

    def multiply(self, A, X, x_starts, Y, y_starts, transpose=False, alpha=1.0):
        shapes = (_index(A.rows), _index(A.cols), _index(A.offsets))
        X, Y_at = np.ascontiguousarray(X), _index(y_starts)
        _native.multiply(A.data, *shapes, X, _index(x_starts), Y, Y_at, bool(transpose), float(alpha))

    def interpolate(self, R, starts, tolerance, max_rank=None, samples=None):
        starts = _index(starts)
        sizes = np.diff(starts)
        tolerance = np.ascontiguousarray(np.broadcast_to(np.asarray(tolerance, float), sizes.shape))
        limit = R.shape[1] if max_rank is None else int(max_rank)
        samples = np.ascontiguousarray(np.full(sizes.shape, R.shape[1]) if samples is None else samples, float)
        ranks, order, T, residual = _native.interpolate(np.ascontiguousarray(R), starts, tolerance, limit, samples)
        if np.isnan(residual).any():
            raise FloatingPointError("interpolate: the sample holds NaN or Inf")
        return Interpolation(ranks, order, Blocks.shaped(T, ranks, sizes - ranks), residual, residual > tolerance)

    def eliminate(self, A, order, T, delay=True):
        order, s, r = _index(order), _index(T.rows), _index(T.cols)
        data = np.ascontiguousarray(A.data, np.float64)
        W, K, schur = Blocks.shaped(np.empty, r, r), Blocks.shaped(np.empty, s, r), Blocks.shaped(np.empty, s, s)
        log_abs = np.empty(len(A))
        _native.eliminate_definite(data, order, T.data, s, r, W.data, K.data, schur.data, log_abs, GROWTH if delay else np.inf)
        refused = np.isnan(log_abs)
        if not refused.any():
            V = Blocks.shaped(np.zeros, r, 0 * r)
            return Elimination(self, order, T, W, K, V, np.ones(int(r.sum())), log_abs, np.zeros(len(A), np.int64), schur)
        starts = starts_of(s + r)
        parts = [(W[i], K[i], np.zeros((r[i], 0)), schur[i], np.ones(r[i]), log_abs[i], 0) for i in range(len(A))]
        for i in np.flatnonzero(refused):
            rows = order[starts[i] : starts[i + 1]]
            D = A[i].astype(np.float64, copy=False)[np.ix_(rows, rows)]
            parts[i] = eliminate_block(np, D, T[i].astype(np.float64, copy=False), delay)
        return assemble(self, order, T, parts)
