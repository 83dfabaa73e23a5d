"""`import hpcHess as hh`: the calls that the documentation shows, against the dense matrix, on the ranks of the test run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import hpcHess as hh
from hpcHess.parallel.ownership import row_starts
from hpcHess.storage.factor_file import FactorFile
from tests.drivers.drive import dense, on_root, relative, residuals, small_arrays
from tests.reference.dense_operator import DenseOperator
from tests.storage.launch import FOR_MANY_RANKS, outside_mpi

RTOL, DAMPING = 1e-3, 0.05


@pytest.fixture(scope="module")
def problem():
    """(network, inputs, targets, dense H)."""
    arrays, x, y = small_arrays()
    return hh.Network.from_arrays(arrays, "tanh", "cross-entropy"), x, y, on_root(lambda: dense(arrays, x))


@pytest.fixture(scope="module")
def op(problem, comm):
    network, x, y, _ = problem
    return hh.GaussNewton(network, x, y, comm=comm)


@pytest.fixture(scope="module")
def H(op):
    return hh.compress(op, rtol=RTOL, leaf_size=24)


@pytest.fixture(scope="module")
def B(problem):
    return np.random.default_rng(3).standard_normal((len(problem[3]), 4))


def test_the_example_of_the_documentation(problem, comm, shared_tmp):
    """Word for word, with the values filled in."""
    network, inputs, targets, dense_h = problem
    path, V = shared_tmp / "F.h5", np.eye(len(dense_h))
    op = hh.GaussNewton(network, inputs, targets, comm=comm)
    H = hh.compress(op, rtol=1e-3)
    assert relative(H @ V, dense_h) <= 1e-3
    damped = dense_h + 0.1 * V
    assert relative(H.solve(V, damping=0.1), np.linalg.inv(damped)) < 1e-2
    sign, log_abs = H.logdet(damping=0.1)
    assert (sign, log_abs) == pytest.approx(np.linalg.slogdet(damped), rel=1e-3)
    H.save(path)
    again = hh.load(path)
    assert again.comm is MPI.COMM_WORLD and again.dtype == np.float32 and again.shape == H.shape
    assert relative(again @ V, H @ V) < 1e-12
    assert again.report["rtol_met"] is True and again.report["error_estimate"] == H.report["error_estimate"]


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8])
def test_every_tolerance_is_met(rtol, op, problem, B):
    """Error, storage type, log-determinant and inertia against the dense matrix; a damping that covers the error."""
    H = hh.compress(op, rtol=rtol, leaf_size=24)
    D, eye = problem[3], np.eye(op.n_params)
    assert H.dtype == (np.float64 if rtol < 1e-5 else np.float32)
    compressed = H @ eye
    assert relative(compressed, D) <= rtol and H.report["rtol_met"] and H.report["error_estimate"]["high"] <= rtol
    damping = 4 * rtol * np.linalg.norm(D)
    A, exact = compressed.astype(np.float64) + damping * eye, D + damping * eye
    assert residuals(A, H.solve(B, damping=damping), B).max() < 1e-9
    sign, log_abs = H.logdet(damping=damping)
    assert sign == 1 and log_abs == pytest.approx(np.linalg.slogdet(A)[1], rel=1e-9)
    # |log det(A) − log det(A + E)| ≤ Σ |λ_i(A⁻¹E)| ≤ √N ‖E‖_F ‖A⁻¹‖
    assert abs(log_abs - np.linalg.slogdet(exact)[1]) <= np.sqrt(len(D)) * rtol * np.linalg.norm(D) / damping * 1.5
    assert H.inertia(damping) == (len(D), 0)


def test_inertia_of_an_indefinite_shift(H, problem):
    """At damping 0.0 rounding decides; far below the error the inertia is that of H̃ + λI, not of H + λI."""
    damping = 1e-6
    values = np.linalg.eigvalsh((H @ np.eye(H.n_params)).astype(np.float64)) + damping
    assert H.inertia(damping) == ((values > 0).sum(), (values < 0).sum())
    assert (values < 0).any()
    sign, log_abs = H.logdet(damping=damping)
    assert sign == (-1) ** (values < 0).sum() and log_abs == pytest.approx(np.log(np.abs(values)).sum(), rel=1e-6)


def test_vectors_of_one_dimension(H, op, B):
    for apply in (lambda V: H @ V, lambda V: op @ V, lambda V: H.solve(V, damping=DAMPING)):
        assert apply(B[:, 0]).shape == (len(B),) and relative(apply(B[:, 0]), apply(B)[:, 0]) < 1e-12
        assert apply(B[:, :1]).shape == (len(B), 1)


def test_vectors_of_other_types(H, op, B):
    """Lists, integers, half precision, other byte order and rows in any memory order: the same numbers."""
    V = np.round(4 * B[:, :2])
    for given in (V.tolist(), V.astype(np.int8), V.astype(np.float16), V.astype(">f8"), V.astype(np.longdouble), np.asfortranarray(V)):
        for apply in (H.matmat, op.matmat, lambda X: H.solve(X, damping=DAMPING)):
            assert relative(apply(given), apply(V)) < 1e-6


def test_they_describe_themselves(H, op):
    assert repr(op) == "GaussNewton(Network(16-12-8-5 tanh, cross-entropy, 353 parameters), 60 samples, float64)"
    assert repr(H).startswith("HierarchicalMatrix(N = 353, float32, ") and "% of N², error " in repr(H) and "depth 4" in repr(H)


def test_wrong_shapes_and_values_are_told(H, op):
    for apply in (H.matmat, op.matmat, lambda V: H.solve(V, damping=DAMPING)):
        for wrong in (np.ones(5), np.ones((op.n_params, 2, 2)), np.ones((2, op.n_params))):
            with pytest.raises(ValueError, match="does not fit"):
                apply(wrong)
        for wrong in (np.ones(op.n_params, complex), np.array([None] * op.n_params)):
            with pytest.raises(hh.InputError, match="real numbers"):
                apply(wrong)
    wrong = [("rtol", 0), ("rtol", -1.0), ("rtol", np.nan), ("leaf_size", 1), ("dtype", "float16"), ("distance", "taxi"), ("probes", 3)]
    for name, value in wrong:
        with pytest.raises(hh.InputError, match=name):
            hh.compress(op, **{name: value})
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(hh.InputError, match="damping"):
            H.solve(np.ones(op.n_params), damping=wrong)
    with pytest.raises(hh.InputError, match="hpcHess.Network"):
        hh.GaussNewton("net.npz", np.ones((3, 16)))
    with pytest.raises(hh.InputError, match="does not exist"):
        hh.load("nowhere.h5")


def test_scipy(H, op, problem):
    """H̃ as a LinearOperator inside SciPy's conjugate gradients."""
    from scipy.sparse.linalg import LinearOperator, cg

    A = H.aslinearoperator()
    assert isinstance(A, LinearOperator) and A.shape == H.shape and relative(A @ np.eye(A.shape[0]), problem[3]) <= RTOL
    b = np.ones(A.shape[0])
    damped = LinearOperator(A.shape, matvec=lambda v: A.matvec(v) + DAMPING * v, dtype=np.float64)
    x, info = cg(damped, b, atol=1e-8, maxiter=500)
    assert info == 0 and relative(x, H.solve(b, damping=DAMPING)) < 1e-3


