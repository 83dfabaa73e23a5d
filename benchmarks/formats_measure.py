"""mpiexec -n P python -m benchmarks.formats_measure JOB.toml --output R.json …: one row of docs/FORMATS.md: a matrix in one format.

A part of `benchmarks.formats`. What is known so far is in R.json after every step, so that a run that is stopped is not lost.
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.timing import once, repeated
from hpcHess.compress import SINGLE_PRECISION_RTOL
from hpcHess.compressed.certificate import spectral_norm
from hpcHess.compressed.iterative import solve_iteratively
from hpcHess.curvature.from_job import operator_from_job
from hpcHess.formats.compress import compress
from hpcHess.krylov.solve import column_norms, solve
from hpcHess.networks.network import Network
from hpcHess.parallel.agree import on_root
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import DONE, InputError
from hpcHess.runtime.jobfile import load as load_job
from hpcHess.runtime.session import run_driver

ENOUGH = 3.0  # seconds of compressions after which there is no further one
LEFT_OUT = ("levels", "pairs", "timings", "warnings")  # of the report
DAMPING = 1e-3  # of λ_max(H)


def build_parser():
    """Arguments."""
    parser = argparse.ArgumentParser(prog="benchmarks.formats_measure", description=__doc__.splitlines()[0])
    parser.add_argument("job", metavar="JOB.toml", help="job file (docs/JOBS.md)")
    parser.add_argument("--output", required=True, metavar="R.json", help="where the results go")
    parser.add_argument("--set", action="append", default=[], metavar="table.key=value", help="change one key of the job")
    parser.add_argument("--exact", action="store_true", help="the operator itself instead: λ_max, products, CG without a preconditioner")
    parser.add_argument("--network", metavar="W.npz", help="the fitted network: read, with --exact made where it is not there")
    parser.add_argument("--damping", type=float, metavar="λ", help=f"of the solves (default: no solves; --exact: {DAMPING:g} λ_max)")
    parser.add_argument("--solves", nargs="*", choices=("solve", "refined"), default=("solve", "refined"), help="with H̃ + λI, with H + λI (both)")
    parser.add_argument("--columns", type=int, default=64, metavar="k", help="right-hand sides, and vectors of the products (64)")
    parser.add_argument("--exact-columns", type=int, default=64, metavar="k", help="of these solved with H + λI (64)")
    parser.add_argument("--repeat", type=int, default=3, metavar="n", help="compressions of which the median counts, as long as they are short (3)")
    parser.add_argument("--rtol", type=float, default=1e-6, metavar="ε", help="residual of iterative solves (1e-6)")
    parser.add_argument("--iterations", type=int, default=250, metavar="m", help="most iterations (250)")
    parser.add_argument("--seconds", type=float, default=40.0, metavar="s", help="fewer iterations where these would take longer (40)")
    return parser


def main(session, args):
    """Measure, and write what is known after every step. Collective."""
    if min(args.columns, args.exact_columns, args.iterations, args.repeat) < 1 or not 0 < args.rtol < 1:
        raise InputError("--columns, --exact-columns, --iterations, --repeat must be at least 1, --rtol between 0 and 1")
    comm = session.comm
    job = on_root(comm, load_job, args.job, args.set)
    record = Record(comm, args.output)
    record.add(machine=machine.describe(comm))
    if args.exact:
        Operator(comm, job, args, record).run()
    else:
        Compressed(comm, job, args, record).run(session.progress)
    record.add(cpu_seconds=comm.allreduce(time.process_time()) / comm.size)
    return DONE


class Record:
    """The results so far, in memory and in the file."""

    def __init__(self, comm, path):
        self._comm, self._path, self.found = comm, Path(path), {}

    def add(self, **found):
        """Plain values, the same on all ranks. Collective."""
        self.found |= found
        on_root(self._comm, self._write)

    def _write(self):
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(self.found, ensure_ascii=False), "utf-8")
        beside.replace(self._path)


class _Run:
    """What both kinds of run share. All methods are collective."""

    def __init__(self, comm, job, args, record):
        self.comm, self.job, self.args, self.record = comm, job, args, record
        self.network = on_root(comm, self._network) if args.network and os.path.exists(args.network) else None

    def _network(self):
        with np.load(self.args.network) as arrays:
            return Network.from_arrays(dict(arrays), self.job["network"]["activation"], self.job["network"]["loss"])

    def operator(self, dtype):
        """(operator, Origin)."""
        return operator_from_job(self.job, self.comm, dtype, network=self.network)

    def vectors(self, operator, k, stream, dtype=np.float64):
        """Own parameter rows of a fixed Gaussian matrix, [n_local, k]."""
        lo, hi = row_starts(operator.shape[0], self.comm.size)[self.comm.rank : self.comm.rank + 2]
        return np.ascontiguousarray(gaussian_rows(0, stream, int(lo), int(hi), range(k), dtype))

    def products(self, operator):
        """Median seconds of a product with one vector and with all columns."""
        found = {}
        for k in sorted({1, self.args.columns}):
            V = self.vectors(operator, k, "product", operator.dtype)
            found[str(k)] = repeated(self.comm, partial(operator.matmat_rows, V), 5, 1.0)[0].median
        return found

    def most(self, A, B, factors=None):
        """Iterations that --seconds suffice for, by one product and one application of the preconditioner; at least 10, at most --iterations."""
        taken = once(self.comm, partial(A.matmat_rows, B))[0].median
        if factors is not None:
            taken += once(self.comm, partial(factors.preconditioner().solve_rows, B))[0].median
        return min(self.args.iterations, max(10, int(self.args.seconds / taken)))

    def residual(self, A, B, X, damping):
        """Largest ‖b − (A + λI)x‖/‖b‖."""
        return float((column_norms(self.comm, B - A.matmat_rows(X) - damping * X) / column_norms(self.comm, B)).max())


class Operator(_Run):
    """H itself: what all rows of a case need of it, and CG without a preconditioner."""

    def run(self):
        """All of it."""
        operator, origin = self.operator(np.float32)
        if origin.fitted is not None and self.args.network:
            on_root(self.comm, np.savez, self.args.network, **origin.fitted.to_arrays())
            self.network = origin.fitted
        self.record.add(n_params=int(operator.n_params), n_alive=int(len(operator.alive)), products=self.products(operator))
        exact, _ = self.operator(np.float64)
        apply = lambda W: np.asarray(exact.matmat_rows(W), np.float64)  # noqa: E731
        lambda_max = spectral_norm(apply, self.comm, apply(self.vectors(exact, 8, "lambda_max")), 16, 1e-5)
        damping = DAMPING * lambda_max if self.args.damping is None else self.args.damping
        self.record.add(lambda_max=lambda_max, damping=damping)
        B = self.vectors(exact, self.args.exact_columns, "rhs")
        work = partial(solve, exact, B, damping, rtol=self.args.rtol, max_iterations=self.most(exact, B))
        seconds, result = once(self.comm, work)
        self.record.add(refined=iterated(seconds.median, result, B.shape[1], 0.0))


class Compressed(_Run):
    """H̃: compression, products, solves with H̃ + λI and, H̃ as the preconditioner, with H + λI."""

    def run(self, progress):
        """All of it; what a step is refused for is told, and the next one is tried."""
        seconds, matrix, memory = self.compressed(progress)
        report = {name: value for name, value in matrix.report.items() if name not in LEFT_OUT}
        self.record.add(compress_seconds=seconds, peak_memory=memory, report=report, direct=matrix.direct)
        self.record.add(products=self.products(matrix))
        for name in () if self.args.damping is None else self.args.solves:
            try:
                self.record.add(**{name: {"solve": self.solve, "refined": self.refine}[name](matrix)})
            except InputError as error:
                self.record.add(**{name: {"failed": str(error)}})

    def compressed(self, progress):
        """(median seconds, matrix, bytes that all ranks held at the peak more than before) of compressions, each of a fresh operator."""
        options = dict(self.job["compress"])
        dtype = np.float32 if options["rtol"] >= SINGLE_PRECISION_RTOL and options["dtype"] != "float64" else np.float64
        samples, peaks = [], []
        while not samples or (len(samples) < self.args.repeat and sum(samples) < ENOUGH):
            matrix = None  # the former one is not held beside the next
            operator, _ = self.operator(dtype)
            peak = Peak(self.comm)
            seconds, matrix = once(self.comm, partial(compress, operator, **options, progress=progress))
            samples.append(seconds.median)
            peaks.append(peak.bytes())
        return float(np.median(samples)), matrix, peaks[0]

    def solve(self, matrix):
        """(H̃ + λI)X = B by direct factors, or iteratively to --rtol."""
        args, damping, B = self.args, self.args.damping, self.vectors(matrix, self.args.columns, "rhs")
        if not matrix.direct:
            factors, made = once(self.comm, partial(matrix.preconditioning_factors, damping))
            work = partial(solve_iteratively, matrix, matrix, B, damping, None, args.rtol, made, max_iterations=self.most(matrix, B, made))
            seconds, result = once(self.comm, work)
            return iterated(seconds.median, result, B.shape[1], factors.median)
        factors, made = once(self.comm, partial(matrix.factors, damping))
        seconds, X = repeated(self.comm, partial(made.solve_rows, B), 3, 2.0)
        found = {"seconds": seconds.median, "factor_seconds": factors.median, "columns": B.shape[1], "negative": int(made.negative)}
        return found | {"residual": self.residual(matrix, B, X, damping), "converged": True}

    def refine(self, matrix):
        """(H + λI)X = B with the exact operator in float64, preconditioned by what H̃ has; None where it has nothing."""
        args, damping = self.args, self.args.damping
        factors, made = once(self.comm, partial(matrix.preconditioning_factors, damping))
        if made is None:
            return None
        exact, _ = self.operator(np.float64)
        B = self.vectors(exact, args.exact_columns, "rhs")
        work = partial(solve_iteratively, exact, matrix, B, damping, None, args.rtol, made, max_iterations=self.most(exact, B, made))
        seconds, result = once(self.comm, work)
        return iterated(seconds.median, result, B.shape[1], factors.median)


def iterated(seconds, result, columns, factor_seconds):
    """Plain values of a `krylov.solve.Result`; factor_seconds: of what it was preconditioned with."""
    found = {"seconds": seconds, "factor_seconds": factor_seconds, "columns": columns, "iterations": int(result.iterations)}
    return found | {"method": result.method, "converged": bool(result.converged), "residual": float(np.max(result.residuals, initial=0.0))}


class Peak:
    """The most memory that the ranks held since this was made, beyond what they held then; None where Linux does not tell."""

    def __init__(self, comm):
        self._comm = comm
        try:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        except OSError:
            pass
        self._before = self._of("VmRSS")

    def _of(self, name):
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return None
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)

    def bytes(self):
        """Sum over the ranks. Collective."""
        now = self._of("VmHWM")
        ranks = self._comm.allgather(None if now is None or self._before is None else max(0, now - self._before))
        return None if None in ranks else int(sum(ranks))


if __name__ == "__main__":
    run_driver("benchmarks.formats_measure", build_parser, main)
