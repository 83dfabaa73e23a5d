"""The array backend on a CUDA device: CuPy's arrays and libraries, and kernels of its own (cuda/) for what is ragged."""

import os

import numpy as np

from hpcHess.backend import cuda_plan
from hpcHess.backend.array_backend import ArrayBackend
from hpcHess.backend.blocks import Blocks
from hpcHess.backend.cuda_source import OPTIONS, source
from hpcHess.backend.elimination import GROWTH, Elimination, assemble, eliminate_block
from hpcHess.backend.interpolate import Interpolation
from hpcHess.backend.pivoted import DIRECT, PANEL
from hpcHess.parallel.device import cuda_aware
from hpcHess.parallel.exchange import ranges
from hpcHess.parallel.ownership import starts_of

LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "PALS_LOCAL_RANKID")
THREADS = 256  # of every CUDA block, as in cuda/common.cuh
NARROW, FEW = 8, 4  # columns up to which a product reads the matrix at the pace of the memory
MOST = 1 << 14  # CUDA blocks of an elementwise pass
LARGE = 1024  # rows from which one matrix fills the device: libraries take them one after another
NULL = None


def _index(a):
    return np.ascontiguousarray(a, np.int64)


def _merged(xp, parts, sizes, found):
    """The interpolation of pieces of which number i is the next one of found[parts[i]]."""
    each = np.zeros(len(parts), np.int64)
    for part in range(len(found)):
        each[parts == part] = np.arange(np.count_nonzero(parts == part))
    starts = [starts_of(sizes[parts == part]) for part in range(len(found))]
    pieces = list(zip(parts, each, strict=True))
    ranks, residual, saturated = (np.array([getattr(found[p], name)[i] for p, i in pieces]) for name in ("ranks", "residual", "saturated"))
    order = np.concatenate([found[p].order[starts[p][i] : starts[p][i + 1]] for p, i in pieces])
    T = xp.concatenate([found[p].T[i].reshape(-1) for p, i in pieces])
    return Interpolation(ranks, order, Blocks.shaped(T, ranks, sizes - ranks), residual, saturated)


