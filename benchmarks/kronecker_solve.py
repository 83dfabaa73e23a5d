"""mpiexec -n P python -m benchmarks.kronecker_solve [JOB.toml] [KEY=VALUE …]: (H + λI) X = B by CG with and without Kronecker preconditioners.

Default: the 784-77-784 autoencoder of jobs/autoencoder-hss-low.toml. For every λ the preconditioners none, the one-term inverse of every
diagonal block (`kronecker.inverse`), and the elimination of the last layers (`kronecker.preconditioner`), each on one block of right-hand
sides with the operator in float64; the compression counts for the two that need it or are made from its matrix.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from mpi4py import MPI

from benchmarks import machine
from benchmarks.timing import once
from hpcHess.curvature.from_job import operator_from_job
from hpcHess.kronecker.compress import compress_kronecker
from hpcHess.kronecker.preconditioner import Elimination, eliminable
from hpcHess.krylov.solve import solve
from hpcHess.parallel.agree import on_root
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.jobfile import load

JOB = Path(__file__).parents[1] / "jobs" / "autoencoder-hss-low.toml"


def main():
    args, comm = _arguments(), MPI.COMM_WORLD
    operator, origin = operator_from_job(load(args.job, args.overrides), comm, np.float64)
    compression, matrix = once(comm, lambda: compress_kronecker(operator, rtol=args.compress_rtol, dtype="float32"))
    mine = slice(*(int(at) for at in operator.parameter_starts[comm.rank : comm.rank + 2]))
    B = np.ascontiguousarray(gaussian_rows(1, "right-hand sides", mine.start, mine.stop, range(args.columns), np.float64))
    rows = []
    for relative in args.damping:
        damping = relative * matrix.report["lambda_max"]
        makers = {"none": lambda _: None, "one term": matrix.inverse}
        if eliminable(operator):
            makers["last layers"] = lambda damping: Elimination(operator).preconditioner(damping)
        for name, maker in ((name, makers[name]) for name in args.preconditioners if name in makers):
            rows.append(_row(comm, operator, B, args, relative, damping, name, maker, compression.median))
            if comm.rank == 0:
                _print(rows[-1], args.rhs_count, rows[-1] is rows[0])
    if args.output:
        document = {"machine": machine.describe(comm), "operator": repr(operator), "data": origin.summary, "rtol": args.rtol, "rows": rows}
        on_root(comm, Path(args.output).write_text, json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _row(comm, operator, B, args, relative, damping, name, maker, compression):
    """One line: set-up once, then a block of right-hand sides, scaled to all. Collective."""
    setup, S = once(comm, lambda: maker(damping))
    solved, found = once(comm, lambda: solve(operator, B, damping, preconditioner=S, rtol=args.rtol, block=args.columns))
    total = solved.median * args.rhs_count / args.columns + setup.median + (compression if name != "none" else 0.0)
    row = {"damping": relative, "preconditioner": name, "iterations": found.iterations, "converged": found.converged}
    row |= {"residual": float(found.residuals.max()), "setup_seconds": setup.median, "seconds": solved.median, "columns": args.columns}
    return row | {"compression_seconds": compression if name != "none" else 0.0, "total_seconds": total, "cpu_share": solved.as_dict()["cpu_share"]}


def _print(row, rhs_count, first):
    if first:
        print(f"{'λ/λ_max':>8} {'preconditioner':>15} {'iterations':>10} {'set-up s':>9} {'solve s':>8} {f'{rhs_count} sides s':>13} {'residual':>9} {'CPU':>5}")
    print(
        f"{row['damping']:8.0e} {row['preconditioner']:>15} {row['iterations']:10d} {row['setup_seconds']:9.2f} {row['seconds']:8.2f} "
        f"{row['total_seconds']:13.1f} {row['residual']:9.1e} {row['cpu_share']:5.0%}",
        flush=True,
    )


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", default=str(JOB), metavar="JOB.toml", help="network and data; its [compress] is not used")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help='of the job, e.g. "network.fit.hidden=[64, 64]"')
    parser.add_argument("--damping", type=float, nargs="+", default=[1e-3, 1e-4], metavar="F", help="λ/λ_max (1e-3 1e-4)")
    names = ["none", "one term", "last layers"]
    parser.add_argument("--preconditioners", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--columns", type=int, default=64, metavar="k", help="right-hand sides that are solved for (64)")
    parser.add_argument("--rhs-count", type=int, default=1000, metavar="k", help="right-hand sides that times are scaled to (1000)")
    parser.add_argument("--rtol", type=float, default=1e-6, help="residual of every right-hand side (1e-6)")
    parser.add_argument("--compress-rtol", type=float, default=5e-2, help="error of the Kronecker sum (5e-2)")
    parser.add_argument("--output", metavar="FILE.json", help="machine-readable results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
