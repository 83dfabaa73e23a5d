"""A factor file as preconditioner by PETSc options: in this process, and in a PETSc program of its own."""

from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

pytest.importorskip("petsc4py")

from hpcHess.curvature.regularized import Regularized
from hpcHess.formats.compress import compress
from hpcHess.krylov.library import option_database, petsc
from tests.drivers.drive import on_root
from tests.reference.dense_operator import DenseOperator, exponential_kernel
from tests.storage.launch import launch

N, COMM = 200, MPI.COMM_WORLD
PROGRAM = Path(__file__).parents[2] / "docs" / "petsc_program.py"
NAMED = ["-pc_type", "python", "-pc_python_type", "hpcHess.FactorFilePC"]


def stored(path, **options):
    K = exponential_kernel(N)
    H = compress(DenseOperator(K, COMM), rtol=1e-3, leaf_size=20, distance="angle", **options)
    H.save(path, factors=H.factorize(0.01 * H.report["lambda_max"]) if H.format == "hss" else None)
    return K + 0.01 * H.report["lambda_max"] * np.eye(N)


def solved(A, options, prefix=""):
    """(x whole, iterations) of a KSP that only the options describe."""
    PETSc = petsc(COMM)
    with option_database(PETSc, [f"-{prefix}{word[1:]}" if word.startswith("-") else word for word in options]):
        mat = PETSc.Mat().createDense(A.shape, comm=COMM)
        mat.setUp()
        first, last = mat.getOwnershipRange()
        mat.setValues(range(first, last), range(N), A[first:last])
        mat.assemble()
        ksp = PETSc.KSP().create(COMM)
        ksp.setOptionsPrefix(prefix)
        ksp.setType("cg")
        ksp.setTolerances(rtol=1e-10)
        ksp.setOperators(mat)
        ksp.setFromOptions()
        b, x = mat.createVecs()
        b.set(1.0)
        try:
            ksp.solve(b, x)
            return np.concatenate(COMM.allgather(x.getArray().copy())), ksp.getIterationNumber()
        finally:
            for thing in (ksp, mat, b, x):
                thing.destroy()


@pytest.mark.parametrize(
    "more", [{}, {"solver": "ulv"}, {"format": "fmm", "budget": 0.3, "n_neighbors": 8}, {"format": "low-rank"}, {"format": "dense"}, {"structured": "low-rank"}]
)
def test_options_alone(shared_tmp, more):
    A = stored(shared_tmp / "F.h5", **more)
    given = [*NAMED, "-pc_hpchess_file", str(shared_tmp / "F.h5"), "-pc_hpchess_damping", "0.01*lmax"]
    plain, many = solved(A, ["-pc_type", "none"])
    named = {"low-rank": "woodbury", "dense": "cholesky"}.get(more.get("format"), "elimination")
    for prefix, extra in (("", []), ("inner_", ["-pc_hpchess_solver", named])):
        x, few = solved(A, given + extra, prefix)
        assert few < many / 2 and np.linalg.norm(A @ x - 1) <= 1e-8 * np.sqrt(N)


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "-pc_hpchess_file"),
        (["-pc_hpchess_file", "F.h5"], "-pc_hpchess_damping"),
        (["-pc_hpchess_file", "nowhere.h5", "-pc_hpchess_damping", "1"], "does not exist"),
        (["-pc_hpchess_file", "F.h5", "-pc_hpchess_damping", "much"], "neither a number"),
        (["-pc_hpchess_file", "F.h5", "-pc_hpchess_damping", "1", "-pc_hpchess_solver", "lu"], "elimination or ulv"),
    ],
)
def test_mistakes_are_told(shared_tmp, options, words):
    A = stored(shared_tmp / "F.h5")
    options = [str(shared_tmp / word) if word.endswith(".h5") else word for word in options]
    with pytest.raises(Exception) as caught:
        solved(A, NAMED + options)
    told = f"{caught.value} {caught.value.__cause__}"
    assert words in told, told


