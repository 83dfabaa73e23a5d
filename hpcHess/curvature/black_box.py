"""Operators that are known by their products alone: callables, SciPy's; and what `hpcHess.compress` takes for an operator."""

import numpy as np
from mpi4py import MPI

from hpcHess.curvature.dense import DenseMatrix
from hpcHess.krylov.shell import petsc_operator
from hpcHess.parallel.agree import together
from hpcHess.parallel.operator import RowOperator, checked_dtype, probed_rows
from hpcHess.parallel.ownership import whole_rows
from hpcHess.runtime.errors import InputError


class BlackBox(RowOperator):
    """A symmetric H [N, N] behind `matmat`: products, but no entries and no diagonal (`compress(…, sampling="products")`).

    matmat   callable, V [N, k] → HV [N, k], row-major V of `dtype`, whole on every rank; called on all ranks at once with the same V, gives
             all of them the same; a single vector comes as [N, 1]
    n        N
    dtype    of the products, float64 or float32

    Making it is collective and takes products of 8 and of 2 vectors, from which it finds the rows that are zero (`alive` are the others). All
    products are collective, `partial_matmat` too. Raises InputError where H is not symmetric or does not give the same again
    (`parallel.operator.probed_rows`) or, then or later, the callable gives anything but finite real numbers [N, k] on one of the
    ranks; what it raises itself on one rank is the cause of an InputError on all.
    """

    def __init__(self, matmat, n, comm=MPI.COMM_WORLD, dtype=np.float64):
        self.comm = comm
        with together(comm):
            self.dtype = checked_dtype(dtype)
            if not callable(matmat):
                raise InputError(f"matmat must be a function V [N, k] → HV [N, k], not {type(matmat).__name__}")
            if int(n) != n or n < 1:
                raise InputError(f"n must be a positive integer, not {n}")
        self._matmat, self.n_params = matmat, int(n)
        self.alive = probed_rows(self, "the operator")

    def __repr__(self):
        return f"BlackBox(N = {self.n_params}, {self.dtype})"

    def matmat(self, V):
        """HV for V [N] or [N, k], whole on every rank, as is the result. Collective."""
        V = whole_rows(V, self.n_params)
        return self._product(np.ascontiguousarray(V.reshape(self.n_params, -1), self.dtype)).reshape(V.shape)

    def own_rows(self, V):
        """This rank's rows of HV for V [N, k] whole, [n_local, k]. Collective."""
        return self._product(V)[self.mine]

    def _product(self, V):
        with together(self.comm):
            try:
                U = np.asarray(self._matmat(V))
            except Exception as error:
                raise InputError(f"matmat failed: {type(error).__name__}: {error}") from error
            if U.shape != V.shape or U.dtype.kind not in "fiub":
                raise InputError(f"matmat gave {U.dtype} of shape {list(U.shape)} for V of shape {list(V.shape)}: real numbers of the same shape are wanted")
            with np.errstate(over="ignore"):
                U = np.ascontiguousarray(U, self.dtype)
            if not np.isfinite(U).all():
                raise InputError(f"matmat gave numbers that are not finite in {self.dtype}: scale the operator, or use float64")
        return U


def linear_operator(A, comm=MPI.COMM_WORLD):
    """`BlackBox` of a SciPy `LinearOperator`, or of a sparse matrix, A [N, N], real and symmetric. Collective.

    Every rank gives one, and all are called at once with the same V [N, k], as `BlackBox`: one that computes everything by itself will do, and
    one that is collective inside. Products are in float32 where A says that it is, else in float64. InputError where A is neither, not square, not
    real, and as `BlackBox`.
    """
    with together(comm):
        if not _is_linear_operator(A) or getattr(A, "ndim", 2) != 2:
            raise InputError(f"linear_operator takes a scipy.sparse.linalg.LinearOperator or a sparse matrix, not {type(A).__name__}")
        n, width = A.shape
        if n != width or not n:
            raise InputError(f"the operator must be square, not of shape {list(A.shape)}")
        dtype = np.dtype(np.float64 if A.dtype is None else A.dtype)
        if dtype.kind not in "fiub":
            raise InputError(f"the operator must be real, not {dtype}")
    product = A.matmat if hasattr(A, "matmat") else A.__matmul__
    return BlackBox(product, n, comm, np.float32 if dtype == np.float32 else np.float64)


def _is_linear_operator(A):
    """Whether A is of SciPy, which is not imported for that."""
    return hasattr(A, "shape") and hasattr(A, "dtype") and (hasattr(A, "matmat") and hasattr(A, "matvec") or hasattr(A, "tocsr"))


def as_operator(A):
    """The operator of what users have: an operator as it is; a symmetric NumPy array (`DenseMatrix`), a SciPy LinearOperator or sparse matrix
    (`linear_operator`), each the same on all ranks of COMM_WORLD; a petsc4py Mat (`petsc_operator`). Collective.

    InputError for anything else.
    """
    if all(hasattr(A, name) for name in ("comm", "alive", "matmat_rows")):
        return A
    if hasattr(A, "getSizes") and hasattr(A, "createVecs"):
        return petsc_operator(A)
    if isinstance(A, np.ndarray):
        return DenseMatrix(A)
    if _is_linear_operator(A):
        return linear_operator(A)
    raise InputError(
        f"compress takes an operator (hpcHess.GaussNewton, BlackBox, …), a symmetric NumPy array, a SciPy LinearOperator or sparse matrix, or a petsc4py Mat, "
        f"not {type(A).__name__}"
    )
