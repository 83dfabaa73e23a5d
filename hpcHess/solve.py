"""mpiexec -n P python -m hpcHess.solve F.h5 --rhs B.npy --output X.npy --damping λ: solve with a stored matrix."""

import argparse

import numpy as np

from hpcHess.compressed.damping import damping_of, parse_damping, uncovered
from hpcHess.compressed.iterative import RTOL, solve_iteratively
from hpcHess.curvature.from_job import files_of_matrix, operator_of_matrix
from hpcHess.formats.file import load
from hpcHess.krylov.solve import column_norms
from hpcHess.parallel.agree import tell
from hpcHess.runtime.errors import DONE, NOT_CONVERGED, InputError
from hpcHess.runtime.schema import SOLVERS
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
    parser.add_argument("--rtol", type=float, help="residual of every column, where PETSc solves (--refine exact: 1e-8; FMM matrices: 1e-10)")
    parser.add_argument("--solver", choices=SOLVERS, help="form of the direct factors (default: compress.solver of the file's job)")
    parser.add_argument("--backend", default="auto", choices=("auto", "numpy", "native", "cupy"), help="array backend")
    return parser


def main(session, args):
    """X = (H̃ + λI)⁻¹B, or (H + λI)⁻¹B with --refine exact; both residuals. Collective; exit status 4 where not converged."""
    comm, exact = session.comm, args.refine == "exact"
    if args.rtol is not None and not 0 < args.rtol < 1:
        raise InputError(f"--rtol must lie between 0 and 1, not {args.rtol}")
    check_output(args.output, comm, args.rhs)
    with session.phase("read"):
        matrix = load(args.factors, comm, args.backend)
        check_output(args.output, comm, files=files_of_matrix(matrix))
        direct = matrix.direct and not exact
        if args.rtol is not None and direct:
            raise InputError("--rtol is the residual of PETSc's solves: it needs --refine exact, or a format without direct factors")
        B, flat = read_rows(args.rhs, comm, matrix.n_params)
        B = B.astype(np.float64, copy=False)
    damping = damping_of(args.damping, matrix)
    operator, reason = _exact_operator(session, matrix, exact, args.backend)
    matrix.operator = operator  # some formats' preconditioners are made from it
    status = DONE
    if direct:
        with session.phase("factors"):
            factors = matrix.factorize(damping, args.solver)
        with session.phase("solve"):
            X = factors.solve_rows(B)
        how = f"{factors.described}, backward error {factors.backward_error:.1e}"
    else:
        rtol = args.rtol or (1e-8 if exact else RTOL)
        X, factors, how, converged = _krylov(session, matrix, operator if exact else matrix, B, damping, rtol, args.solver)
        status = DONE if converged else NOT_CONVERGED
    check_finite(X, comm, "solution")
    with session.phase("write"):
        write_rows(args.output, comm, X, flat, matrix.n_params)
    _report(session, matrix, operator, reason, X, B, damping, how)
    if factors is not None and matrix.direct and factors.damping == damping and factors.matrix is matrix:
        (sign, log_abs), (positive, negative) = factors.slogdet(), factors.inertia()
        session.output(f"log|det(H̃+λI)| = {log_abs:.10g}, sign {sign:+.0f}, inertia {positive} positive, {negative} negative")
    return status


def _krylov(session, matrix, A, B, damping, rtol, solver):
    """(X, factors, how, converged): (A + λI) X = B by PETSc, with what preconditions H̃ + λI. Collective."""
    comm, error = session.comm, matrix.report.get("error_spectral", 0.0)
    with session.phase("factors"):
        factors = matrix.preconditioning_factors(damping, solver)
    if A is matrix:
        tell(comm, uncovered(matrix, damping))
    elif factors is not None and factors.damping > damping:
        why = f"as λ = {damping:.3g} does not clearly exceed it"
        say = session.warn if damping + matrix.l2 <= error else session.say
        distance = "‖H̃ − H‖₂" if factors.matrix is matrix else "‖coarse − H̃‖₂"
        say(f"preconditioner: factors of H̃ + μI, μ = {factors.damping:.3g} = 2 {distance}{' − l2' if matrix.l2 else ''}, {why}")
    found = solve_iteratively(A, matrix, B, damping, solver, rtol, factors, options=session.petsc_options, progress=session.progress)
    if not found.converged:
        session.warn(
            f"not converged: largest residual {found.residuals.max():.2e} after {found.iterations} iterations, asked {rtol:g}; "
            "compress with a smaller rtol, use a larger damping, or allow more with -ksp_max_it"
        )
    how = f"{found.iterations} iterations of {found.method.upper()}"
    if factors is not None:
        how += f", preconditioned by {_described(factors, matrix)}"
    return found.X_local, factors, how, found.converged


def _described(factors, matrix):
    """What the preconditioner is, for people."""
    coarse = ""
    if factors.matrix is matrix and not matrix.direct:  # of a part of the matrix: not its factors
        return f"{factors.solver}, an approximate inverse"
    if factors.matrix is not matrix and factors.matrix.format == "hss":
        error = factors.matrix.report.get("error_estimate", {}).get("value", np.nan)
        coarse = f" of a coarser {factors.matrix.format.upper()} matrix (error {error:.2g} of ‖H‖_F)"
    backward = "" if np.isnan(factors.backward_error) else f", backward error {factors.backward_error:.1e}"
    return f"{getattr(factors, 'described', factors.solver)}{coarse}{backward}"


def _exact_operator(session, matrix, required, backend):
    """(operator in float64, "") or (None, why it is not available)."""
    try:
        with session.phase("network and data"):
            return operator_of_matrix(matrix, backend=backend), ""
    except InputError as error:
        if required:
            raise
        return None, str(error)


def _report(session, matrix, operator, reason, X, B, damping, how):
    """What was solved, how, and both residuals, on standard output."""
    comm, output = session.comm, session.output
    norms = column_norms(comm, B)
    scale = np.where(norms > 0, norms, 1)

    def worst(A):
        residuals = column_norms(comm, B - A.matmat_rows(X) - damping * X) / scale
        return f"max {residuals.max(initial=0):.2e}, median {np.median(residuals):.2e}"

    l2 = f" and l2 = {matrix.l2:.6g} (H̃ and H hold it)" if matrix.l2 else ""
    output(f"{X.shape[1]} right-hand side{'s' if X.shape[1] > 1 else ''}, damping {damping:.6g}{l2}\nsolver: {how}")
    output(f"compressed residual ‖b − (H̃+λI)x‖/‖b‖: {worst(matrix)}")
    output(f"exact residual{f': not available ({reason})' if operator is None else f' ‖b − (H+λI)x‖/‖b‖: {worst(operator)}'}")


if __name__ == "__main__":
    run_driver("solve", build_parser, main)
