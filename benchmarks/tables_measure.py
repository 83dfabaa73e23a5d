"""mpiexec -n P python -m benchmarks.tables_measure F.h5 --output R.json: products and solves of a factor file, and what the machine reaches.

A part of `benchmarks.tables`, which compresses with `hpcHess.compress` and calls this for every factor file.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import machine, models, rows
from benchmarks.ceilings import CeilingMeter
from benchmarks.tables_cases import COVERED
from benchmarks.timing import once, repeated
from hpcHess.curvature.from_job import operator_of_matrix
from hpcHess.compressed.damping import damping_of, parse_damping
from hpcHess.formats.file import load
from hpcHess.compressed.iterative import preconditioning_factors, solve_iteratively
from hpcHess.hierarchical.solvers import DIRECT, direct_solver
from hpcHess.krylov.solve import column_norms
from hpcHess.parallel.agree import on_root
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import DONE, InputError
from hpcHess.runtime.session import run_driver

COLUMNS = (1, 64)  # of products; of solves also all of --columns
REFINE_ITERATIONS = 100


def build_parser():
    """Arguments."""
    parser = argparse.ArgumentParser(prog="benchmarks.tables_measure", description=__doc__.splitlines()[0])
    parser.add_argument("factors", metavar="F.h5", help="factor file of hpcHess.compress")
    parser.add_argument("--output", required=True, metavar="R.json", help="where the results go")
    parser.add_argument("--repeat", type=int, default=5, metavar="n", help="runs of which the median counts (5)")
    parser.add_argument("--budget", type=float, default=3.0, metavar="s", help="no further run after so many seconds (3)")
    parser.add_argument("--damping", metavar="λ", help=f"also solve: a number, 0.01*lmax, or {COVERED} for 2 ‖H̃ − H‖₂")
    parser.add_argument("--solvers", nargs="+", choices=tuple(DIRECT), default=("elimination",), help="forms of the factors")
    parser.add_argument("--columns", type=int, default=100, metavar="k", help="most right-hand sides (100)")
    parser.add_argument("--refine-columns", type=int, default=100, metavar="k", help="of these refined with the exact matrix (100)")
    parser.add_argument("--refine-rtol", type=float, default=1e-8, metavar="ε", help="to this residual (1e-8)")
    parser.add_argument("--brief", action="store_true", help="ceilings of small arrays alone")
    return parser


def main(session, args):
    """Measure and write the JSON file. Collective."""
    comm = session.comm
    if args.repeat < 1 or not args.budget > 0 or min(args.columns, args.refine_columns) < 1 or not 0 < args.refine_rtol < 1:
        raise InputError("--repeat, --columns, --refine-columns must be at least 1, --budget positive, --refine-rtol between 0 and 1")
    meter = CeilingMeter(comm, 256, (1 << 20,)) if args.brief else CeilingMeter(comm)
    with session.phase("ceilings"):
        meter.sample(2)
    with session.phase("read"):
        matrix = load(args.factors, comm)
    with session.phase("products"):
        operator = operator_of_matrix(matrix, np.float64 if matrix.dtype == np.float64 else np.float32)
        measured = products(matrix, operator, args.repeat, args.budget)
    found = {"machine": machine.describe(comm), "solves": []}
    if args.damping is not None:
        exact = operator_of_matrix(matrix)
        damping = 2 * matrix.report["error_spectral"] if args.damping == COVERED else damping_of(parse_damping(args.damping), matrix)
        for solver in args.solvers:
            with session.phase(f"solves, {solver}"):
                found["solves"].append(Solving(matrix, exact, damping, solver, args).run())
    with session.phase("ceilings again"):
        meter.sample(1)
    ceilings = meter.ceilings()
    found["products"] = {name: rows.row(name, seconds, work, ceilings) for name, (seconds, work) in measured.items()}
    found["ceilings"] = ceilings.as_dict()
    on_root(comm, Path(args.output).write_text, json.dumps(found, indent=1, ensure_ascii=False), "utf-8")
    return DONE


def vectors(matrix, k, dtype, stream):
    """Own parameter rows of a fixed Gaussian matrix, [n_local, k]."""
    lo, hi = matrix.tree_rows(matrix.parameter_starts)
    return np.ascontiguousarray(gaussian_rows(0, stream, lo, hi, range(k), dtype))


def products(matrix, operator, repeats, budget):
    """{name: (seconds, Work)} of H̃V in the stored type and HV in the compression's, for 1 and 64 vectors. Collective."""
    found, comm = {}, matrix.comm
    for k in COLUMNS:
        V = vectors(matrix, k, matrix.dtype, "product")
        seconds, _ = repeated(comm, partial(matrix.matmat_rows, V), 4 * repeats, budget)
        found[f"compressed {k}"] = seconds.as_dict(), models.matrix_product(matrix, k, V.dtype).summed(comm)
        seconds, _ = repeated(comm, partial(operator.matmat_rows, V.astype(operator.dtype)), repeats, budget)
        found[f"exact {k}"] = seconds.as_dict(), None
    return found


