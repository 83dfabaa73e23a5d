"""mpiexec -n P python -m benchmarks.scaling_counts --output FILE.json: bytes, messages and memory of every rank by phase; `benchmarks.scaling` starts it.

The small network that comes with the project, so that 64 ranks fit on two cores; what matters is how the counts grow with the ranks. One HSS compression by
a sketch, products, factors, solves.
"""

import argparse
import json
import tracemalloc
from pathlib import Path

import numpy as np
from mpi4py import MPI

from benchmarks.cases import CASES
from benchmarks.traffic import CountingComm, Traffic
from benchmarks.traffic_model import modelled
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.hierarchical.compress import compress
from hpcHess.networks.problem import load_problem
from hpcHess.parallel.ownership import row_starts
from hpcHess.runtime.timing import Timings

CASE, LEAF, VECTORS, RTOL = "small", 8, 4, 1e-1


class Phases(Traffic):
    """Also the `progress` of a compression: its phases are those of the page, attempts counted together."""

    def __init__(self):
        super().__init__()
        self.timings = Timings()

    def phase(self, name, total=None):
        return super().phase(name.partition(" (attempt")[0], total)


def main(arguments=None):
    """Count and write. Collective."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling_counts", description=__doc__)
    parser.add_argument("--output", required=True, metavar="FILE.json")
    parser.add_argument("--leaf", type=int, default=LEAF)
    args = parser.parse_args(arguments)
    found = counted(MPI.COMM_WORLD, args.leaf)
    if MPI.COMM_WORLD.rank == 0:
        Path(args.output).write_text(json.dumps(found, indent=1), "utf-8")


def counted(world, leaf=LEAF):
    """{ranks, n_params, phases: {name: {bytes, messages, calls, memory, model, sites}}}: the largest of all ranks each. Collective."""
    traffic = Phases()
    comm = CountingComm(world, traffic)
    problem = load_problem(CASES[CASE].job(), world)
    tracemalloc.start()
    with traffic.phase("operator"):
        operator = GaussNewton(problem.network, problem.inputs, problem.targets, comm=comm, dtype=np.float64)
    matrix = compress(operator, rtol=RTOL, leaf_size=leaf, distance="neuron", progress=traffic)
    lo, hi = row_starts(operator.n_params, comm.size)[comm.rank : comm.rank + 2]
    V = np.random.default_rng(0).standard_normal((operator.n_params, VECTORS))[lo:hi]
    with traffic.phase("exact product"):
        operator.matmat_rows(V)
    with traffic.phase("product H̃V"):
        matrix.matmat_rows(V)
    with traffic.phase("Woodbury factors"):
        factors = matrix.factorize(matrix.report["lambda_max"])
    with traffic.phase("Woodbury solve"):
        factors.solve_rows(V)
    tracemalloc.stop()
    gathered = world.gather(({phase: dict(sites) for phase, sites in traffic.sites.items()}, traffic.peaks))
    model = modelled(matrix, operator, VECTORS, world.size)
    attempts, columns = matrix.report["attempts"], matrix.report["sketch_columns"]
    rank = max(int(level.ranks.max()) for level in matrix.levels[1:])
    if world.rank:
        return None
    phases = {}
    for phase in dict.fromkeys(name for sites, peaks in gathered for name in (*sites, *peaks)):
        ranks = [sites.get(phase, {}) for sites, _ in gathered]
        totals = np.array([[sum(each[i] for each in sites.values()) for i in range(3)] for sites in ranks])
        keys = dict.fromkeys(key for sites in ranks for key in sites)
        table = {f"{where} {call}": [max(sites.get((where, call), (0, 0, 0))[i] for sites in ranks) for i in range(3)] for where, call in keys}
        calls, n_bytes, messages = totals.max(axis=0).tolist() if len(keys) else (0, 0, 0)
        memory = max(peaks.get(phase, 0) for _, peaks in gathered)
        phases[phase] = {"bytes": n_bytes, "messages": messages, "calls": calls, "memory": memory, "model": model.get(phase), "sites": table}
    sizes = {"attempts": attempts, "columns": columns, "rank": rank}
    return {"ranks": world.size, "n_params": operator.n_params, **sizes, "widths": operator.samples.widths, "samples": operator.n_samples, "rtol": RTOL, "leaf": leaf, "phases": phases}


if __name__ == "__main__":
    main()
