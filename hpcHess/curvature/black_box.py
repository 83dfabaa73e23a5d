"""An operator that is known by its products alone."""

import numpy as np
from mpi4py import MPI

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

    Making it is collective and takes one product of 8 vectors, from which it finds the rows that are zero (`alive` are the others). All
    products are collective, `partial_matmat` too. Raises InputError where H is not symmetric (`parallel.operator.probed_rows`)
    or, then or later, the callable gives anything but finite real
    numbers [N, k] on one of the ranks; what it raises itself on one rank is the cause of an InputError on all.
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
