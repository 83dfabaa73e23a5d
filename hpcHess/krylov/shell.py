"""Symmetric operators as PETSc shell matrices."""

import numpy as np

from hpcHess.krylov.library import petsc
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError


def petsc_mat(A, shift=0.0, columns=1):
    """PETSc Mat of type python for I_k ⊗ (A + shift·I), k = `columns`. Collective over A.comm.

    A is symmetric, anything with `comm`, `shape` (N, N) and `matmat_rows(V [n_local, k]) -> [n_local, k]` on parameter rows;
    MatGetDiagonal works where A has `diagonal() -> [N]`. It may compute in any precision, PETSc's vectors are float64.

    A Vec has n_local·k numbers on a rank, a row-major [n_local, k] block: one product of the Mat is one product of A with k
    vectors. The spectrum is A's, so are the bounds of Krylov methods.
    """
    PETSc = petsc(A.comm)
    n_local = local_rows(A)
    check_index_range(PETSc, A.shape[0] * columns)
    size = (n_local * columns, A.shape[0] * columns)
    mat = PETSc.Mat().createPython((size, size), _ShiftedOperator(A, shift, columns), comm=A.comm)
    mat.setOption(PETSc.Mat.Option.SYMMETRIC, True)
    mat.setUp()
    return mat


def local_rows(A):
    """Number of parameter rows of A on this rank."""
    return int(np.diff(row_starts(A.shape[0], A.comm.size))[A.comm.rank])


def check_index_range(PETSc, size):
    """InputError where `size` numbers are more than PETSc's integers count."""
    if size > np.iinfo(PETSc.IntType).max:
        raise InputError(f"a vector of {size} numbers needs a PETSc with 64-bit indices")


class _ShiftedOperator:
    """Context of the Mat: y = (A + σI) x on [n_local, k] blocks."""

    def __init__(self, A, shift, columns):
        self._A, self._shift, self._columns = A, shift, columns
        if hasattr(A, "diagonal"):
            self.getDiagonal = self._get_diagonal

    def mult(self, _mat, x, y):
        X = x.getArray(readonly=True).reshape(-1, self._columns)
        Y = np.asarray(self._A.matmat_rows(X), dtype=np.float64)
        if self._shift:
            Y = Y + self._shift * X
        y.getArray()[:] = Y.reshape(-1)

    def multTranspose(self, mat, x, y):
        self.mult(mat, x, y)

    def _get_diagonal(self, _mat, diagonal):
        first, last = row_starts(self._A.shape[0], self._A.comm.size)[self._A.comm.rank :][:2]
        rows = np.asarray(self._A.diagonal(), dtype=np.float64)[first:last] + self._shift
        diagonal.getArray()[:] = np.repeat(rows, self._columns)
