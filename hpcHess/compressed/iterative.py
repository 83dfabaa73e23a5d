"""Solves with H̃ + λI where there are no direct factors, and with H + λI, by PETSc's KSP with approximate inverses as preconditioners.

CG where all is definite; MINRES (Paige & Saunders, SINUM 1975) where the system is not, with the factors' absolute value as preconditioner
(`compressed.factors.DirectFactors.preconditioner`).
"""

import numpy as np

from hpcHess.compressed.damping import check_damping, digits_lost, uncovered
from hpcHess.compressed.certificate import smallest_eigenvalue
from hpcHess.krylov.solve import solve
from hpcHess.parallel.agree import tell
from hpcHess.runtime.errors import InputError

RTOL = 1e-10  # of solves with H̃ + λI


def safe_shift(matrix, damping):
    """μ = max(λ, 2 ‖H̃ − H‖₂): H̃ + μI is definite wherever H is semidefinite, and preconditions H + λI better than the
    meaningless inverse at a λ below the error. Of the coarser matrix of an FMM one the distance is that to the FMM matrix, which is what
    it preconditions first: max(λ, 2 ‖H̃_coarse − H̃‖₂).
    """
    return max(damping, 2 * matrix.report.get("error_spectral", 0.0))


def preconditioning_factors(matrix, damping, solver=None):
    """Direct factors that precondition H̃ + λI and H + λI: of H̃ where it has any, else of its `preconditioner` (None without one).

    Those of `safe_shift`, or, where these are indefinite, as H then is, of λ. What is made or was stored before is used again.
    HpcHessWarning where they have lost digits. Collective.
    """
    direct, solver = matrix if matrix.direct else matrix.preconditioner, solver or matrix.solver
    check_damping(damping)
    if direct is None:
        return None
    shift = safe_shift(direct, damping)
    if shift > damping and (_indefinite(direct, shift, damping, solver) or direct.factors(shift, solver).negative):
        shift = damping
    factors = direct.factors(shift, solver)
    tell(matrix.comm, digits_lost(factors))
    return factors


def _indefinite(direct, shift, damping, solver):
    """Whether H̃ + μI is known to be indefinite: by factors, or, where those of λ are at hand and indefinite, by Rayleigh quotients, which
    prove it at the cost of a few products. Collective.
    """
    if direct.indefinite < shift and not direct.holds(shift, solver) and direct.holds(damping, solver) and direct.indefinite >= damping:
        direct.indefinite = max(direct.indefinite, -smallest_eigenvalue(direct))
    return direct.indefinite >= shift


def solve_iteratively(operator, matrix, B, damping, solver=None, rtol=RTOL, factors=None, **keywords):
    """`krylov.solve.Result` of (A + λI) X = B, parameter rows [n_local, k], A = `operator`: the compressed `matrix` itself or H.

    factors: those of `preconditioning_factors` where they are at hand; keywords: as of `krylov.solve.solve`. Collective.
    """
    if damping == 0 and matrix.n_alive < matrix.n_params:
        _check_dead(matrix, B)
    factors = factors or matrix.preconditioning_factors(damping, solver)
    if factors is None:
        return solve(operator, B, damping, rtol=rtol, **keywords)
    return solve(operator, B, damping, preconditioner=factors.preconditioner(), rtol=rtol, definite=factors.definite, **keywords)


def _check_dead(matrix, B):
    """InputError where λ = 0 and b is not zero in a row of H̃ that is, by its diagonal. Collective."""
    rows = np.asarray(matrix.diagonal_rows()) == 0
    if matrix.comm.allreduce(int(np.any(np.asarray(B)[rows]))):
        raise InputError("H̃ is singular: dead parameters have zero rows, where the right-hand side is not zero; use a damping > 0")


def solve_rows(matrix, B, damping, solver=None, rtol=RTOL):
    """X of (H̃ + λI) X = B by `solve_iteratively`, float64 [n_local, k]. Collective.

    HpcHessWarning where λ is below the compression error, or the residual asked for was not reached.
    """
    check_damping(damping)
    if solver is not None and matrix.preconditioner is None:
        raise InputError(f"solves with the format {matrix.format} are iterative: there is no solver to choose")
    tell(matrix.comm, uncovered(matrix, damping))
    found = solve_iteratively(matrix, matrix, np.asarray(B, np.float64), damping, solver, rtol)
    if not found.converged:
        worst = found.residuals.max()
        tell(matrix.comm, [f"the solve stopped at a residual of {worst:.1e} after {found.iterations} iterations, asked {rtol:g}"])
    return found.X_local
