"""mpiexec -n P python -m benchmarks.scaling_times --output FILE.json [--tiny]: seconds of every phase on these ranks; `benchmarks.scaling` starts it.

Synthetic problems of realistic shapes (no data needed): a 784-77-784 network with random weights and 1,000 samples; an HSS matrix by
`figures.synthetic`. Every phase has its own barriers and the slowest rank counts.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
from mpi4py import MPI

from benchmarks.ceilings import gemm, triad
from benchmarks.entries import problem
from benchmarks.figures.synthetic import hss, stored_bytes
from benchmarks.machine import describe
from benchmarks.timing import repeated
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.hierarchical.compress import compress
from hpcHess.hierarchical.elimination import InterpolativeElimination
from hpcHess.parallel.ownership import row_starts
from hpcHess.tree.build import build_tree

GEMM, BANDWIDTH, CEILING, OTHER = "gemm-bound", "bandwidth-bound", "ceiling", "whole"
SIZES = {"widths": (784, 77, 784), "n": 1000, "vectors": 64, "leaf": 144, "rank": 72, "depth": 12, "small": (784, 20, 30, 10), "triad_bytes": 1 << 30}
TINY = {"widths": (12, 5, 12), "n": 20, "vectors": 3, "leaf": 12, "rank": 4, "depth": 4, "small": (12, 8, 4), "triad_bytes": 1 << 20}


def main(arguments=None):
    """Measure and write. Collective."""
    parser = argparse.ArgumentParser(prog="benchmarks.scaling_times", description=__doc__)
    parser.add_argument("--output", required=True, metavar="FILE.json")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args(arguments)
    comm, found = MPI.COMM_WORLD, {}
    for phase, kind, work, amount in phases(comm, **(TINY if args.tiny else SIZES)):
        seconds, _ = repeated(comm, work, args.repeat, budget=6.0)
        found[phase] = {"kind": kind, "amount": amount, **seconds.as_dict()}
    document = {"machine": describe(comm), "phases": found}
    if comm.rank == 0:
        Path(args.output).write_text(json.dumps(document, indent=1), "utf-8")


def phases(comm, widths, n, vectors, leaf, rank, depth, small, triad_bytes):
    """(name, what binds it, work, amount of the ceilings or None), one at a time so that only what is measured is in memory. Collective."""
    run, moved = triad(triad_bytes // comm.size)
    yield "triad, arrays of 1 GiB together", CEILING, run, moved * comm.size
    yield "sgemm of order 1024 a rank", CEILING, gemm(1024, np.float32), 2.0 * 1024**3 * comm.size
    del run
    local = lambda rows, k, dtype: np.random.default_rng(comm.rank).standard_normal((int(np.diff(row_starts(rows, comm.size))[comm.rank]), k)).astype(dtype)  # noqa: E731
    operator = GaussNewton(*problem(widths, "squared-error", n), comm=comm, dtype=np.float32)
    yield f"exact product, {vectors} vectors", GEMM, partial(operator.matmat_rows, local(operator.n_params, vectors, np.float32)), None
    tree = build_tree(operator, 64, "neuron", rtol=1e-1)
    owned = row_starts(1 << tree.depth, comm.size)[comm.rank : comm.rank + 2]
    starts = tree.leaf_starts[owned[0] : owned[1] + 1]
    mine = tree.permutation[starts[0] : starts[-1]]
    yield "entries of leaf blocks", GEMM, partial(operator.entries_batch, mine, starts - starts[0], mine, starts - starts[0]), None
    operator.close()
    matrix = hss(comm, depth, leaf, rank)
    size = comm.allreduce(stored_bytes(matrix))
    for k, kind in ((1, BANDWIDTH), (vectors, GEMM)):
        yield f"H̃V, {k} vectors, {size / 1e9:.2g} GB", kind, partial(matrix.matmat_rows, local(matrix.n_params, k, np.float32)), None
    yield "Woodbury factors", GEMM, partial(InterpolativeElimination.factorize, matrix, 1.0), None
    factors = InterpolativeElimination.factorize(matrix, 1.0)
    for k, kind in ((1, BANDWIDTH), (vectors, GEMM)):
        yield f"Woodbury solve, {k} right-hand sides", kind, partial(factors.solve_rows, local(matrix.n_params, k, np.float64)), None
    del matrix, factors
    operator = GaussNewton(*problem(small, "cross-entropy", n), comm=comm, dtype=np.float32)
    yield f"compression, {'-'.join(map(str, small))}, HSS at 1e-1", OTHER, partial(compress, operator, rtol=1e-1, leaf_size=64, distance="neuron"), None


if __name__ == "__main__":
    main()
