"""(A + σI) X = B for many right-hand sides by PETSc's KSP, every column to its own true residual."""

import warnings
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from hpcHess.krylov.library import option_database, own_options, pairs, petsc
from hpcHess.krylov.preconditioner import petsc_pc
from hpcHess.krylov.shell import check_index_range, local_rows, petsc_mat
from hpcHess.parallel.agree import tell
from hpcHess.runtime.errors import HpcHessWarning, InputError
from hpcHess.runtime.progress import Silent

AIM = 0.9  # of rtol: whoever computes the residual again finds it below rtol
ENOUGH = 0.5  # a round must at least halve the largest residual, or there is no next one


@dataclass(frozen=True)
class Result:
    """X_local [n_local, k] float64 and how it was reached; residuals ‖b − (A+σI)x‖/‖b‖ [k] are computed, not estimated.

    `method`: PETSc's name of the last Krylov method.
    """

    X_local: np.ndarray
    iterations: int
    converged: bool
    residuals: np.ndarray
    method: str = ""


def solve(
    A,
    B_local,
    shift,
    preconditioner=None,
    rtol=1e-8,
    max_iterations=1000,
    options=(),
    definite=True,
    block=64,
    progress=None,
):
    """Solve (A + σI) X = B, A symmetric, σ = `shift`, to ‖b − (A+σI)x‖ ≤ rtol·‖b‖ for every column. Collective over A.comm.

    A                 `comm`, `shape`, `matmat_rows`; `diagonal` where PETSc options ask for it
    B_local           [n_local, k] (or [n_local]) parameter rows
    preconditioner    None or an object with `solve_rows(B [n_local, k])`, an approximate (A + σI)⁻¹ of any precision; positive definite
                      where it has an attribute `definite` that is true (default: as the system)
    max_iterations    most iterations of one block of columns, over all its rounds; the option -ksp_max_it has precedence
    options           PETSc options as words, e.g. ["-ksp_type", "gmres", "-ksp_monitor"]
    definite          whether A + σI is positive definite: CG, else MINRES; FGMRES where the preconditioner is not. CG that meets
                      negative curvature gives way to MINRES
    block             most columns at once

    The columns of a block, divided by ‖b_c‖, are one system I ⊗ (A + σI) with one Krylov space. The norm of its residual bounds that of
    each column, so the absolute test ‖R‖_F ≤ rtol is a test on every column. What recurrences and a float32 preconditioner
    hide is found by the true residuals, in float64; columns above rtol are solved again for the correction (iterative
    refinement), as long as a round halves the largest residual. b = 0 has x = 0.

    Raises InputError for a right-hand side of the wrong size or not finite, and for options that PETSc refuses.
    """
    B = np.asarray(B_local, dtype=np.float64)
    if any(A.comm.allgather(B.shape[:1] != (local_rows(A),))):
        raise InputError(f"the right-hand side has not the {A.shape[0]} rows of the operator")
    flat, B = B.ndim == 1, B[:, None] if B.ndim == 1 else B
    norms = column_norms(A.comm, B)
    if not np.isfinite(norms).all():
        raise InputError("the right-hand side holds NaN or Inf")
    PETSc = petsc(A.comm, options)
    check_index_range(PETSc, A.shape[0])
    block = max(1, min(block, np.iinfo(PETSc.IntType).max // A.shape[0]))
    nonzero = np.flatnonzero(norms)
    X, residuals, iterations = np.zeros_like(B), np.zeros(len(norms)), 0
    with option_database(PETSc, options) as database, (progress or Silent()).phase("krylov") as steps:
        if database.hasName("ksp_max_it"):
            max_iterations = own_options(PETSc, lambda: database.getInt("ksp_max_it"), options)
        method = _Method(PETSc, A, shift, preconditioner, AIM * rtol, options, database, definite, steps)
        for start in range(0, len(nonzero), block):
            columns = nonzero[start : start + block]
            Y, residuals[columns], count = _refine(method, B[:, columns] / norms[columns], AIM * rtol, max_iterations)
            X[:, columns] = Y * norms[columns]
            iterations += count
        method.warn_unused()
    return Result(X[:, 0] if flat else X, iterations, bool((residuals <= rtol).all()), residuals, method.name)


def column_norms(comm, V_local):
    """Euclidean norms [k] of the columns of a distributed V [n_local, k], float64, without overflow. Collective."""
    V = np.asarray(V_local, dtype=np.float64)
    largest = np.abs(V).max(axis=0, initial=0.0)
    comm.Allreduce(MPI.IN_PLACE, largest, op=MPI.MAX)
    with np.errstate(invalid="ignore"):  # Inf/Inf: the norm is NaN, and so reported
        scaled = V / np.where(largest > 0, largest, 1.0)
    squares = np.einsum("ij,ij->j", scaled, scaled)
    comm.Allreduce(MPI.IN_PLACE, squares, op=MPI.SUM)
    return largest * np.sqrt(squares)


def _refine(method, B, rtol, max_iterations):
    """(X, residuals, iterations) for unit columns B: rounds of Krylov solves for the correction of the columns that are not done."""
    X, R = np.zeros_like(B), B.copy()
    residuals = np.ones(B.shape[1])
    iterations = 0
    while iterations < max_iterations:
        active = np.flatnonzero(residuals > rtol)
        if not len(active):
            break
        correction, count = method.krylov(R[:, active], max_iterations - iterations)
        iterations += max(count, 1)
        candidate = X[:, active] + correction
        remainder = B[:, active] - method.product(candidate)
        reached = column_norms(method.comm, remainder)
        better = reached < residuals[active]  # not where it is NaN
        taken = active[better]
        before = residuals[active].max()
        X[:, taken], R[:, taken], residuals[taken] = candidate[:, better], remainder[:, better], reached[better]
        if residuals.max() > ENOUGH * before and not method.changed():
            break
    return X, residuals, iterations


class _Method:
    """One system, its preconditioner and its KSP's settings, for any number of columns."""

    def __init__(self, PETSc, A, shift, preconditioner, rtol, options, database, definite, steps):
        self.comm = A.comm
        self._PETSc, self._A, self._shift, self._S, self._rtol = PETSc, A, shift, preconditioner, rtol
        self._options, self._database, self._steps = list(options), database, steps
        self._definite_S = preconditioner is None or getattr(preconditioner, "definite", definite)
        self._type = ("cg" if definite else "minres") if self._definite_S else "fgmres"
        self.name, self._reason = self._type, 0
        self._unused = []

    def product(self, X):
        """(A + σI) X in float64. Collective."""
        return np.asarray(self._A.matmat_rows(X), dtype=np.float64) + self._shift * X

    def krylov(self, R, max_iterations):
        """(D, iterations): (A + σI) D = R until ‖R − (A+σI)D‖_F ≤ rtol by the method's own count. Collective."""
        columns = R.shape[1]
        with _Destroyed() as owned:
            mat = owned(petsc_mat(self._A, self._shift, columns))
            ksp = owned(self._ksp(mat, columns, max_iterations))
            b, x = (owned(vec) for vec in mat.createVecs())
            b.getArray()[:] = R.reshape(-1)
            try:
                ksp.solve(b, x)
            except self._PETSc.Error as error:
                if error.__cause__ is None:
                    raise
                raise error.__cause__ from None  # what the operator raised: petsc4py ≥ 3.19 wraps it
            self.name, self._reason = ksp.getType(), ksp.getConvergedReason()
            if hasattr(self._database, "used"):  # petsc4py ≥ 3.19
                self._unused = [name for name, _ in pairs(self._options) if not self._database.used(name)]
            return x.getArray().reshape(-1, columns).copy(), ksp.getIterationNumber()

    def changed(self):
        """Whether the last round found its method's assumption wrong; the next ones use MINRES, or FGMRES."""
        reasons = self._PETSc.KSP.ConvergedReason
        what = {reasons.DIVERGED_INDEFINITE_PC: "preconditioner", reasons.DIVERGED_INDEFINITE_MAT: "system"}.get(self._reason)
        if what is None or self._type == "fgmres" or self._database.hasName("ksp_type"):
            return False
        former, self._type = self._type, "minres" if what == "system" and self._type == "cg" and self._definite_S else "fgmres"
        text = f"the {what} is not positive definite: {self._type.upper()} instead of {former.upper()}"
        tell(self.comm, [text])
        return True

    def warn_unused(self):
        """Tell which options PETSc never asked for: usually a misspelt name."""
        if self._unused:
            warnings.warn(f"PETSc did not use {' '.join(self._unused)}", HpcHessWarning, stacklevel=3)

    def _ksp(self, mat, columns, max_iterations):
        """A KSP that tests the true residual's norm where its type can (those that cannot: their own norm, relative)."""
        ksp = self._configured(mat, columns, max_iterations)
        ksp.setNormType(self._PETSc.KSP.NormType.UNPRECONDITIONED)
        ksp.setTolerances(rtol=0.0, atol=self._rtol)
        own_options(self._PETSc, ksp.setFromOptions, self._options)
        ksp.setTolerances(max_it=max_iterations)  # the rest of what -ksp_max_it allows
        try:
            ksp.setUp()
            return ksp
        except self._PETSc.Error:  # no such norm in this method, or the options' fault: the second try tells
            ksp.destroy()
        ksp = self._configured(mat, columns, max_iterations)
        ksp.setTolerances(rtol=self._rtol)
        own_options(self._PETSc, ksp.setFromOptions, self._options)
        ksp.setTolerances(max_it=max_iterations)
        own_options(self._PETSc, ksp.setUp, self._options)
        return ksp

    def _configured(self, mat, columns, max_iterations):
        ksp = self._PETSc.KSP().create(comm=self.comm)
        ksp.setType(self._type)
        if self._S is None:
            ksp.getPC().setType("none")
        else:
            ksp.setPC(petsc_pc(self._S, columns))
        ksp.setOperators(mat)
        ksp.setTolerances(divtol=1e100, max_it=max_iterations)
        ksp.setMonitor(lambda _ksp, iteration, _norm: self._steps.advance() if iteration else None)
        return ksp


class _Destroyed:
    """`with _Destroyed() as owned: vec = owned(…)`: PETSc objects destroyed in order, on all ranks alike, not when Python collects them."""

    def __enter__(self):
        self._objects = []
        return self._own

    def _own(self, thing):
        self._objects.append(thing)
        return thing

    def __exit__(self, *_error):
        for thing in reversed(self._objects):
            thing.destroy()
