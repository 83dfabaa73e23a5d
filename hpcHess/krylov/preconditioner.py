"""Approximate inverses as PETSc preconditioners."""

import numpy as np

from hpcHess.krylov.library import petsc


def petsc_pc(S, columns=1):
    """PETSc PC of type python for I_k ⊗ S, k = `columns`; give it to a KSP with `setPC`, then call `setOperators`. Collective over S.comm.

    S is a symmetric approximate inverse, anything with `comm` and `solve_rows(B [n_local, k]) -> X [n_local, k]` on parameter
    rows, in any precision. The layout of a Vec is that of `shell.petsc_mat`.
    """
    pc = petsc(S.comm).PC().create(comm=S.comm)
    pc.setType("python")
    pc.setPythonContext(ApproximateInverse(S, columns))
    return pc


def mpi_comm(pc):
    """The mpi4py communicator of a PC."""
    return pc.getComm().tompi4py()


def own_rows(pc):
    """(first, last) row of the PC's operator on this rank."""
    return tuple(int(row) for row in pc.getOperators()[0].getOwnershipRange())


def pc_options(pc, *names):
    """The values (str, or None where not given) of options behind the PC's prefix."""
    database = petsc(mpi_comm(pc)).Options(pc.getOptionsPrefix())
    return [database.getString(name) if database.hasName(name) else None for name in names]


class ApproximateInverse:
    """Context of the PC: y = S x on [n_local, k] blocks."""

    def __init__(self, S, columns=1):
        self._S, self._columns = S, columns

    def apply(self, _pc, x, y):
        X = self._S.solve_rows(x.getArray(readonly=True).reshape(-1, self._columns))
        y.getArray()[:] = np.asarray(X, dtype=np.float64).reshape(-1)

    def applyTranspose(self, pc, x, y):
        self.apply(pc, x, y)
