"""mpiexec -n P python -m hpcHess.compress JOB.toml --output F.h5: compress a curvature matrix, or a dense one, and store it."""

import argparse
import os
import re
import sys
import types

import numpy as np

from hpcHess.compressed.damping import damping_of, parse_damping
from hpcHess.compressed.file import save
from hpcHess.curvature.from_job import operator_from_job
from hpcHess.formats.compress import compress
from hpcHess.parallel.agree import on_root
from hpcHess.runtime.errors import DONE, RTOL_NOT_MET, InputError
from hpcHess.runtime.jobfile import load as load_job
from hpcHess.runtime.session import run_driver
from hpcHess.storage.factor_file import check_writable

SINGLE_PRECISION_RTOL = 3e-5  # products of the sketch in float32 from here on


def build_parser():
    """Arguments of the driver."""
    parser = argparse.ArgumentParser(prog="hpcHess.compress", description=__doc__)
    parser.add_argument("job", metavar="JOB.toml", help="job file (docs/JOBS.md)")
    parser.add_argument("--output", required=True, metavar="F.h5", help="factor file to write")
    parser.add_argument("--set", action="append", default=[], metavar="table.key=value", help="change one key of the job")
    parser.add_argument("--memory", type=parse_bytes, default=0, metavar="8G", help="what all ranks may hold together (default: what the hosts have free)")
    parser.add_argument("--rhs-count", type=int, metavar="n", help="right-hand sides expected (compress.rhs_count), for format = auto")
    parser.add_argument("--damping", type=parse_damping, metavar="λ", help="also store direct factors (compress.solver): a number, or like 0.01*lmax")
    parser.add_argument("--backend", default="auto", choices=("auto", "numpy", "native", "cupy"), help="array backend")
    return parser


@np.errstate(over="ignore", invalid="ignore")  # `compress` refuses what is not finite, in one line
def main(session, args):
    """Job → operator → compressed matrix → factor file. Collective; exit status 3 where rtol was not met."""
    comm = session.comm
    job = on_root(comm, _job, args)
    check_writable(args.output, comm)
    options = job["compress"]
    dtype = np.float32 if options["rtol"] >= SINGLE_PRECISION_RTOL and options["dtype"] != "float64" else np.float64
    with session.phase("matrix" if "matrix" in job.tables else "network and data"):
        operator, origin = operator_from_job(job, comm, dtype, progress=session.progress, backend=args.backend)
    alive = getattr(operator, "unregularized", operator).alive
    session.say(f"N = {operator.n_params} parameters ({len(alive)} alive), {origin.summary}")
    if not len(alive):
        reason = "the matrix is zero" if "matrix" in job.tables else "a saturated network, or inputs that are zero?"
        session.warn(f"all parameters are dead: H = 0 ({reason})")
    matrix = compress(operator, **options, memory=args.memory, backend=args.backend, progress=session.progress)
    factors = _factors(session, matrix, args.damping)
    with session.phase("write"):
        save(matrix, args.output, job=job, network=origin.fitted, digests=origin.digests, factors=factors)
    report, error = matrix.report, matrix.report["error_estimate"]
    if report.get("distance_predictions"):
        predicted = ", ".join(f"{name} {value:.3g}" for name, value in sorted(report["distance_predictions"].items(), key=lambda item: item[1]))
        session.say(f"distance auto: {report['distance']} (predicted storage in % of N²: {predicted})")
    interval = "exact" if error.get("exact") else f"{100 * error['confidence']:g} %: {error['low']:.2e} … {error['high']:.2e}"
    session.output(
        f"{args.output}: {report['format']}, {report['storage_entries']:,} numbers, {report['storage_percent']:.3g} % of N², "
        f"error {error['value']:.2e} ({interval}), asked {report['rtol']:g}: {'met' if report['rtol_met'] else 'NOT MET'}"
    )
    return DONE if report["rtol_met"] else RTOL_NOT_MET


def _job(args):
    """The job, whose files the output must not replace. One rank."""
    more = [] if args.rhs_count is None else [f"compress.rhs_count={args.rhs_count}"]
    job = load_job(args.job, args.set + more)
    for path in (args.job, *(name.rpartition(":/")[0] or name for name in job.files)):
        if os.path.realpath(path) == os.path.realpath(args.output):
            raise InputError(f"--output {args.output} would replace a file that the job reads: name another one")
    return job


def _factors(session, matrix, given):
    """Direct factors to be stored, of an FMM matrix those of its preconditioner, or None: not asked for, or (the work is done, and the file
    holds it) impossible.
    """
    if given is None:
        return None
    damping = damping_of(given, matrix)
    if not matrix.stores_factors:
        session.warn(f"no factors are stored: what solves with the format {matrix.format} is made anew for every λ")
        return None
    try:
        with session.phase("factors"):
            return matrix.factorize(damping) if matrix.direct else matrix.preconditioning_factors(damping)
    except InputError as error:
        session.warn(f"no factors are stored: {error}")
        return None


def parse_bytes(text):
    """"8G" → 8,000,000,000 bytes; K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024. For argparse."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory: write it like 8G or 500M")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " "))


class _Callable(types.ModuleType):
    """`hpcHess.compress` names this driver and the function of the API: calling the module calls the function."""

    def __call__(self, *arguments, **keywords):
        return compress(*arguments, **keywords)


if __name__ == "__main__":
    run_driver("compress", build_parser, main)
else:
    sys.modules[__name__].__class__ = _Callable