class Solving:
    """Factors of one form: their seconds, solves of 1, 64 and all right-hand sides, residuals, refinement. All methods are collective."""

    def __init__(self, matrix, exact, damping, solver, args):
        self.matrix, self.exact, self.damping, self.solver, self.args = matrix, exact, damping, solver, args
        self.B = vectors(matrix, args.columns, np.float64, "rhs")

    def run(self):
        """Plain values."""
        direct = self.matrix.format == "hss"
        found = {"solver": self.solver, "damping": self.damping, "error_spectral": self.matrix.report["error_spectral"], "columns": self.args.columns}
        found |= self.directly() if direct else self.iteratively()
        X = found.pop("X")
        found |= {"compressed_residual": self.residual(self.matrix, X), "exact_residual": self.residual(self.exact, X)}
        return found | {"refined": self.refine()}

    def directly(self):
        """By the factors of an HSS matrix."""
        factors = self._timed(partial(direct_solver(self.solver).factorize, self.matrix, self.damping))
        self.matrix.install(factors[1])
        solves = {k: self._timed(partial(factors[1].solve_rows, self.B[:, :k])) for k in self.widths()}
        return self._found(factors, solves) | {"backward_error": factors[1].backward_error, "negative": int(factors[1].negative)}

    def iteratively(self):
        """By PETSc for an FMM matrix, preconditioned by the factors of its coarser HSS matrix."""
        factors = once(self.matrix.comm, partial(preconditioning_factors, self.matrix, self.damping, self.solver))
        work = lambda k: partial(solve_iteratively, self.matrix, self.matrix, self.B[:, :k], self.damping, self.solver)  # noqa: E731
        solves = {k: once(self.matrix.comm, work(k)) for k in self.widths()}
        last = solves[self.args.columns][1]
        solves = {k: (seconds, result.X_local) for k, (seconds, result) in solves.items()}
        return self._found(factors, solves) | {"iterations": last.iterations, "method": last.method, "converged": last.converged}

    def refine(self):
        """(H + λI)X = B with the exact operator, the factors as preconditioner: as `hpcHess.solve --refine exact`."""
        B, rtol = self.B[:, : self.args.refine_columns], self.args.refine_rtol
        preconditioning_factors(self.matrix, self.damping, self.solver)
        work = partial(solve_iteratively, self.exact, self.matrix, B, self.damping, self.solver, rtol, max_iterations=REFINE_ITERATIONS)
        seconds, found = once(self.matrix.comm, work)
        residual = self.residual(self.exact, found.X_local)
        return {"columns": B.shape[1], "rtol": rtol, "seconds": seconds.median, "iterations": found.iterations, "residual": residual}

    def widths(self):
        """Numbers of right-hand sides."""
        return sorted({min(k, self.args.columns) for k in (*COLUMNS, self.args.columns)})

    def residual(self, A, X):
        """Largest ‖b − (A + λI)x‖/‖b‖."""
        B, comm = self.B[:, : X.shape[1]], self.matrix.comm
        return float((column_norms(comm, B - A.matmat_rows(X) - self.damping * X) / column_norms(comm, B)).max())

    def _timed(self, work):
        return repeated(self.matrix.comm, work, self.args.repeat, self.args.budget)

    def _found(self, factors, solves):
        seconds = {str(k): each[0].median for k, each in solves.items()}
        return {"factor_seconds": factors[0].median, "solve_seconds": seconds, "X": solves[self.args.columns][1]}


if __name__ == "__main__":
    run_driver("benchmarks.tables_measure", build_parser, main)