def test_another_layout_is_refused(shared_tmp):
    stored(shared_tmp / "F.h5")
    global N
    former, N = N, 150
    try:
        with pytest.raises(Exception) as caught:
            solved(np.eye(150), [*NAMED, "-pc_hpchess_file", str(shared_tmp / "F.h5"), "-pc_hpchess_damping", "1"])
    finally:
        N = former
    assert "200 parameter rows" in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.skipif(COMM.size > 1, reason="starts its own mpiexec")
def test_the_documented_program(shared_tmp):
    A, b = stored(shared_tmp / "F.h5"), np.random.default_rng(0).standard_normal(N)
    on_root(lambda: (np.save(shared_tmp / "A.npy", A), np.save(shared_tmp / "b.npy", b)) and None)
    files = [shared_tmp / name for name in ("A.npy", "b.npy", "x.npy")]
    more = ["-ksp_type", "cg", "-ksp_rtol", "1e-10", "-pc_hpchess_file", shared_tmp / "F.h5", "-pc_hpchess_damping", "0.01*lmax"]
    done = launch(2, PROGRAM, *files, *NAMED, *more, "-ksp_view")
    assert done.returncode == 0, done.stderr
    assert "hpcHess: elimination factors of" in done.stdout
    assert int(done.stdout.partition(" iterations, converged reason 2")[0].split()[-1]) <= 12, done.stdout
    assert np.linalg.norm(A @ np.load(shared_tmp / "x.npy") - b) <= 1e-8 * np.linalg.norm(b)


@pytest.mark.parametrize("more", [{"solver": "ulv"}, {"format": "fmm", "budget": 0.3, "n_neighbors": 8}])
def test_petsc_pc_of_any_format(more):
    """By the API: the factors of an HSS matrix, of an FMM matrix's coarser one."""
    import hpcHess as hh
    from hpcHess.krylov.solve import solve

    K = exponential_kernel(N)
    H = compress(DenseOperator(K, COMM), rtol=1e-3, leaf_size=20, distance="angle", **more)
    damping = 0.01 * H.report["lambda_max"]
    pc = hh.petsc_pc(H, damping, solver="elimination")
    ksp = petsc(COMM).KSP().create(COMM)
    mat = hh.petsc_mat(H, shift=damping)
    ksp.setType("cg")
    ksp.setPC(pc)
    ksp.setOperators(mat)
    ksp.setTolerances(rtol=1e-10)
    b, x = mat.createVecs()
    b.set(1.0)
    ksp.solve(b, x)
    lo, hi = H.tree_rows(H.parameter_starts)
    plain = solve(H, np.ones(hi - lo), damping, rtol=1e-10)
    assert ksp.getConvergedReason() > 0 and ksp.getIterationNumber() <= plain.iterations / 2
    np.testing.assert_allclose(x.getArray(), plain.X_local, rtol=0, atol=1e-7 * np.abs(plain.X_local).max())
    for thing in (ksp, pc, mat, b, x):
        thing.destroy()


@pytest.mark.parametrize("more", [{}, {"format": "fmm", "budget": 0.3, "n_neighbors": 8}])
def test_weight_decay_in_the_file_is_in_the_preconditioner(shared_tmp, more):
    """λ apart from l2: without it the program's matrix is H + l2 I."""
    K, l2 = exponential_kernel(N), 0.5
    H = compress(Regularized(DenseOperator(K, COMM), l2), rtol=1e-3, leaf_size=20, distance="angle", **more)
    H.save(shared_tmp / "F.h5", factors=H.factorize(0.0) if H.direct else None)
    A = K + l2 * np.eye(N)
    x, few = solved(A, [*NAMED, "-pc_hpchess_file", str(shared_tmp / "F.h5"), "-pc_hpchess_damping", "0"])
    assert 2 * few < solved(A, ["-pc_type", "none"])[1] and (few <= 6 or not H.direct)
    np.testing.assert_allclose(A @ x, 1, atol=1e-8)
