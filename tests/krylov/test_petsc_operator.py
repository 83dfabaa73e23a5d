"""PETSc matrices behind the operator protocol."""

import numpy as np
import pytest

from hpcHess.curvature.dense import DenseMatrix
from hpcHess.krylov.library import petsc
from hpcHess.krylov.shell import petsc_mat, petsc_operator
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import InputError

pytest.importorskip("petsc4py")
N = 29


def symmetric(dead=(4,)):
    A = np.random.default_rng(0).standard_normal((N, N))
    A = A + A.T
    A[list(dead)] = A[:, list(dead)] = 0
    return A


def mat_of(comm, A, kind, uneven=False):
    """A PETSc Mat of the dense A; uneven: all rows but one a rank on the last rank."""
    PETSc = petsc(comm)
    mine = int(np.diff(row_starts(len(A), comm.size))[comm.rank])
    if uneven:
        mine = len(A) - (comm.size - 1) if comm.rank == comm.size - 1 else 1
    mat = PETSc.Mat().create(comm=comm)
    mat.setSizes(((mine, None), (mine, None)) if len(A) == A.shape[1] else A.shape)
    mat.setType(kind)
    mat.setUp()
    mat.setOption(PETSc.Mat.Option.NEW_NONZERO_ALLOCATION_ERR, False)
    for i in range(*mat.getOwnershipRange()):
        first = i if kind == "sbaij" else 0
        columns = first + np.flatnonzero(A[i, first:])
        mat.setValues([i], columns.astype(PETSc.IntType), A[i, columns])
    mat.assemble()
    return mat


@pytest.mark.parametrize("kind", ["aij", "dense", "sbaij"])
@pytest.mark.parametrize("uneven", [False, True])
def test_products_in_any_layout(comm, kind, uneven):
    A, V = symmetric(), np.random.default_rng(1).standard_normal((N, 3))
    op = petsc_operator(mat_of(comm, A, kind, uneven))
    assert op.dtype == np.float64 and op.shape == (N, N) and op.n_params == N and op.comm.size == comm.size
    assert np.array_equal(op.alive, np.setdiff1d(np.arange(N), [4]))
    lo, hi = row_starts(N, comm.size)[comm.rank :][:2]
    for found, wanted in (
        (op @ V, A @ V),
        (op @ V[:, 0], A @ V[:, 0]),
        (op.matmat_rows(V[lo:hi]), (A @ V)[lo:hi]),
        (comm.allreduce(op.partial_matmat(V)), A @ V),
    ):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13 * np.linalg.norm(A @ V))


def test_there_and_back(comm):
    A, V = symmetric(), np.random.default_rng(1).standard_normal((N, 3))
    op = petsc_operator(petsc_mat(DenseMatrix(A, comm=comm), shift=0.5))
    np.testing.assert_allclose(op @ V, A @ V + 0.5 * V, rtol=0, atol=1e-13)
    assert len(op.alive) == N


def test_refused(comm):
    with pytest.raises(InputError, match="not symmetric"):
        petsc_operator(mat_of(comm, np.triu(symmetric()), "aij"))
    with pytest.raises(InputError, match="square"):
        petsc_operator(mat_of(comm, np.ones((4, 6)), "dense"))


def test_what_is_no_mat_is_refused():
    with pytest.raises(InputError, match="takes a petsc4py Mat, not ndarray; of an array: hpcHess.DenseMatrix"):
        petsc_operator(symmetric())


class Failing:
    """A shell's products, from some of them on NaN on the last rank."""

    def __init__(self, A, good):
        self.A, self.good, self.calls = A, good, 0

    def mult(self, mat, x, y):
        comm, (lo, hi) = mat.comm.tompi4py(), x.getOwnershipRange()
        whole = np.concatenate(comm.allgather(x.getArray(readonly=True).copy()))
        self.calls += 1
        y.getArray()[:] = np.nan if self.calls > self.good and comm.rank == comm.size - 1 else self.A[lo:hi] @ whole


@pytest.mark.parametrize("good", [0, 12])
def test_nan_in_products_on_one_rank_is_everyones(comm, good):
    PETSc, A = petsc(comm), symmetric()
    mat = PETSc.Mat().createPython(((PETSc.DECIDE, N), (PETSc.DECIDE, N)), Failing(A, good), comm=comm)
    mat.setUp()
    with pytest.raises(InputError, match="the Mat gives products that are not finite"):
        op = petsc_operator(mat)
        np.testing.assert_allclose(op @ np.ones((N, 2)), A @ np.ones((N, 2)), atol=1e-12)
        op @ np.ones((N, 3))


def test_a_mat_that_is_not_deterministic(comm):
    PETSc, A, rng = petsc(comm), symmetric(), np.random.default_rng(comm.rank)
    context = Failing(A, 10**9)
    context.mult, exact = (lambda mat, x, y: (exact(mat, x, y), y.getArray().__imul__(1 + 1e-3 * rng.random()))), context.mult
    mat = PETSc.Mat().createPython(((PETSc.DECIDE, N), (PETSc.DECIDE, N)), context, comm=comm)
    mat.setUp()
    with pytest.raises(InputError, match="the Mat is not deterministic"):
        petsc_operator(mat)