def ksp_solve(comm, mat, pc, b, name="cg"):
    """A user's own KSP; (x on this rank, iterations)."""
    from petsc4py import PETSc

    ksp = PETSc.KSP().create(comm)
    ksp.setType(name)
    if pc is not None:
        ksp.setPC(pc)
    ksp.setOperators(mat)
    ksp.setTolerances(rtol=1e-10, max_it=2000)
    right, x = mat.createVecs()
    right.getArray()[:] = b
    ksp.solve(right, x)
    assert ksp.getConvergedReason() > 0
    return x.getArray().copy(), ksp.getIterationNumber()


def rows_of(comm, n):
    return slice(*row_starts(n, comm.size)[comm.rank : comm.rank + 2])


def test_petsc(H, op, problem, comm, B):
    """Shell matrices of H and H̃ in a KSP; the factors as its preconditioner need fewer steps."""
    pytest.importorskip("petsc4py")
    mine = rows_of(comm, op.n_params)
    for operator, D in ((op, problem[3]), (H, (H @ np.eye(op.n_params)).astype(np.float64))):
        mat = hh.petsc_mat(operator, shift=DAMPING)
        plain, many = ksp_solve(comm, mat, None, B[mine, 0])
        preconditioned, few = ksp_solve(comm, mat, hh.petsc_pc(H, DAMPING), B[mine, 0])
        exact = np.linalg.solve(D + DAMPING * np.eye(len(D)), B[:, 0])[mine]
        scale = np.linalg.norm(exact) + 1e-30
        assert np.linalg.norm(plain - exact) < 1e-6 * scale and np.linalg.norm(preconditioned - exact) < 1e-6 * scale
        assert few < many / 2 and few <= 8


def test_petsc_products_and_diagonal(op, problem, comm, B):
    pytest.importorskip("petsc4py")
    mine, mat = rows_of(comm, op.n_params), hh.petsc_mat(op)
    x, y = mat.createVecs()
    x.getArray()[:] = B[mine, 0]
    mat.mult(x, y)
    assert mat.getType() == "python" and np.linalg.norm(y.getArray() - (problem[3] @ B[:, 0])[mine]) < 1e-12
    assert np.allclose(mat.getDiagonal().getArray(), np.diag(problem[3])[mine], atol=1e-14)


