"""Solves with H̃ + λI where there are no direct factors (FMM), by PETSc's KSP with the factors of a coarser HSS matrix.

CG where all is definite; MINRES (Paige & Saunders 1975) where H̃ + λI is not, with the factors' absolute value as preconditioner
(`Factors.preconditioner`).
"""

import numpy as np

from hpcHess.krylov.solve import solve
from hpcHess.parallel.agree import tell


def preconditioning_factors(matrix, damping, solver=None):
    """Factors that precondition H̃ + λI and H + λI: of H̃ itself, or of its coarser HSS matrix; None where there is neither.

    They are those of μ = max(λ, 2 ‖H̃ − H‖₂) (of that matrix): definite wherever H is semidefinite, and better than a meaningless inverse.
    """
    direct = matrix if matrix.format == "hss" else matrix.preconditioner
    if direct is None:
        return None
    return direct.factorize(max(damping, 2 * direct.report.get("error_spectral", 0.0)), solver)


def solve_iteratively(matrix, B, damping, solver=None, rtol=1e-10, **keywords):
    """`krylov.solve.Result` of (H̃ + λI) X = B in parameter rows [n_local, k]; keywords as of `krylov.solve.solve`. Collective."""
    factors = preconditioning_factors(matrix, damping, solver)
    if factors is None:
        return solve(matrix, B, damping, rtol=rtol, **keywords)
    return solve(matrix, B, damping, preconditioner=factors.preconditioner(), rtol=rtol, definite=factors.definite, **keywords)


def solve_rows(matrix, B, damping, solver=None, rtol=1e-10):
    """X of `solve_iteratively`, float64 [n_local, k]; HpcHessWarning where the residual asked for was not reached. Collective."""
    found = solve_iteratively(matrix, np.asarray(B, np.float64), damping, solver, rtol)
    if not found.converged:
        worst = found.residuals.max()
        tell(matrix.comm, [f"the solve stopped at a residual of {worst:.1e} after {found.iterations} iterations, asked {rtol:g}"])
    return found.X_local
