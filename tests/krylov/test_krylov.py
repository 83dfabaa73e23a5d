"""Shell matrices, preconditioners and block Krylov solves against dense float64 algebra."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

pytest.importorskip("petsc4py")

from hpcHess.krylov.library import pairs, petsc
from hpcHess.krylov.preconditioner import petsc_pc
from hpcHess.krylov.shell import device_vectors, petsc_mat
from hpcHess.krylov.solve import column_norms, solve
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.errors import HpcHessWarning, InputError

COMM = MPI.COMM_WORLD
SHIFT = 0.3


class Dense:
    """A dense symmetric matrix, the same on all ranks, as a distributed operator on parameter rows; `dtype` is what it computes in."""

    def __init__(self, H, comm=COMM, dtype=np.float64):
        self.H, self.comm, self.shape, self.dtype = H.astype(dtype), comm, H.shape, dtype
        self.starts = row_starts(len(H), comm.size)
        self.rows = slice(*self.starts[comm.rank : comm.rank + 2])
        self.products = 0

    def matmat_rows(self, V):
        self.products += 1
        whole = np.concatenate(self.comm.allgather(V.astype(self.dtype)))
        return self.H[self.rows] @ whole

    solve_rows = matmat_rows

    def diagonal(self):
        return np.diagonal(self.H).copy()


def positive(n, condition=1e4, seed=0):
    """Symmetric, eigenvalues from 1 down to 1/condition, geometric."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return (Q * np.geomspace(1.0, 1.0 / condition, n)) @ Q.T


def right_hand_sides(n, k, seed=1):
    """Columns of very different norms."""
    return np.random.default_rng(seed).standard_normal((n, k)) * 10.0 ** np.linspace(-6, 6, k)


def gathered(A, X_local):
    return np.concatenate(A.comm.allgather(X_local))


def true_residuals(H, shift, X, B):
    return np.linalg.norm(B - H @ X - shift * X, axis=0) / np.linalg.norm(B, axis=0)


@pytest.mark.parametrize("columns", [1, 3])
def test_shell_matrix_is_the_shifted_operator_on_row_major_blocks(columns):
    n = 29
    A = Dense(positive(n))
    V = right_hand_sides(n, columns)
    mat = petsc_mat(A, shift=SHIFT, columns=columns)
    x, y = mat.createVecs()
    for product in (mat.mult, mat.multTranspose):
        x.getArray()[:] = V[A.rows].reshape(-1)
        y.set(np.nan)
        product(x, y)
        expected = A.H @ V + SHIFT * V
        np.testing.assert_allclose(y.getArray().reshape(-1, columns), expected[A.rows], rtol=1e-12, atol=1e-13 * np.abs(expected).max())
    mat.getDiagonal(y)
    np.testing.assert_allclose(y.getArray().reshape(-1, columns), np.tile(np.diagonal(A.H)[A.rows, None] + SHIFT, columns), rtol=1e-14)
    for thing in (x, y, mat):
        thing.destroy()


def test_preconditioner_applies_the_approximate_inverse():
    n, columns = 17, 2
    A = Dense(positive(n))
    S = Dense(np.linalg.inv(A.H + SHIFT * np.eye(n)))
    B = right_hand_sides(n, columns)
    PETSc = petsc(COMM)
    mat, ksp = petsc_mat(A, SHIFT, columns), PETSc.KSP().create(comm=COMM)
    pc = petsc_pc(S, columns)
    ksp.setPC(pc)
    ksp.setOperators(mat)
    ksp.setType("preonly")
    b, x = mat.createVecs()
    b.getArray()[:] = B[A.rows].reshape(-1)
    ksp.solve(b, x)
    expected = np.linalg.solve(A.H + SHIFT * np.eye(n), B)[A.rows]
    np.testing.assert_allclose(x.getArray().reshape(-1, columns), expected, rtol=1e-9, atol=1e-16)
    for thing in (b, x, ksp, pc, mat):
        thing.destroy()


