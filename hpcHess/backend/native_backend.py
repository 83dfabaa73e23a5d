"""NumPy arrays with the compiled kernels where they are faster."""

import math

import numpy as np

from hpcHess import _native
from hpcHess.backend.array_backend import ArrayBackend
from hpcHess.backend.assembly import Assembly
from hpcHess.backend.blocks import Blocks
from hpcHess.backend.elimination import GROWTH, Elimination, assemble, eliminate_block
from hpcHess.backend.interpolate import Interpolation
from hpcHess.backend.pivoted import sketch_signs
from hpcHess.parallel.ownership import starts_of

KEPT = 1 << 17  # bytes from which the memory of results is kept: below, the C library does


def _index(a):
    return np.ascontiguousarray(a, np.int64)


def _inspect(W):
    """Which blocks are square and upper triangular, uint8 [b]; max_j ‖W_i e_j‖² [b]."""
    triangular, largest = np.empty(len(W), np.uint8), np.empty(len(W))
    _native.inspect(W.data, W.rows, W.cols, triangular, largest)
    return triangular, largest


def _empty(shape, dtype=np.float64):
    """np.empty; the memory of large arrays is kept for the next ones when they are gone (`native/memory.cpp`)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.empty(shape, dtype) if size < KEPT else _native.empty(size).view(dtype).reshape(shape)


def _bytes(rows):
    """Contiguous rows as uint8 [n, bytes of a row]."""
    width = int(np.prod(rows.shape[1:])) * rows.itemsize
    return rows.reshape(len(rows), -1).view(np.uint8) if rows.size else np.empty((len(rows), width), np.uint8)


class NativeBackend(ArrayBackend):
    """NumPy arrays; OpenMP over the blocks of a batch (OMP_NUM_THREADS), BLAS with one thread inside each.

    Results do not depend on the number of threads.
    """

    def __init__(self):
        super().__init__("native", np)

    def empty(self, shape, dtype):
        return _empty(shape, dtype)

    def zeros(self, shape, dtype):
        result = _empty(shape, dtype)
        result.fill(0)
        return result

    def add_product(self, A, B, C):
        _native.add_product(A, B, C)

    def swap_axes(self, source, out, scale=1.0):
        _native.swap_axes(source, out, float(scale))

    def scale_samples(self, U, s, out=None):
        _native.scale_samples(U, s, U if out is None else out)

    def softmax_hessian(self, U, p):
        _native.softmax_hessian(U, p)

    def take_rows(self, rows, index):
        rows = np.ascontiguousarray(rows)
        result = _empty((len(index), *rows.shape[1:]), rows.dtype)
        _native.take_rows(_bytes(rows), _index(index), _bytes(result))
        return result

    def multiply(self, A, X, x_starts, Y, y_starts, transpose=False, alpha=1.0):
        shapes = (_index(A.rows), _index(A.cols), _index(A.offsets))
        X, Y_at = np.ascontiguousarray(X), _index(y_starts)
        _native.multiply(A.data, *shapes, X, _index(x_starts), Y, Y_at, bool(transpose), float(alpha))

    def multiply_symmetric(self, B, X, row_at, col_at, Y, alpha=1.0):
        shapes = (_index(B.rows), _index(B.cols), _index(B.offsets))
        _native.multiply_symmetric(B.data, *shapes, np.ascontiguousarray(X), _index(row_at), _index(col_at), Y, float(alpha))

    def multiply_at(self, D, rows, X, Y):
        _native.multiply_at(D.data, _index(D.rows), rows, np.ascontiguousarray(X), Y)

    def compress_rows(self, T, skeleton_rows, redundant_rows, rows):
        result = _empty((len(skeleton_rows), rows.shape[1]), rows.dtype)
        _native.compress_rows(T.data, T.rows, T.cols, T.offsets, skeleton_rows, redundant_rows, np.ascontiguousarray(rows), result)
        return result

    def expand_rows(self, T, skeleton_rows, redundant_rows, rows, into=None):
        add, rows = into is not None, np.ascontiguousarray(rows)
        result = into if add else _empty((len(skeleton_rows) + len(redundant_rows), rows.shape[1]), rows.dtype)
        _native.expand_rows(T.data, T.rows, T.cols, T.offsets, skeleton_rows, redundant_rows, rows, result, add)
        return result

    def gram_entries(self, factors, I, J, scale, H):
        f, T = factors, factors.X.dtype
        given = lambda array, ndim: np.zeros((0,) * ndim, T) if array is None else array  # noqa: E731
        arrays = (f.X, f.slopes, given(f.stored, 3), _index(() if f.place is None else f.place), [given(each, 3) for each in f.C])
        arrays += tuple(given(each, 2) for each in (f.M, f.output, f.rest, f.roots, f.gram))
        sides = [_index(each) for side in (I, J) for each in (side.neuron, side.row, side.place, side.starts)]
        _native.gram_entries(*arrays, _index(f.layer_starts), int(f.separable), *sides, float(scale), H.data, _index(H.offsets))

    def interpolate(self, R, starts, tolerance, max_rank=None, samples=None):
        starts = _index(starts)
        sizes = np.diff(starts)
        tolerance = np.ascontiguousarray(np.broadcast_to(np.asarray(tolerance, float), sizes.shape))
        limit = R.shape[1] if max_rank is None else int(max_rank)
        samples = np.ascontiguousarray(np.full(sizes.shape, R.shape[1]) if samples is None else samples, float)
        R = np.ascontiguousarray(R)
        signs = sketch_signs(R.shape[1], R.dtype.name)
        ranks, order, T, residual = _native.interpolate(R, starts, tolerance, limit, samples, signs)
        if np.isnan(residual).any():
            raise FloatingPointError("interpolate: the sample holds NaN or Inf")
        return Interpolation(ranks, order, Blocks.shaped(T, ranks, sizes - ranks), residual, residual > tolerance)

    def eliminate(self, A, order, T, delay=True):
        return self.eliminate_assembled(Assembly(A), order, T, delay)

    def eliminate_assembled(self, A, order, T, delay=True):
        order, s, r = _index(order), _index(T.rows), _index(T.cols)
        diagonal, coupling = A.diagonal.data, A.coupling or Blocks.shaped(np.zeros(0, T.dtype), T.rows[:0], T.cols[:0])
        if diagonal.dtype != np.float32 or A.coupling or T.dtype != np.float32:
            diagonal = diagonal.astype(np.float64, copy=False)
        W, K, schur = Blocks.shaped(np.zeros, r, r), Blocks.shaped(np.empty, s, r), Blocks.shaped(np.empty, s, s)
        log_abs, largest = np.empty(len(A)), np.empty(len(A))
        growth = GROWTH if delay else np.inf
        given = (np.ascontiguousarray(diagonal), _index(A.diagonal.rows), A.parts, coupling.data, coupling.rows, coupling.cols, float(A.shift))
        _native.eliminate_definite(*given, order, T.data, s, r, W.data, K.data, schur.data, log_abs, largest, growth)
        refused = np.isnan(log_abs)
        if not refused.any():
            V = Blocks.shaped(np.zeros, r, 0 * r)
            none, ones = np.zeros(len(A), np.int64), np.ones(int(r.sum()))
            return Elimination(self, order, T, W, K, V, ones, log_abs, none, schur, (np.ones(len(A), np.uint8), largest))
        starts = starts_of(s + r)
        parts = [(W[i], K[i], np.zeros((r[i], 0)), schur[i], np.ones(r[i]), log_abs[i], 0) for i in range(len(A))]
        for i in np.flatnonzero(refused):
            rows = order[starts[i] : starts[i + 1]]
            D = A.block(np, i)[np.ix_(rows, rows)]
            parts[i] = eliminate_block(np, D, T[i].astype(np.float64, copy=False), delay)
        return assemble(self, order, T, parts)

    def forward(self, elimination, B, starts, rows=None):
        e, B = elimination, np.ascontiguousarray(B, np.float64)
        B_kept, z = _empty((int(e.kept_starts[-1]), B.shape[1])), _empty((len(e.sign), B.shape[1]))
        _native.solve_forward(B, *self._level(e, starts, rows), B_kept, z)
        return B_kept, z

    def backward(self, elimination, x_kept, state, rows=None, into=None):
        e, given = elimination, [np.ascontiguousarray(each, np.float64) for each in (x_kept, state)]
        X = _empty((int(e.starts[-1]), x_kept.shape[1])) if into is None else into
        _native.solve_backward(*given, *self._level(e, e.starts, rows), X)
        return X

    def _level(self, e, starts, rows):
        """A level's factors as the two sweeps take them, its rows at starts + order or at `rows`."""
        if e.inspected is None:
            e.inspected = _inspect(e.W)
        starts, order = (_index(starts), e.order) if rows is None else (np.zeros(len(e.kept), np.int64), rows)
        return starts, order, e.T.rows, e.T.cols, e.delayed, e.T.data, e.W.data, e.K.data, e.V.data, e.sign, e.inspected[0]

    def smallest(self, W, inspected=None):
        largest = (inspected or _inspect(W))[1].max(initial=0)
        return 1 / largest if largest else np.inf
