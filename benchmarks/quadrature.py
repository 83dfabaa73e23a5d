"""Fewer samples: error and seconds of counts (integers) and errors (below 1) for a job's network, beside random samples of the same number.

    mpiexec -n P python -m benchmarks.quadrature jobs/mnist.toml --set data.samples=3000 100 400 800
"""

import argparse
import time

import numpy as np
from mpi4py import MPI

from hpcHess.curvature.from_job import operator_from_job
from hpcHess.curvature.quadrature import Quadrature, quadrature
from hpcHess.parallel.agree import on_root
from hpcHess.runtime.jobfile import load
from hpcHess.runtime.progress import Silent

PROBES = 100


def probed(operator, reduced, products):
    """‖(H̃ − H)Ω‖_F / ‖HΩ‖_F by products, HΩ given; Ω standard normal. Collective."""
    V = np.random.default_rng(1).standard_normal((operator.n_params, PROBES))
    found = float(np.linalg.norm(reduced.matmat(V) - products) / np.linalg.norm(products))
    reduced.close()
    return found


def main(comm):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("job")
    parser.add_argument("asked", type=float, nargs="+")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    operator, _ = operator_from_job(on_root(comm, load, args.job, args.set), comm, np.float32)
    n, rng = operator.n_samples, np.random.default_rng(0)
    V = np.random.default_rng(1).standard_normal((operator.n_params, PROBES))
    products = operator.matmat(V)
    rows = ["| asked | c of n | error | probed | random, probed | inner products s | choice s |", "|" + "---|" * 7]
    for asked in args.asked:
        chosen, times = _timed(operator, asked)
        c = len(chosen.samples)
        random = Quadrature(np.sort(rng.choice(n, c, replace=False)), np.full(c, 1 / c), np.nan, np.nan, n)
        errors = [probed(operator, operator.reduced(each), products) for each in (chosen, random)]
        rows.append(f"| {asked:g} | {c} of {n} | {chosen.error:.2e} | {errors[0]:.2e} | {errors[1]:.2e} | " + " | ".join(times) + " |")
    if comm.rank == 0:
        print("\n".join(rows))


def _timed(operator, asked):
    """(Quadrature, its phases' seconds as text)."""
    progress, start = Silent(), time.perf_counter()
    found = quadrature(operator, **({"count": int(asked)} if asked >= 1 else {"rtol": asked}), progress=progress)
    times = progress.timings.as_dict()
    first = times["inner products of samples"]
    return found, (f"{first:.1f}", f"{time.perf_counter() - start - first:.1f}")


if __name__ == "__main__":
    main(MPI.COMM_WORLD)
