"""A symmetric dense matrix, in a file or in memory, as an operator."""

import os
import zlib

import numpy as np
from mpi4py import MPI

from hpcHess.backend.blocks import Blocks
from hpcHess.curvature.dense_check import check_symmetric
from hpcHess.parallel.agree import agree, together
from hpcHess.parallel.exchange import ranges
from hpcHess.parallel.operator import RowOperator, checked_dtype
from hpcHess.parallel.ownership import starts_of
from hpcHess.runtime.errors import InputError
from hpcHess.storage.dense import open_dense

_ROWS = 512  # of the matrix in one step of a product …
_CONVERTED = 1 << 23  # … and numbers, where they are converted first
_GATHER = 1 << 20  # numbers gathered at a time by `entries_batch`


class DenseMatrix(RowOperator):
    """H = K for a symmetric K [N, N], of which the lower triangle counts: H_ij = K_max(i,j),min(i,j).

    matrix   file name (`storage.dense.open_dense`: K.npy, K.h5:/K, else raw float32), mapped and never copied as a whole; or an array
             that every rank gives whole
    n        N; needed for raw files
    dtype    of products and entries, float32 or float64; default that of the matrix

    The ranks share the rows of a product, in blocks that are converted one by one where the dtypes differ. Dead parameters are rows that
    are exactly zero. The whole matrix is read and checked once (`dense_check.check_symmetric`); `digest` is the sha256 of what was
    read, `path` the file's absolute name or None. Making it is collective; raises InputError for a matrix that is not square, real,
    finite and symmetric, or whose numbers are too large for `dtype`.
    """

    def __init__(self, matrix, n=None, comm=MPI.COMM_WORLD, dtype=None):
        self.comm = comm
        if isinstance(matrix, (str, os.PathLike)):
            self.label, self.path = os.fspath(matrix), os.path.abspath(matrix)
            self._matrix = open_dense(matrix, n, comm)
        else:
            self.label, self.path = "the matrix", None
            self._matrix = _whole_array(matrix, n, comm)
        with together(comm):
            self.dtype = checked_dtype(self._matrix.dtype.newbyteorder("=") if dtype is None else dtype)
        self.n_params = len(self._matrix)
        checked = check_symmetric(self._matrix, comm, self.label)
        if checked.largest > np.finfo(self.dtype).max:
            raise InputError(f"{self.label} holds numbers as large as {checked.largest:.3g}, more than {self.dtype} can: use float64")
        self.alive, self.digest, self._exact = checked.alive, checked.digest, checked.exact

    def __repr__(self):
        return f"DenseMatrix({self.label}, N = {self.n_params}, {self.dtype})"

    def own_rows(self, V):
        """This rank's rows of HV for V [N, k] whole, [n_local, k]. Not collective."""
        mine = self.mine
        result = np.empty((mine.stop - mine.start, V.shape[1]), self.dtype)
        step = max(1, min(_ROWS, _CONVERTED // self.n_params)) if self._matrix.dtype != self.dtype else _ROWS
        for first in range(mine.start, mine.stop, step):
            rows = slice(first, min(mine.stop, first + step))
            into = result[first - mine.start : rows.stop - mine.start]
            if self._exact:
                np.matmul(self._tile(rows, slice(None)), V, out=into)
                continue
            square, below = self._tile(rows, rows), slice(rows.stop, None)
            np.matmul(np.tril(square) + np.tril(square, -1).T, V[rows], out=into)
            into += self._tile(rows, slice(0, first)) @ V[:first]
            into += self._tile(below, rows).T @ V[below]
        return result

    def diagonal(self):
        """H_jj, [N], whole on every rank. Not collective."""
        return np.diagonal(self._matrix).astype(self.dtype)

    def entries(self, I, J):
        """H[I, J], [|I|, |J|], for int64 parameter indices. Not collective."""
        return self.entries_batch(I, np.array([0, len(I)]), J, np.array([0, len(J)]))[0]

    def entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of H[I_b, J_b] for flat index arrays cut at the starts, gathered in few steps. Not collective."""
        heights, widths = np.diff(starts_I), np.diff(starts_J)
        result = Blocks.shaped(lambda size: np.empty(size, self.dtype), heights, widths)
        rows = np.asarray(I, np.int64)[starts_I[0] : starts_I[-1]]  # every row of every block, one after another
        J = np.asarray(J, np.int64)
        counts, first = np.repeat(widths, heights).astype(np.int64), np.repeat(np.asarray(starts_J)[:-1], heights)
        ends, flat = starts_of(counts), self._matrix.reshape(-1)
        a = 0
        while a < len(rows):
            b = max(a + 1, int(np.searchsorted(ends, ends[a] + _GATHER, side="right")) - 1)
            i, j = np.repeat(rows[a:b], counts[a:b]), J[ranges(first[a:b], counts[a:b])]
            if not self._exact:
                i, j = np.maximum(i, j), np.minimum(i, j)
            i *= self.n_params
            i += j
            result.data[ends[a] : ends[b]] = flat.take(i)
            a = b
        return result

    def _tile(self, rows, columns):
        """H[rows, columns] for slices, in the operator's dtype."""
        return self._matrix[rows, columns].astype(self.dtype, copy=False)

    def close(self):
        """Let go of the map; the operator cannot be used any more. Not collective."""
        self._matrix = None


def _whole_array(matrix, n, comm):
    """`matrix` as float32 or float64 [N, N], row-major (an array that is symmetric may as well be its transpose). Collective."""
    error = None
    try:
        array = np.asarray(matrix)
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            raise InputError(f"a matrix must hold real numbers, float32 or float64, not {array.dtype}")
        if array.ndim != 2 or array.shape[0] != array.shape[1] or not len(array):
            raise InputError(f"a matrix must be square, not of shape {list(array.shape)}")
        if n is not None and n != len(array):
            raise InputError(f"the matrix is {len(array)} × {len(array)}, which contradicts n = {n}")
        if array.dtype.kind != "f" or array.dtype.itemsize < 4:
            array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
        array = array.T if array.flags.f_contiguous else np.ascontiguousarray(array)
        summary = array.shape, array.dtype.str, zlib.crc32(np.diagonal(array).tobytes())
    except Exception as caught:  # of any kind: the other ranks must hear of it
        error = caught
    agree(comm, error)
    if len(set(comm.allgather(summary))) > 1:
        raise InputError("the ranks give different matrices: every rank gives the same one, whole, or all of them a file")
    return array