class CupyBackend(ArrayBackend):
    """CuPy arrays on device (local rank mod devices). Raises ImportError where CuPy, its driver or a device is missing.

    Kernels are compiled on first use and kept by CuPy. No sum depends on the order in which the device runs its blocks.
    """

    def __init__(self):
        import cupy

        try:
            devices = cupy.cuda.runtime.getDeviceCount()
        except Exception as error:  # without a driver CuPy raises errors of its own
            raise ImportError(f"no CUDA device: {error}") from error
        if devices == 0:
            raise ImportError("no CUDA device")
        local_rank = next((int(os.environ[name]) for name in LOCAL_RANK if name in os.environ), 0)
        cupy.cuda.Device(local_rank % devices).use()
        super().__init__("cupy", cupy)
        self._modules, self._kept = {}, cuda_plan.Kept()

    def to_host(self, a):
        return self.xp.asnumpy(a)

    def exchanged(self, comm, exchange, *rows):
        """As of `ArrayBackend`, on the device where MPI takes its arrays."""
        return exchange(*rows, self.xp) if cuda_aware(comm) else super().exchanged(comm, exchange, *rows)

    def synchronize(self):
        self.xp.cuda.get_current_stream().synchronize()

    def _launch(self, file, name, grid, *arguments):
        """Run a kernel of cuda/`file`.cu; ints and floats become 64-bit scalars, None a null pointer. Nothing happens for an empty grid."""
        if 0 in grid:
            return
        if file not in self._modules:
            self._modules[file] = self.xp.RawModule(code=source(file), options=OPTIONS)
        scalars = {int: np.int64, bool: np.int64, float: np.float64, type(NULL): lambda _: np.uint64(0)}
        arguments = tuple(scalars[type(each)](each) if type(each) in scalars else each for each in arguments)
        self._modules[file].get_function(name)(grid, (THREADS,), arguments)

    def _tables(self, *arrays):
        """int64 host arrays on the device, by one copy: (bytes, [flat arrays])."""
        starts = starts_of(np.array([array.size for array in arrays]))
        whole = self.xp.asarray(np.concatenate([_index(array).reshape(-1) for array in arrays]))
        return whole.nbytes, [whole[int(a) : int(b)] for a, b in zip(starts[:-1], starts[1:])]

    def scale_samples(self, U, s, out=None):
        out = U if out is None else out
        if not self._by_samples(U, s, out):
            return super().scale_samples(U, s, out)
        (d, k, m), strides = U.shape, [[each // a.dtype.itemsize for each in a.strides] for a in (U, s, out)]
        grid = (d, min(-(-k * m // THREADS), MOST))
        self._launch("sweep", f"scale_samples_{U.dtype}", grid, U, *strides[0][:2], s, strides[1][0], out, *strides[2][:2], k, m)

    def softmax_hessian(self, U, p):
        if not self._by_samples(U, p):
            return super().softmax_hessian(U, p)
        (d, k, m), size = U.shape, U.dtype.itemsize
        u0, u1 = (each // size for each in U.strides[:2])
        self._launch("sweep", f"softmax_hessian_{U.dtype}", (min(-(-k * m // THREADS), MOST) if d else 0,), U, u0, u1, p, p.strides[0] // size, d, k, m)

    @staticmethod
    def _by_samples(*arrays):
        """Whether the samples are contiguous, and all types the same."""
        return all(each.shape[-1] <= 1 or each.strides[-1] == each.dtype.itemsize for each in arrays) and len({each.dtype for each in arrays}) == 1

    def multiply(self, A, X, x_starts, Y, y_starts, transpose=False, alpha=1.0):
        self.multiply_mapped(A, X, x_starts, None, Y, y_starts, None, transpose, alpha)

    def multiply_mapped(self, A, X, x_starts, x_rows, Y, y_starts, y_rows, transpose=False, alpha=1.0):
        """`multiply` where row p of X is X[x_rows[p]] and row p of Y is Y[y_rows[p]]; device int64 arrays, or None for rows as they lie.

        y_rows names no row twice.
        """
        k, X = X.shape[1], self.xp.ascontiguousarray(X)
        x_starts, y_starts = _index(x_starts)[: len(A)], _index(y_starts)[: len(A)]
        if Y.shape[1] != k or not Y.flags.c_contiguous or X.dtype != Y.dtype:
            raise ValueError("multiply: X and Y differ in columns or type, or Y is not contiguous")
        if k == 0 or len(A) == 0:
            return
        shapes = (A.rows, A.cols, A.offsets[: len(A)])
        outputs, inputs = (A.cols, A.rows) if transpose else (A.rows, A.cols)
        limits = (A.data.size, len(X if x_rows is None else x_rows), len(Y if y_rows is None else y_rows))
        batched = k > NARROW and A.dtype == X.dtype and x_rows is None and y_rows is None

        def make():
            cuda_plan.check_inside("A", A.rows * A.cols, A.offsets[: len(A)], limits[0])
            used = outputs * inputs > 0
            cuda_plan.check_inside("X", inputs * used, x_starts, limits[1])
            cuda_plan.check_inside("Y", outputs * used, y_starts, limits[2])
            runs = cuda_plan.runs(*shapes) if batched and cuda_plan.disjoint(outputs, y_starts) else []
            left = outputs.copy()
            for first, last in runs:
                left[first:last] = 0
            size, tables = self._tables(*shapes, x_starts, y_starts, *cuda_plan.products(left, inputs, y_starts))
            return size, (runs, tables)

        key = (*shapes, x_starts, y_starts, *limits, bool(transpose), batched)
        runs, tables = self._kept.get(key, make)
        for first, last in runs:
            self._multiply_equal(A, first, last, X, x_starts[first:last], Y, y_starts[first:last], transpose, alpha)
        n_tasks, kind = len(tables[-1]) // 4, "narrow" if k <= NARROW else "tile"
        grid = (n_tasks, 1 if k <= NARROW else -(-k // cuda_plan.TILE))
        maps = (x_rows, y_rows)
        self._launch("multiply", f"multiply_{kind}_{A.dtype}_{X.dtype}", grid, A.data, *tables, *maps, X, Y, k, bool(transpose), float(alpha))

    def _multiply_equal(self, A, first, last, X, x_starts, Y, y_starts, transpose, alpha):
        """The blocks first … last − 1, of one shape and stored one after another, by the library's batched product; their rows of Y are disjoint."""
        b, rows, cols, at = last - first, int(A.rows[first]), int(A.cols[first]), int(A.offsets[first])
        stack = A.data[at : at + b * rows * cols].reshape(b, rows, cols)
        stack, m, n, k = (stack.transpose(0, 2, 1), cols, rows, X.shape[1]) if transpose else (stack, rows, cols, X.shape[1])
        x, y = self._rows(X, x_starts, n), self._rows(Y, y_starts, m)
        product = self.xp.matmul(stack, X[x].reshape(b, n, k))
        Y[y] += alpha * product.reshape(b * m, k)

    def _rows(self, X, starts, size):
        """Index of the rows starts[i] … starts[i] + size − 1, all i: a slice where they follow one another."""
        if (np.diff(starts) == size).all():
            return slice(int(starts[0]), int(starts[-1]) + size)
        return self.asarray(ranges(starts, np.full(len(starts), size)))

    def multiply_symmetric(self, B, X, row_at, col_at, Y, alpha=1.0):
        """Y[row_at[i] :] += alpha B_i X[col_at[i] :], and Y[col_at[i] :] += alpha B_iᵀ X[row_at[i] :] where row_at[i] ≠ col_at[i], in place.

        Up to 4 columns every block is read once, into a workspace of the size of 64 rows of blocks; with more the two products are one
        after another, as each is bound by its operations.
        """
        k, row_at, col_at = X.shape[1], _index(row_at)[: len(B)], _index(col_at)[: len(B)]
        if k > FEW:
            off = np.flatnonzero(row_at != col_at)
            self.multiply(B, X, col_at, Y, row_at, alpha=alpha)
            self.multiply(B.part(off), X, row_at[off], Y, col_at[off], transpose=True, alpha=alpha)
            return
        X, offsets = self.xp.ascontiguousarray(X), B.offsets[: len(B)]
        if k == 0 or len(B) == 0:
            return
        if Y.shape[1] != k or not Y.flags.c_contiguous or X.dtype != Y.dtype:
            raise ValueError("multiply_symmetric: X and Y differ in columns or type, or Y is not contiguous")
        limits = (B.data.size, len(X), len(Y))

        def make():
            cuda_plan.check_inside("B", B.rows * B.cols, offsets, limits[0])
            for starts, sizes, against in ((row_at, B.rows, B.cols), (col_at, B.cols, B.rows)):
                cuda_plan.check_inside("X or Y", sizes * (against > 0), starts, min(limits[1:]))
            tasks, rows, starts, sources, extent = cuda_plan.symmetric(B.rows, B.cols, row_at, col_at)
            size, tables = self._tables(B.cols, offsets, row_at, col_at, tasks, rows, starts, sources)
            return size, (tables, extent)

        (*shapes, tasks, rows, starts, sources), extent = self._kept.get(("symmetric", B.rows, B.cols, offsets, row_at, col_at, *limits), make)
        work = self.xp.empty((extent, k), X.dtype)
        self._launch("symmetric", f"symmetric_parts_{B.dtype}_{X.dtype}", (len(tasks) // 5,), B.data, *shapes, tasks, X, work, k)
        grid = (-(-len(rows) * k // THREADS),)
        self._launch("symmetric", f"add_rows_{X.dtype}", grid, work, rows, starts, sources, len(rows), Y, k, float(alpha))

    def compress_rows(self, T, skeleton_rows, redundant_rows, rows):
        result = rows[skeleton_rows]
        self.multiply_mapped(T, rows, starts_of(T.cols), redundant_rows, result, starts_of(T.rows), None)
        return result

    def expand_rows(self, T, skeleton_rows, redundant_rows, rows, into=None):
        result = self.xp.zeros((len(skeleton_rows) + len(redundant_rows), rows.shape[1]), rows.dtype) if into is None else into
        result[skeleton_rows] += rows
        self.multiply_mapped(T, rows, starts_of(T.rows), None, result, starts_of(T.cols), redundant_rows, transpose=True)
        return result

    def place(self, target, source, blocks, row0, col0, transpose=False):
        blocks = _index(blocks)
        used = np.flatnonzero(source.rows * source.cols)
        rows, cols, lda = source.rows[used], source.cols[used], target.cols[blocks[used]]
        high, wide = (cols, rows) if transpose else (rows, cols)
        row0, col0 = _index(row0)[used], _index(col0)[used]
        cuda_plan.check_inside("its target's rows", high, row0, target.rows[blocks[used]])
        cuda_plan.check_inside("its target's columns", wide, col0, lda)
        at = target.offsets[blocks[used]] + row0 * lda + col0
        _, tables = self._tables(rows, cols, source.offsets[used], at, lda)
        chunks = int(min(65535, -(-(rows * cols).max(initial=0) // (16 * THREADS))))
        name = f"place_{source.dtype}_{target.dtype}"
        self._launch("place", name, (len(used), chunks), source.data, *tables, target.data, bool(transpose))

    def interpolate(self, R, starts, tolerance, max_rank=None, samples=None):
        """Greedy pivots of small pieces by one CUDA block each, the pivots of sketches of large ones by products, one piece after another."""
        starts, k = _index(starts), R.shape[1]
        sizes = np.diff(starts)
        tolerance = np.ascontiguousarray(np.broadcast_to(np.asarray(tolerance, float), sizes.shape))
        samples = np.ascontiguousarray(np.full(sizes.shape, k) if samples is None else samples, float)
        limits = np.minimum(np.minimum(sizes, k if max_rank is None else min(k, int(max_rank))), samples).astype(np.int64)
        large = np.flatnonzero((np.minimum(sizes, k) > DIRECT) & (limits > PANEL // 2))
        if not len(large):
            return self._greedy(R, starts, tolerance, limits, samples)
        parts, found = np.zeros(len(sizes), np.int64), []
        parts[large] = 1
        for part, which in enumerate((np.flatnonzero(parts == 0), large)):
            rows, at = R[self.asarray(ranges(starts[which], sizes[which]))], starts_of(sizes[which])
            if part:
                found.append(super().interpolate(rows, at, tolerance[which], max_rank, samples[which]))
            else:
                found.append(self._greedy(rows, at, tolerance[which], limits[which], samples[which]))
        return _merged(self.xp, parts, sizes, found)

    def _greedy(self, R, starts, tolerance, limits, samples):
        """The interpolation of all pieces by greedy pivots."""
        xp, k, sizes = self.xp, R.shape[1], np.diff(starts)
        factors, at = xp.array(R, order="C"), xp.asarray(starts)
        order, squares = xp.zeros(len(R), np.int64), xp.empty(len(R))
        ranks, residual = xp.zeros(len(sizes), np.int64), xp.zeros(len(sizes))
        given = (xp.asarray(tolerance), xp.asarray(limits), xp.asarray(samples))
        self._launch("interpolate", f"pivoted_qr_{R.dtype}", (len(sizes),), factors, at, k, *given, order, squares, ranks, residual)
        order, found, residual = (self.to_host(each) for each in (order, ranks, residual))
        if np.isnan(residual).any():
            raise FloatingPointError("interpolate: the sample holds NaN or Inf")
        position = np.arange(len(order)) - np.repeat(starts[:-1], sizes)
        piece, pivot = np.repeat(np.arange(len(sizes)), sizes), position < np.repeat(found, sizes)
        order = order[np.lexsort((np.where(pivot, position, order), ~pivot, piece))]  # the redundant rows back in their own order
        T = Blocks.shaped(lambda size: xp.empty(size, R.dtype), found, sizes - found)
        offsets = xp.asarray(T.offsets)
        self._launch("interpolate", f"interpolation_{R.dtype}", (len(sizes),), factors, at, k, xp.asarray(order), ranks, offsets, T.data)
        return Interpolation(found, order, T, residual, residual > tolerance)

    def eliminate(self, A, order, T, delay=True):
        xp, order, s, r = self.xp, _index(order), _index(T.rows), _index(T.cols)
        c, starts = s + r, starts_of(s + r)
        W, K, schur = (Blocks.shaped(xp.zeros, *shape) for shape in ((r, r), (s, r), (s, s)))
        log_abs = np.full(len(A), np.nan)
        small = np.flatnonzero(c < LARGE)
        if len(small):
            data, found = xp.ascontiguousarray(A.data, dtype=np.float64), xp.empty(len(small))
            parts = (s, r, starts[:-1], A.offsets[: len(A)], T.offsets[: len(A)], W.offsets[:-1], schur.offsets[:-1])
            _, tables = self._tables(*(part[small] for part in parts))
            arrays = (W.data, K.data, schur.data, found, float(GROWTH if delay else np.inf))
            name = f"eliminate_definite_{T.dtype}"
            self._launch("eliminate", name, (len(small),), data, xp.asarray(order), T.data, *tables, xp.empty_like(data), *arrays)
            log_abs[small] = self.to_host(found)
        refused = np.flatnonzero(np.isnan(log_abs))
        if not len(refused):
            V = Blocks.shaped(xp.zeros, r, 0 * r)
            return Elimination(self, order, T, W, K, V, xp.ones(int(r.sum())), log_abs, np.zeros(len(A), np.int64), schur)
        parts = [(W[i], K[i], xp.zeros((int(r[i]), 0)), schur[i], xp.ones(int(r[i])), log_abs[i], 0) for i in range(len(A))]
        for i in refused:
            rows = xp.asarray(order[starts[i] : starts[i + 1]])
            D = A[i].astype(np.float64, copy=False)[rows][:, rows]
            parts[i] = eliminate_block(xp, D, T[i].astype(np.float64, copy=False), delay)
        return assemble(self, order, T, parts)

    def smallest(self, W, inspected=None):
        if not len(W):
            return np.inf
        largest = self.xp.zeros(len(W))
        _, tables = self._tables(W.rows, W.cols, W.offsets[: len(W)])
        self._launch("eliminate", "column_squares", (len(W),), W.data, *tables, largest)
        largest = float(self.xp.max(largest))
        return 1 / largest if largest else np.inf

    def gram_entries(self, factors, I, J, scale, H):
        f, kind = factors, factors.X.dtype
        addresses = np.array([0 if C is None else C.data.ptr for C in f.C], np.int64)
        rank = next((C.shape[1] for C in f.C if C is not None), 0 if f.M is None else f.M.shape[1])
        tasks = cuda_plan.entry_tiles(_index(I.starts), _index(J.starts), H.offsets)
        place = np.zeros(0, np.int64) if f.place is None else f.place
        sides = [each for side in (I, J) for each in (side.neuron, side.row, side.place)]
        _, (place, layer_starts, addresses, *sides, tasks) = self._tables(place, f.layer_starts, addresses, *sides, tasks)
        numbers = (f.n, rank, len(f.C), 0 if f.stored is None else f.stored.shape[0], int(f.separable))
        arrays = (f.X, f.slopes, f.stored, f.M, f.gram, f.output, f.rest, f.roots)
        arrays += (place, layer_starts, addresses, *numbers, *sides, tasks)
        self._launch("entries", f"gram_entries_{H.dtype}_{kind}", (len(tasks) // 6,), *arrays, float(scale), H.data)