@pytest.mark.parametrize("n, k, block", [(40, 1, 64), (40, 7, 64), (40, 7, 3), (2, 2, 64)])
def test_every_column_reaches_rtol(n, k, block):
    A = Dense(positive(n))
    B = right_hand_sides(n, k)
    result = solve(A, B[A.rows], SHIFT, rtol=1e-10, block=block)
    X = gathered(A, result.X_local)
    assert result.converged and result.X_local.dtype == np.float64
    assert true_residuals(A.H, SHIFT, X, B).max() <= 1e-10
    np.testing.assert_allclose(result.residuals, true_residuals(A.H, SHIFT, X, B), rtol=1e-2, atol=1e-15)
    expected = np.linalg.solve(A.H + SHIFT * np.eye(n), B)
    np.testing.assert_allclose(X, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_iterations_obey_the_bound_of_conjugate_gradients():
    """‖e_j‖_A ≤ 2 ((√κ−1)/(√κ+1))^j ‖e_0‖_A for κ = cond(A + σI): the block system has the same κ, one product an iteration."""
    n = 60
    A = Dense(positive(n, 1e6))
    B = right_hand_sides(n, 5)
    kappa = (1 + 1e-2) / (1e-6 + 1e-2)
    result = solve(A, B[A.rows], 1e-2, rtol=1e-6)
    ratio = (np.sqrt(kappa) - 1) / (np.sqrt(kappa) + 1)
    bound = np.log(1e-6 / (2 * np.sqrt(kappa * 5))) / np.log(ratio)
    assert result.converged and result.iterations <= np.ceil(bound)
    assert A.products <= result.iterations + 5


def test_zero_columns_and_one_dimension():
    A = Dense(positive(20))
    B = right_hand_sides(20, 3)
    B[:, 1] = 0.0
    result = solve(A, B[A.rows], SHIFT)
    assert result.converged and not result.X_local[:, 1].any() and result.residuals[1] == 0
    assert true_residuals(A.H, SHIFT, gathered(A, result.X_local)[:, [0, 2]], B[:, [0, 2]]).max() <= 1e-8
    flat = solve(A, B[A.rows, 0], SHIFT)
    assert flat.X_local.shape == (A.rows.stop - A.rows.start,)
    nothing = solve(A, np.zeros_like(B[A.rows]), SHIFT)
    assert nothing.converged and nothing.iterations == 0


@pytest.mark.parametrize("kind", ["gmres", "fgmres", "minres", "bcgs", "richardson", "preonly", "lsqr", "tfqmr"])
def test_any_method_with_a_good_preconditioner(kind):
    n = 30
    A = Dense(positive(n))
    S = Dense(np.linalg.inv(A.H + SHIFT * np.eye(n)) * (1 + 2e-3))
    B = right_hand_sides(n, 4)
    result = solve(A, B[A.rows], SHIFT, preconditioner=S, rtol=1e-9, options=["-ksp_type", kind])
    assert result.converged
    assert true_residuals(A.H, SHIFT, gathered(A, result.X_local), B).max() <= 1e-9


@pytest.mark.parametrize("definite", [True, False])
def test_single_precision_preconditioner(definite):
    n = 50
    A = Dense(positive(n, 1e6))
    S = Dense(np.linalg.inv(A.H + 1e-3 * np.eye(n)), dtype=np.float32)
    B = right_hand_sides(n, 6)
    result = solve(A, B[A.rows], 1e-3, preconditioner=S, rtol=1e-12, definite=definite)
    assert result.converged and result.iterations <= 12
    assert true_residuals(A.H, 1e-3, gathered(A, result.X_local), B).max() <= 1e-12


def test_rounds_reach_what_one_krylov_solve_does_not():
    """-ksp_rtol ends each KSP early; the corrections add up to the accuracy asked for."""
    A = Dense(positive(40))
    B = right_hand_sides(40, 3)
    loose = ["-ksp_rtol", "1e-2"]
    result = solve(A, B[A.rows], SHIFT, rtol=1e-9, options=loose)
    assert result.converged and true_residuals(A.H, SHIFT, gathered(A, result.X_local), B).max() <= 1e-9


def test_single_precision_operator_is_not_called_converged():
    """The recurrence of CG goes to 1e-12, the residual computed with the operator does not."""
    A = Dense(positive(40), dtype=np.float32)
    B = right_hand_sides(40, 3)
    result = solve(A, B[A.rows], SHIFT, rtol=1e-12)
    assert not result.converged and 1e-12 < result.residuals.max() < 1e-4


def test_too_few_iterations_are_reported():
    A = Dense(positive(60, 1e8))
    B = right_hand_sides(60, 2)
    result = solve(A, B[A.rows], 0.0, rtol=1e-10, max_iterations=5)
    X = gathered(A, result.X_local)
    assert not result.converged and result.iterations <= 5 and result.residuals.max() > 1e-10
    np.testing.assert_allclose(result.residuals, true_residuals(A.H, 0.0, X, B), rtol=1e-6)


def test_indefinite_system_changes_the_method_and_says_so():
    A = Dense(positive(30) - 0.2 * np.eye(30))
    B = right_hand_sides(30, 2)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = solve(A, B[A.rows], 0.0, rtol=1e-8)
    assert COMM.bcast([str(each.message) for each in record]) == ["the system is not positive definite: MINRES instead of CG"]
    assert result.converged and result.method == "minres" and true_residuals(A.H, 0.0, gathered(A, result.X_local), B).max() <= 1e-8


def signed(n, seed=0):
    """(A, |A|) of eigenvalues ±1 … ±1e-3."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    values = np.geomspace(1.0, 1e-3, n)
    return (Q * (values * (-1.0) ** np.arange(n))) @ Q.T, (Q * values) @ Q.T


def test_minres_with_the_absolute_value_as_preconditioner():
    """|A|⁻¹A has the eigenvalues ±1: two steps, a few more for rounding; CG is not tried."""
    H, absolute = signed(60)
    A, S, B = Dense(H), Dense(np.linalg.inv(absolute)), right_hand_sides(60, 3)
    S.definite = True
    with warnings.catch_warnings():
        warnings.simplefilter("error", HpcHessWarning)
        result = solve(A, B[A.rows], 0.0, preconditioner=S, rtol=1e-10, definite=False)
    assert result.converged and result.method == "minres" and result.iterations <= 8
    assert true_residuals(H, 0.0, gathered(A, result.X_local), B).max() <= 1e-10


@pytest.mark.parametrize("definite", [True, False])
def test_an_indefinite_preconditioner_ends_with_fgmres(definite):
    """Known from the start, or met by CG and told."""
    H = positive(30)
    A, S, B = Dense(H), Dense(np.linalg.inv(H - 0.3 * np.eye(30))), right_hand_sides(30, 2)
    S.definite = definite
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = solve(A, B[A.rows], 0.0, preconditioner=S, rtol=1e-8, definite=definite)
    assert result.converged and result.method == "fgmres"
    assert true_residuals(H, 0.0, gathered(A, result.X_local), B).max() <= 1e-8


def test_options_reach_petsc_and_do_not_stay(capfd):
    A = Dense(positive(30))
    B = right_hand_sides(30, 1)
    solve(A, B[A.rows], SHIFT, options=["-ksp_monitor", "-pc_type", "jacobi", "-ksp_view"])
    shown = capfd.readouterr().out
    if COMM.rank == 0:
        assert "0 KSP" in shown and "jacobi" in shown
    solve(A, B[A.rows], SHIFT)
    assert "KSP" not in capfd.readouterr().out


@pytest.mark.parametrize("options", [["-ksp_type", "nonsense"], ["-ksp_rtol", "abc"], ["-pc_type", "ilu"], ["stray"]])
def test_options_petsc_refuses_are_the_users_mistake(options):
    A = Dense(positive(10))
    with pytest.raises(InputError) as caught:
        solve(A, np.ones((10, 1))[A.rows], SHIFT, options=options)
    assert "\n" not in str(caught.value)
    assert solve(A, np.ones((10, 1))[A.rows], SHIFT).converged


def test_bad_right_hand_sides():
    A = Dense(positive(10))
    with pytest.raises(InputError, match="rows"):
        solve(A, np.ones((7 if COMM.rank == 0 else A.rows.stop - A.rows.start, 1)), SHIFT)
    for bad in (np.nan, np.inf):
        B = np.ones((10, 2))
        B[3, 1] = bad
        with pytest.raises(InputError, match="NaN or Inf"):
            solve(A, B[A.rows], SHIFT)


def test_error_of_an_operator_comes_through():
    class Broken(Dense):
        def matmat_rows(self, V):
            raise ZeroDivisionError("inside a product")

    A = Broken(positive(10))
    with pytest.raises(ZeroDivisionError, match="inside a product"):
        solve(A, np.ones((10, 1))[A.rows], SHIFT)


def test_subcommunicators_work_on_their_own():
    comm = COMM.Split(COMM.rank % 2)
    H = positive(20, seed=COMM.rank % 2)
    A = Dense(H, comm)
    B = right_hand_sides(20, 2)
    result = solve(A, B[A.rows], SHIFT)
    assert result.converged and true_residuals(H, SHIFT, gathered(A, result.X_local), B).max() <= 1e-8
    comm.Free()


def test_column_norms_neither_overflow_nor_underflow():
    V = np.array([[3e200, 3e-200, 0.0], [4e200, 4e-200, 0.0]])
    starts = row_starts(2, COMM.size)
    np.testing.assert_allclose(column_norms(COMM, V[starts[COMM.rank] : starts[COMM.rank + 1]]), [5e200, 5e-200, 0.0], rtol=1e-15)


def test_option_words_pair_up():
    words = ["-ksp_type", "cg", "-ksp_monitor", "-ksp_rtol", "-1"]
    assert pairs(words) == [("-ksp_type", "cg"), ("-ksp_monitor", None), ("-ksp_rtol", "-1")]


def test_petsc_leaves_signals_to_python():
    petsc(COMM)
    caught = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM]


def test_without_petsc_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "petsc4py", None)
    A = Dense(positive(5))
    with pytest.raises(InputError, match="install petsc4py"):
        solve(A, np.ones((5, 1))[A.rows], SHIFT)


START_ORDER = """
import numpy as np
from mpi4py import MPI
from hpcHess.krylov.solve import solve

class Diagonal:
    def __init__(self, comm):
        self.comm, self.shape = comm, (3 * comm.size, 3 * comm.size)
    def matmat_rows(self, V):
        return 2 * V

def converges(comm):
    return solve(Diagonal(comm), np.ones((3, 1)), 1.0).converged

world = MPI.COMM_WORLD
some = world.Split(0 if world.rank < 2 else MPI.UNDEFINED)
if some != MPI.COMM_NULL:
    assert converges(some)
    some.Free()
assert converges(world)
"""


@pytest.mark.skipif(COMM.size > 1, reason="starts its own mpiexec")
def test_ranks_may_start_petsc_at_different_times(tmp_path):
    """PetscInitialize is collective over its world: ranks that start later must not wait for those that have started."""
    script = tmp_path / "start.py"
    script.write_text(START_ORDER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_COMM_", "PMIX_", "OMPI_UNIVERSE"))}
    environment.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1")
    environment.update(OMPI_MCA_hwloc_base_binding_policy="none", PYTHONPATH=str(Path(__file__).parents[2]))
    command = ["timeout", "-k", "5", "30", "mpiexec", "-n", "3", sys.executable, str(script)]
    run = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_vectors_lie_where_the_matrix_computes(comm, monkeypatch):
    """On the device if and only if both the matrix and PETSc are there; PETSc's configuration is asked, here a stand-in's."""
    PETSc = petsc(comm)
    for name, has_cuda, expected in (("cupy", True, True), ("cupy", False, False), ("native", True, False), (None, True, False)):
        asked = []
        fake = SimpleNamespace(Sys=SimpleNamespace(hasExternalPackage=lambda package: asked.append(package) or has_cuda))  # noqa: B023
        A = SimpleNamespace() if name is None else SimpleNamespace(backend=SimpleNamespace(name=name))
        assert device_vectors(fake, A) is expected and asked in ([], ["cuda"])
    A = Dense(np.diag(np.arange(1.0, 13)))
    assert petsc_mat(A).getVecType() in ("standard", "seq", "mpi")
    if not PETSc.Sys.hasExternalPackage("cuda"):
        A.backend = SimpleNamespace(name="cupy")  # without CUDA in PETSc its vectors stay on the host, and products work
        mat = petsc_mat(A)
        x, y = mat.createVecs()
        x.set(1.0)
        mat.mult(x, y)
        assert x.getType() in ("seq", "mpi") and np.isclose(y.sum(), 78)
    else:
        A.backend = SimpleNamespace(name="cupy")
        assert petsc_mat(A).createVecRight().getType().endswith("cuda")
