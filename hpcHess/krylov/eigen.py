"""Eigenpairs of symmetric operators by SLEPc."""

import numpy as np

from hpcHess.krylov.library import petsc, slepc
from hpcHess.krylov.shell import local_rows, petsc_mat


def largest_eigenpairs(A, count, tolerance, start=None, known=None, max_restarts=1000):
    """About `count` eigenpairs of the largest magnitude, orthogonal to `known`, by Krylov–Schur: (values [c], vectors [n_local, c]), float64.

    A          anything that `shell.petsc_mat` takes; known: [n_local, m] orthonormal eigenvectors found before, which are deflated
    tolerance  of ‖Av − θv‖, absolute; c may be more than `count`, and is less where `max_restarts` did not suffice or there are no more
    start      [n_local], the first vector: the same for any number of ranks where it is
    Stewart, SIMAX 2002; Hernández, Román & Vidal, TOMS 2005. Collective; InputError where SLEPc is missing.
    """
    SLEPc = slepc(A.comm)
    PETSc, mat = petsc(A.comm), petsc_mat(A)
    eps, vectors = SLEPc.EPS().create(A.comm), []

    def vector(column):
        made = PETSc.Vec().createMPI((local_rows(A), A.shape[0]), comm=A.comm)
        made.getArray()[:] = column
        vectors.append(made)
        return made

    try:
        eps.setOperators(mat)
        eps.setProblemType(SLEPc.EPS.ProblemType.HEP)
        eps.setType(SLEPc.EPS.Type.KRYLOVSCHUR)
        eps.setWhichEigenpairs(SLEPc.EPS.Which.LARGEST_MAGNITUDE)
        eps.setDimensions(nev=int(count))
        eps.setConvergenceTest(SLEPc.EPS.Conv.ABS)
        eps.setTolerances(tol=float(tolerance), max_it=int(max_restarts))
        eps.getDS().setParallel(SLEPc.DS.ParallelType.SYNCHRONIZED)  # one rank's factors: those of others may differ in more than rounding
        if known is not None and known.shape[1]:
            eps.setDeflationSpace([vector(column) for column in known.T])
        if start is not None:
            eps.setInitialSpace([vector(start)])
        eps.solve()
        found, x = eps.getConverged(), vector(0.0)
        values, result = np.empty(found), np.empty((local_rows(A), found), order="F")
        for i in range(found):
            values[i] = np.real(eps.getEigenpair(i, x))
            result[:, i] = x.getArray(readonly=True)
    finally:
        for each in (eps, mat, *vectors):
            each.destroy()
    return values, result
