"""One pass over a dense matrix: is it finite and symmetric, which rows are zero, and a digest of its numbers; the ranks share the tiles."""

import hashlib
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from hpcHess.parallel.agree import agree
from hpcHess.runtime.errors import InputError

TILE = 256
SYMMETRY = {4: 1e-5, 8: 1e-12}  # |K_ij − K_ji| / max |K| that rounding may cause, by the bytes of a number


@dataclass(frozen=True)
class Checked:
    """alive: rows that are not zero, int64 sorted; digest: sha256 (hex); largest: max |K_ij|; exact: whether K = Kᵀ to the last bit.

    The digest is over the tiles [TILE, TILE] on and below the diagonal in row-major order, little-endian in the precision of
    the matrix: the same for any number of ranks, and for a file and an array of the same numbers.
    """

    alive: np.ndarray
    digest: str
    largest: float
    exact: bool


def check_symmetric(matrix, comm, label):
    """`Checked` of `matrix` [N, N], whole (or mapped) on every rank. Collective.

    InputError, naming `label`: NaN or Inf, or a difference |K_ij − K_ji| above `SYMMETRY` · max |K|, and where the largest is.
    """
    n_tiles = -(-len(matrix) // TILE)
    n_pairs = n_tiles * (n_tiles + 1) // 2
    pass_ = _Pass(matrix)
    digests = np.zeros((n_pairs, 32), np.uint8)
    for at in range(n_pairs * comm.rank // comm.size, n_pairs * (comm.rank + 1) // comm.size):
        i = int((np.sqrt(8.0 * at + 1) - 1) / 2)
        i += (i + 1) * (i + 2) // 2 <= at  # whatever the root was rounded to
        i -= i * (i + 1) // 2 > at
        digests[at] = pass_.look(i * TILE, (at - i * (i + 1) // 2) * TILE)
        if pass_.wrong is not None:
            break
    found = comm.allgather((pass_.wrong, pass_.largest, pass_.difference, pass_.where))
    _refuse(comm, found, SYMMETRY[matrix.dtype.itemsize], label)
    comm.Allreduce(MPI.IN_PLACE, digests)
    comm.Allreduce(MPI.IN_PLACE, pass_.live, MPI.MAX)
    header = f"{len(matrix)} {TILE} {matrix.dtype.itemsize}".encode()
    return Checked(
        alive=np.flatnonzero(pass_.live).astype(np.int64),
        digest=hashlib.sha256(header + digests.tobytes()).hexdigest(),
        largest=max(each[1] for each in found),
        exact=all(each[2] == 0 for each in found),
    )


def _refuse(comm, found, tolerance, label):
    """InputError where some rank found something wrong. Collective."""
    wrong = min((each[0] for each in found if each[0] is not None), default=None)
    largest, difference, (i, j) = max(each[1] for each in found), *max((each[2], each[3]) for each in found)
    error = None
    if wrong is not None:
        error = InputError(f"{label} is not finite: {wrong[2]} at [{wrong[0]}, {wrong[1]}], counted from 0")
    elif difference > tolerance * largest:
        error = InputError(
            f"{label} is not symmetric: [{i}, {j}] and [{j}, {i}] (counted from 0) differ by {difference:.3g}, the most of all, where the "
            f"largest number is {largest:.3g}; if it is meant to be symmetric, give (K + Kᵀ)/2"
        )
    agree(comm, error)


class _Pass:
    """What one rank has found so far: wrong (i, j, value) of what is not finite, largest |K|, largest difference and where, live rows."""

    def __init__(self, matrix):
        self.matrix, self.wrong, self.largest, self.difference, self.where = matrix, None, 0.0, 0.0, (0, 0)
        self.live = np.zeros(len(matrix), np.uint8)
        dtype = matrix.dtype.newbyteorder("<")
        # columns padded: a stride of a power of 2 would crowd the transposed reading into a few sets of the cache
        self._buffers = np.empty((TILE, TILE), dtype), np.empty((TILE, TILE + 16), dtype), np.empty((TILE, TILE), dtype)

    def look(self, first, second):
        """The tile whose upper left corner is (first, second), second ≤ first, beside its mirror image; the sha256 of its numbers."""
        rows, columns = (slice(at, min(len(self.matrix), at + TILE)) for at in (first, second))
        m, n = rows.stop - first, columns.stop - second
        A, D = (buffer.reshape(-1)[: m * n].reshape(m, n) for buffer in self._buffers[::2])
        B = self._buffers[1][:n, :m]
        np.copyto(A, self.matrix[rows, columns])
        np.copyto(B, self.matrix[columns, rows])
        digest = hashlib.sha256(A).digest()
        with np.errstate(invalid="ignore", over="ignore"):
            np.abs(np.subtract(A, B.T, out=D), out=D)
        difference = float(D.max())
        np.abs(A, out=A)
        by_row, by_column = A.max(axis=1), A.max(axis=0)
        largest = float(by_row.max())
        if not (np.isfinite(largest) and np.isfinite(difference)):
            self._locate(rows, columns)
        if difference > self.difference:
            i, j = np.unravel_index(np.argmax(D), D.shape)
            j, i = sorted((first + int(i), second + int(j)))
            self.difference, self.where = difference, (i, j)
        self.largest = max(self.largest, largest)
        np.maximum(self.live[rows], by_row > 0, out=self.live[rows])
        np.maximum(self.live[columns], by_column > 0, out=self.live[columns])
        return np.frombuffer(digest, np.uint8)

    def _locate(self, rows, columns):
        """The first number of a tile or its mirror image that is not finite; none where only their difference overflows."""
        for a, b in ((rows, columns), (columns, rows)):
            tile = self.matrix[a, b]
            bad = np.argwhere(~np.isfinite(tile))
            if len(bad):
                i, j = bad[0]
                self.wrong = (a.start + int(i), b.start + int(j), float(tile[i, j]))
                return