def test_sub_communicators(problem, comm, B, shared_tmp):
    """Two groups of ranks work on their own, one of them with PETSc, and the other's file is read by all."""
    network, x, y, D = problem
    group = comm.Split(comm.rank % 2)
    op = hh.GaussNewton(network, x, y, comm=group)
    H = hh.compress(op, rtol=RTOL, leaf_size=24 + 8 * (comm.rank % 2))
    assert relative(H @ np.eye(len(D)), D) <= RTOL
    exact = np.linalg.solve((H @ np.eye(len(D))).astype(np.float64) + DAMPING * np.eye(len(D)), B)
    assert relative(H.solve(B, damping=DAMPING), exact) < 1e-8
    path = shared_tmp / f"F{comm.rank % 2}.h5"
    H.save(path)
    comm.Barrier()
    assert relative(hh.load(shared_tmp / "F0.h5", comm=comm) @ B, D @ B) < 1e-2
    assert relative(hh.load(path, comm=MPI.COMM_SELF) @ B, H @ B) < 1e-6
    if comm.rank % 2 == 0:
        pytest.importorskip("petsc4py")
        mine = rows_of(group, len(D))
        found, _ = ksp_solve(group, hh.petsc_mat(op, shift=DAMPING), hh.petsc_pc(H, DAMPING), B[mine, 0])
        assert np.linalg.norm(found - np.linalg.solve(D + DAMPING * np.eye(len(D)), B[:, 0])[mine]) < 1e-6


def test_saved_factors_and_job_are_optional(H, shared_tmp, comm, B):
    """A file saved by hand holds no job: exact products say so; its damping's factors can be stored."""
    from hpcHess.curvature.from_job import operator_of_matrix

    H.save(shared_tmp / "F.h5", factors=H.factorize(DAMPING))
    with FactorFile(shared_tmp / "F.h5", comm) as file:
        assert file.attributes["woodbury_damping"] == DAMPING and file.attributes["job"] == ""
    again = hh.load(shared_tmp / "F.h5")
    assert relative(again.solve(B, damping=DAMPING), H.solve(B, damping=DAMPING)) < 1e-12
    assert relative(again.solve(B, damping=1.0), H.solve(B, damping=1.0)) < 1e-12
    with pytest.raises(hh.InputError, match="records no job"):
        operator_of_matrix(again)


def test_a_driver_module_is_still_a_function(op, comm):
    """`import hpcHess.compress` binds the name of the function to the driver's module."""
    import hpcHess.compress
    import hpcHess.multiply
    import hpcHess.solve  # noqa: F401

    assert hpcHess.compress(op, rtol=0.1).report["rtol_met"]


def test_names():
    assert set(hh.__all__) <= set(dir(hh)) and hh.__version__
    for name in hh.__all__:
        assert getattr(hh, name).__doc__, name
    with pytest.raises(AttributeError, match="compres"):
        hh.compres  # noqa: B018


@pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own process")
def test_importing_the_package_starts_nothing():
    """No MPI before a driver can choose how it starts."""
    code = "import sys, hpcHess; assert 'mpi4py.MPI' not in sys.modules and 'h5py' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env={**FOR_MANY_RANKS, **outside_mpi()}, check=True, timeout=60)


@pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="starts its own process")
def test_a_script_with_petsc_objects_at_module_level_ends_well():
    """PETSc objects of type python that live until the interpreter ends do not crash it."""
    code = """
import numpy as np, hpcHess as hh
from petsc4py import PETSc
network = hh.read_network("data/small-mlp.npz", activation="relu", loss="cross-entropy")
op = hh.GaussNewton(network, np.load("data/small-inputs.npy"))
H = hh.compress(op, rtol=1e-2)
A, pc = hh.petsc_mat(op, shift=0.1), hh.petsc_pc(H, 0.1)
ksp = PETSc.KSP().create()
ksp.setPC(pc); ksp.setOperators(A)
x, b = A.createVecs()
b.set(1)
ksp.solve(b, x)
assert ksp.getConvergedReason() > 0
"""
    pytest.importorskip("petsc4py")
    root, environment = Path(__file__).parents[1], {**FOR_MANY_RANKS, **outside_mpi()}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, timeout=100).returncode == 0


def test_damping_must_be_a_number():
    H = hh.compress(DenseOperator(np.eye(8), MPI.COMM_WORLD), rtol=1e-3)
    with pytest.raises(hh.InputError, match="lambda_max"):
        H.solve(np.ones(8), damping="0.01*lmax")
