"""Solves with H̃ + λI where there are no direct factors (FMM), and with H + λI, by PETSc's KSP with direct factors as preconditioner.

CG where all is definite; MINRES (Paige & Saunders, SINUM 1975) where the system is not, with the factors' absolute value as preconditioner
(`Factors.preconditioner`).
"""

import numpy as np

from hpcHess.hierarchical.damping import check_damping, digits_lost, uncovered
from hpcHess.hierarchical.solvers import direct_solver
from hpcHess.krylov.solve import solve
from hpcHess.parallel.agree import tell

RTOL = 1e-10  # of solves with H̃ + λI


def safe_shift(matrix, damping):
    """μ = max(λ, 2 ‖H̃ − H‖₂) of an HSS matrix: H̃ + μI is definite wherever H is semidefinite, and preconditions H + λI better than the
    meaningless inverse at a λ below the error.
    """
    return max(damping, 2 * matrix.report.get("error_spectral", 0.0))


def preconditioning_factors(matrix, damping, solver=None):
    """Direct factors that precondition H̃ + λI and H + λI: of H̃ where it is HSS, else of its coarser HSS matrix (None without one).

    Those of `safe_shift`, or, where these are indefinite, as H then is, of λ. HpcHessWarning where they have lost digits. Collective.
    """
    direct = matrix if matrix.format == "hss" else matrix.preconditioner
    check_damping(damping)
    if direct is None:
        return None
    factors = direct.factors(safe_shift(direct, damping), solver or matrix.solver)
    if factors.negative and factors.damping > damping:
        factors = direct.factors(damping, solver or matrix.solver)
    tell(matrix.comm, digits_lost(factors))
    return factors


def solve_iteratively(operator, matrix, B, damping, solver=None, rtol=RTOL, **keywords):
    """`krylov.solve.Result` of (A + λI) X = B, parameter rows [n_local, k], A = `operator`: the compressed `matrix` itself or H.

    keywords: as of `krylov.solve.solve`. Collective.
    """
    factors = preconditioning_factors(matrix, damping, solver)
    if factors is None:
        return solve(operator, B, damping, rtol=rtol, **keywords)
    return solve(operator, B, damping, preconditioner=factors.preconditioner(), rtol=rtol, definite=factors.definite, **keywords)


def solve_rows(matrix, B, damping, solver=None, rtol=RTOL):
    """X of (H̃ + λI) X = B by `solve_iteratively`, float64 [n_local, k]. Collective.

    HpcHessWarning where λ is below the compression error, or the residual asked for was not reached.
    """
    direct_solver(solver or matrix.solver)
    tell(matrix.comm, uncovered(matrix, damping))
    found = solve_iteratively(matrix, matrix, np.asarray(B, np.float64), damping, solver, rtol)
    if not found.converged:
        worst = found.residuals.max()
        tell(matrix.comm, [f"the solve stopped at a residual of {worst:.1e} after {found.iterations} iterations, asked {rtol:g}"])
    return found.X_local
