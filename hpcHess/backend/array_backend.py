"""Batched kernels in terms of an array namespace; NumPy and CuPy run this same code."""

import numpy as np

from hpcHess.backend.correction import correct
from hpcHess.backend.elimination import backward, eliminate, forward, smallest_of
from hpcHess.backend.entries import gram_entries
from hpcHess.backend.interpolate import interpolate
from hpcHess.backend.isolate import isolate
from hpcHess.backend.orthogonal import couple, eliminate_orthogonally
from hpcHess.parallel.ownership import starts_of

_TEMPORARY = 1 << 22  # numbers of a product that is added


class ArrayBackend:
    """The kernels of a level on arrays of the namespace `xp`.

    Index and offset arguments are int64 host arrays; matrices and multivectors are arrays of `xp`, float32 or float64.
    The loops over blocks in this class (and in the modules it calls) are the only ones of the program.
    """

    def __init__(self, name, xp):
        self.name = name
        self.xp = xp

    def __repr__(self):
        return f"<backend {self.name}>"

    def asarray(self, a, dtype=None):
        """`a` (host or device) as an array of this backend."""
        return self.xp.asarray(a, dtype=dtype)

    def to_host(self, a):
        """`a` as a NumPy array."""
        return np.asarray(a)

    def exchanged(self, comm, exchange, *rows):
        """exchange(*rows, namespace), a collective of `parallel.exchange` that returns rows, for arrays of this backend: by way of the host."""
        return self.asarray(exchange(*(self.to_host(each) for each in rows), np))

    def synchronize(self):
        """Wait until the device has finished (nothing on a host)."""

    def add_product(self, A, B, C):
        """C [m, n] += A [m, k] B [k, n], in place; A and B with contiguous rows or columns, C with contiguous rows."""
        step = max(1, _TEMPORARY // max(1, C.shape[1]))
        for lo in range(0, len(C), step):
            C[lo : lo + step] += self.xp.matmul(A[lo : lo + step], B)

    def swap_axes(self, source, out, scale=1.0):
        """out [n, b, a] ← scale · source [n, a, b] with the last two axes exchanged; strides of any kind."""
        self.xp.multiply(source.transpose(0, 2, 1), source.dtype.type(scale), out=out)

    def scale_samples(self, U, s, out=None):
        """out [d, k, m] ← U ∘ s for U [d, k, m], s [d, m], contiguous in the last axis; out: U itself by default."""
        self.xp.multiply(U, s[:, None], out=U if out is None else out)

    def softmax_hessian(self, U, p):
        """U [d, k, m] ← (diag(p_i) − p_i p_iᵀ) u_i in place, p [d, m]: p ∘ (U − Σ p U) once U's row of the likeliest class is taken off all rows,
        so that nothing cancels (`networks.losses.CrossEntropy`)."""
        xp = self.xp
        U -= xp.take_along_axis(U, xp.argmax(p, axis=0)[None, None], axis=0)
        U -= xp.sum(U * p[:, None], axis=0, keepdims=True)
        U *= p[:, None]

    def empty(self, shape, dtype):
        """An array for a large result."""
        return self.xp.empty(shape, dtype)

    def zeros(self, shape, dtype):
        """The same of zeros."""
        return self.xp.zeros(shape, dtype)

    def take_rows(self, rows, index):
        """rows[index] of host arrays, index int64 [n]."""
        return np.take(rows, index, axis=0)

    def multiply(self, A, X, x_starts, Y, y_starts, transpose=False, alpha=1.0):
        """Y[y_starts[i] : …] += alpha op(A_i) X[x_starts[i] : …] for every block i, in place, in the type of X.

        X [n, k] and Y [n', k] are C-contiguous and of one type, A: Blocks of any float type; op is the transpose when
        `transpose`. Blocks may share rows of Y: contributions are added in block order.
        """
        for i in range(len(A)):
            block = A[i].T if transpose else A[i]
            rows, cols = block.shape
            if rows and cols:
                x, y = int(x_starts[i]), int(y_starts[i])
                Y[y : y + rows] += alpha * (block.astype(X.dtype, copy=False) @ X[x : x + cols])

    def multiply_symmetric(self, B, X, row_at, col_at, Y, alpha=1.0):
        """Y[row_at[i] : …] += alpha B_i X[col_at[i] : …] and, where row_at[i] ≠ col_at[i], Y[col_at[i] : …] += alpha B_iᵀ X[row_at[i] : …].

        In place, arrays as of `multiply`; where both are equal B_i is square and counts once.
        """
        row_at, col_at = np.asarray(row_at), np.asarray(col_at)
        off = np.flatnonzero(row_at != col_at)
        self.multiply(B, X, col_at, Y, row_at, alpha=alpha)
        self.multiply(B if len(off) == len(B) else B.part(off), X, row_at[off], Y, col_at[off], transpose=True, alpha=alpha)

    def multiply_at(self, D, rows, X, Y):
        """Y[rows of i] = D_i X[rows of i] for square blocks, `rows` int64 [Σ d] of the backend one block after another, none of them twice; in place."""
        starts, x = starts_of(D.rows)[:-1], X[rows]
        y = self.xp.zeros_like(x)
        self.multiply_symmetric(D, x, starts, starts, y)
        Y[rows] = y

    def compress_rows(self, T, skeleton_rows, redundant_rows, rows):
        """P = [I T] of every node on stacked columns: [Σ c, k] → [Σ s, k], w̃_i = w_J + T_i w_R, in the type of `rows`.

        T: Blocks [s_i × r_i]; `skeleton_rows` [Σ s], `redundant_rows` [Σ r]: where J and R of all nodes lie, int64 arrays of the backend.
        """
        result = rows[skeleton_rows]
        self.multiply(T, rows[redundant_rows], starts_of(T.cols)[:-1], result, starts_of(T.rows)[:-1])
        return result

    def expand_rows(self, T, skeleton_rows, redundant_rows, rows, into=None):
        """Pᵀ of every node on stacked skeleton rows: [Σ s, k] → [Σ c, k], u_J = ũ_i, u_R = T_iᵀ ũ_i; added to `into` where it is given."""
        xp, k = self.xp, rows.shape[1]
        redundant = xp.zeros((len(redundant_rows), k), rows.dtype)
        self.multiply(T, rows, starts_of(T.rows)[:-1], redundant, starts_of(T.cols)[:-1], transpose=True)
        result = xp.zeros((len(rows) + len(redundant), k), rows.dtype) if into is None else into
        result[skeleton_rows] += rows
        result[redundant_rows] += redundant
        return result

    def place(self, target, source, blocks, row0, col0, transpose=False):
        """target[blocks[i]][row0[i] :, col0[i] :] = source_i, or its transpose, in place."""
        for i in range(len(source)):
            block = source[i].T if transpose else source[i]
            row, col = int(row0[i]), int(col0[i])
            target[int(blocks[i])][row : row + block.shape[0], col : col + block.shape[1]] = block

    def gram_entries(self, factors, I, J, scale, H):
        """Entries of a batch of blocks of a Gram-type matrix, set in H: see `backend.entries`."""
        gram_entries(self.xp, factors, I, J, scale, H)

    def interpolate(self, R, starts, tolerance, max_rank=None, samples=None):
        """Row interpolative decomposition of every piece R[starts[i] : starts[i + 1]]: see `backend.interpolate`."""
        return interpolate(self.xp, R, starts, tolerance, max_rank, samples, self.to_host)

    def isolate(self, omega, Y, starts):
        """Samples of every piece's far field from products alone: see `backend.isolate`."""
        return isolate(self.xp, omega, Y, starts)

    def eliminate(self, A, order, T, delay=True):
        """Interpolative elimination of every symmetric block of A: see `backend.elimination`."""
        return eliminate(self, A, order, T, delay)

    def eliminate_assembled(self, A, order, T, delay=True):
        """The same of blocks given by their parts: `backend.assembly.Assembly`."""
        return self.eliminate(A.whole(self), order, T, delay)

    def forward(self, elimination, B, starts, rows=None):
        """The forward sweep of a solve through one level: see `backend.elimination.Elimination.forward`."""
        return forward(elimination, B, starts, rows)

    def backward(self, elimination, x_kept, state, rows=None, into=None):
        """The backward sweep: see `backend.elimination.Elimination.backward`."""
        return backward(elimination, x_kept, state, rows, into)

    def smallest(self, W, inspected=None):
        """min 1 / ‖W_i e_j‖² over all columns of all blocks, inf for none; `inspected`: see `backend.elimination.Elimination`."""
        return smallest_of(self.xp, W)

    def eliminate_orthogonally(self, A, order, T, children=None, delay=True):
        """The same after rotating every block by the QR of its basis: see `backend.orthogonal`."""
        return eliminate_orthogonally(self, A, order, T, children, delay)

    def couple(self, basis, coupling):
        """The coupling blocks B_i in rotated bases, Ũ_2i B_i Ũ_2i+1ᵀ: see `backend.orthogonal`."""
        return couple(self.xp, basis, coupling)

    def correct(self, A, order, T):
        """The plain Woodbury formula on every symmetric block of A: see `backend.correction`."""
        return correct(self, A, order, T)
