"""Symmetric operators as PETSc shell matrices, and the reverse."""

import numpy as np

from hpcHess.krylov.library import petsc
from hpcHess.parallel.agree import agree
from hpcHess.parallel.exchange import repartition
from hpcHess.parallel.operator import RowOperator, check_products, probed_rows
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError


def petsc_mat(A, shift=0.0, columns=1):
    """PETSc Mat of type python for I_k ⊗ (A + shift·I), k = `columns`. Collective over A.comm.

    A is symmetric, anything with `comm`, `shape` (N, N) and `matmat_rows(V [n_local, k]) -> [n_local, k]` on parameter rows;
    MatGetDiagonal works where A has `diagonal() -> [N]`. It may compute in any precision, PETSc's vectors are float64.

    A Vec has n_local·k numbers on a rank, a row-major [n_local, k] block: one product of the Mat is one product of A with k
    vectors. The spectrum is A's, so are the bounds of Krylov methods. Its vectors lie on the device where A computes there and PETSc was
    built for it (`device_vectors`); A's products take host rows, which PETSc then copies.
    """
    PETSc = petsc(A.comm)
    n_local = local_rows(A)
    check_index_range(PETSc, A.shape[0] * columns)
    size = (n_local * columns, A.shape[0] * columns)
    mat = PETSc.Mat().createPython((size, size), _ShiftedOperator(A, shift, columns), comm=A.comm)
    mat.setOption(PETSc.Mat.Option.SYMMETRIC, True)
    mat.setUp()
    if device_vectors(PETSc, A):
        mat.setVecType(PETSc.Vec.Type.CUDA)
    return mat


def device_vectors(PETSc, A):
    """Whether A's vectors are CUDA ones in PETSc: A computes on such a device, and PETSc's configuration has CUDA. The same on every rank."""
    backend = getattr(A, "backend", None)
    return getattr(backend, "name", None) == "cupy" and bool(PETSc.Sys.hasExternalPackage("cuda"))


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


def petsc_operator(mat):
    """`PetscOperator` of a symmetric PETSc Mat. Collective over its communicator; raises InputError where it is not square or symmetric."""
    return PetscOperator(mat)


class PetscOperator(RowOperator):
    """A symmetric PETSc Mat of any type behind the operator protocol: products, but no entries (`compress(…, sampling="products")`).

    Products take and give parameter rows in PETSc's rows of the Mat, whatever their layout; all of them are collective, `partial_matmat`
    too; InputError where they are not finite. Assembled AIJ and dense matrices multiply with blocks of vectors, others (shells) with one after another. `alive` are the rows
    that are not zero, `parallel.operator.probed_rows`.
    """

    def __init__(self, mat):
        if not hasattr(mat, "getSizes"):
            raise InputError(f"petsc_operator takes a petsc4py Mat, not {type(mat).__name__}; of an array: hpcHess.DenseMatrix")
        self.comm, self.dtype, self._mat = mat.comm.tompi4py(), np.dtype(np.float64), mat
        PETSc = petsc(self.comm)
        if np.dtype(PETSc.ScalarType) != self.dtype:
            raise InputError(f"a PETSc of real double precision is needed, not {np.dtype(PETSc.ScalarType)}")
        (own_rows, rows), (own_columns, columns) = mat.getSizes()
        error = None
        if rows != columns or own_rows != own_columns or not rows:
            error = InputError(f"the Mat must be square, and its rows and columns distributed alike; it is {rows} × {columns}")
        agree(self.comm, error)
        self.n_params, self._layout = rows, np.asarray(mat.getOwnershipRanges(), np.int64)
        self._blocks = mat.getType() in ("seqaij", "mpiaij", "seqdense", "mpidense")
        self.alive = probed_rows(self, "the Mat")

    def own_rows(self, V):
        """This rank's rows of HV for V [N, k] whole, [n_local, k]. Collective."""
        return self.matmat_rows(V[self.mine])

    def matmat_rows(self, V):
        """HV in parameter rows, [n_local, k] → [n_local, k]. Collective."""
        X = repartition(self.comm, np.ascontiguousarray(V, self.dtype), self.starts, self._layout)
        products = repartition(self.comm, self._multiply(X), self._layout, self.starts)
        check_products(self.comm, products, "the Mat")
        return products

    def _multiply(self, X):
        """HX in PETSc's rows."""
        if self._blocks and X.shape[1] > 1:
            PETSc = petsc(self.comm)
            sizes = self._mat.getSizes()[0], (PETSc.DECIDE, X.shape[1])
            dense = PETSc.Mat().createDense(sizes, array=np.asfortranarray(X), comm=self.comm)
            product = self._mat.matMult(dense)
            result = np.array(product.getDenseArray(readonly=True), order="C")
            for each in (dense, product):
                each.destroy()
            return result
        result, (x, y) = np.empty(X.shape), self._mat.createVecs()
        for column in range(X.shape[1]):
            x.getArray()[:] = X[:, column]
            self._mat.mult(x, y)
            result[:, column] = y.getArray(readonly=True)
        for each in (x, y):
            each.destroy()
        return result
