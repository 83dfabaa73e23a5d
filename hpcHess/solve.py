"""mpiexec -n P python -m hpcHess.solve F.h5 --rhs B.npy --output X.npy --damping λ: solve with a stored matrix."""

import argparse

import numpy as np

from hpcHess.curvature.from_job import operator_of_matrix
from hpcHess.hierarchical.damping import damping_of, parse_damping
from hpcHess.hierarchical.file import load
from hpcHess.krylov.solve import column_norms, solve
from hpcHess.runtime.errors import DONE, NOT_CONVERGED, InputError
from hpcHess.runtime.session import run_driver
from hpcHess.storage.vectors import check_finite, check_output, read_rows, write_rows


def build_parser():
    """Arguments of the driver."""
    parser = argparse.ArgumentParser(prog="hpcHess.solve", description=__doc__, epilog="PETSc options (-ksp_type …) are passed through.")
    parser.add_argument("factors", metavar="F.h5", help="factor file of hpcHess.compress")
    parser.add_argument("--rhs", required=True, metavar="B", help="B.npy or file.h5:/name, [N] or [N, k], PyTorch parameter order")
    parser.add_argument("--output", required=True, metavar="X", help="where to write the solution, as --rhs")
    parser.add_argument("--damping", required=True, type=parse_damping, metavar="λ", help="a number ≥ 0, or like 0.01*lmax")
    parser.add_argument("--refine", choices=("none", "exact"), default="none", help="exact: solve with the uncompressed operator by PETSc")
    parser.add_argument("--rtol", type=float, help="with --refine exact: true residual of every column (1e-8)")
    parser.add_argument("--backend", default="auto", choices=("auto", "numpy", "native", "cupy"), help="array backend")
    return parser


def main(session, args):
    """X = (H̃ + λI)⁻¹B, or (H + λI)⁻¹B with --refine exact; both residuals. Collective; exit status 4 where not converged."""
    comm = session.comm
    if args.rtol is not None and args.refine != "exact":
        raise InputError("--rtol is the residual against the exact operator: it needs --refine exact")
    rtol = 1e-8 if args.rtol is None else args.rtol
    if not 0 < rtol < 1:
        raise InputError(f"--rtol must lie between 0 and 1, not {rtol}")
    check_output(args.output, comm, args.rhs)
    with session.phase("read"):
        matrix = load(args.factors, comm, args.backend)
        B, flat = read_rows(args.rhs, comm, matrix.n_params)
        B = B.astype(np.float64, copy=False)
    damping = damping_of(args.damping, matrix)
    operator, reason = _exact_operator(session, matrix, args.refine == "exact")
    error = matrix.report.get("error_spectral", 0.0)
    shift = max(damping, 2 * error) if args.refine == "exact" else damping
    if shift > damping:  # (H̃ + μI)⁻¹ with μ > ‖H̃ − H‖₂ is definite, and a better preconditioner than a meaningless inverse
        why = f"as λ = {damping:.3g} does not clearly exceed the compression error"
        tell = session.warn if damping <= error else session.say
        tell(f"preconditioner: factors of H̃ + μI, μ = {shift:.3g} = 2 ‖H̃ − H‖₂, {why}")
    with session.phase("Woodbury factors"):
        factors = matrix.factorize(shift)
    status, iterations = DONE, None
    if args.refine == "exact":
        found = solve(
            operator, B, damping, preconditioner=factors, rtol=rtol, options=session.petsc_options,
            definite=factors.negative == 0, progress=session.progress,
        )  # fmt: skip
        X, iterations = found.X_local, found.iterations
        if not found.converged:
            session.warn(
                f"not converged: largest residual {found.residuals.max():.2e} after {iterations} iterations, asked {rtol:g}; "
                "compress with a smaller rtol, use a larger damping, or allow more with -ksp_max_it"
            )
            status = NOT_CONVERGED
    else:
        with session.phase("solve"):
            X = factors.solve_rows(B)
    check_finite(X, comm, "solution")
    with session.phase("write"):
        write_rows(args.output, comm, X, flat, matrix.n_params)
    _report(session, matrix, operator, reason, factors, X, B, damping, iterations)
    return status


def _exact_operator(session, matrix, required):
    """(operator in float64, "") or (None, why it is not available)."""
    try:
        with session.phase("network and data"):
            return operator_of_matrix(matrix), ""
    except InputError as error:
        if required:
            raise
        return None, str(error)


def _report(session, matrix, operator, reason, factors, X, B, damping, iterations):
    """Both residuals, log-determinant and inertia, on standard output."""
    comm, output = session.comm, session.output
    norms = column_norms(comm, B)
    scale = np.where(norms > 0, norms, 1)

    def worst(A):
        residuals = column_norms(comm, B - A.matmat_rows(X) - damping * X) / scale
        return f"max {residuals.max(initial=0):.2e}, median {np.median(residuals):.2e}"

    sides = f"{X.shape[1]} right-hand side{'s' if X.shape[1] > 1 else ''}"
    output(f"{sides}, damping {damping:.6g}" + (f", {iterations} iterations" if iterations is not None else ""))
    output(f"compressed residual ‖b − (H̃+λI)x‖/‖b‖: {worst(matrix)}")
    if operator is None:
        output(f"exact residual: not available ({reason})")
    else:
        output(f"exact residual ‖b − (H+λI)x‖/‖b‖: {worst(operator)}")
    if factors.damping != damping:
        return
    sign, log_abs = factors.slogdet()
    positive, negative = factors.inertia()
    output(f"log|det(H̃+λI)| = {log_abs:.10g}, sign {sign:+.0f}, inertia {positive} positive, {negative} negative")


if __name__ == "__main__":
    run_driver("solve", build_parser, main)
