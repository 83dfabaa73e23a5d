"""Woodbury factors (interpolative elimination) and solves: a matrix larger than the caches, and matrices of real networks."""

import numpy as np
from mpi4py import MPI

from benchmarks import models
from benchmarks.cases import CASES
from benchmarks.ceilings import triad
from benchmarks.figures.stored import TINY, depth_that_fits
from benchmarks.figures.synthetic import hss
from benchmarks.figures.turns import Turns, gemm, not_run, row
from hpcHess.curvature.from_job import operator_from_job
from hpcHess.hierarchical.compress import compress
from hpcHess.hierarchical.elimination import InterpolativeElimination

ASKED_FACTOR, ASKED_SOLVE = 0.4, {1: 0.6, 64: 0.4}
LEAF, RANK, DEPTH = 144, 72, 12
NETWORKS = {"mnist": {}, "autoencoder": {"distance": "neuron", "leaf_size": 64}}
DAMPING = 1e-2


def measure(options):
    """Three rows a matrix."""
    if options.tiny:
        leaf, rank, depth = TINY
        yield from _rows("synthetic HSS", hss(MPI.COMM_SELF, depth, leaf, rank), options)
        return
    depth = depth_that_fits(DEPTH, 6e9)
    yield from _rows("synthetic HSS", hss(MPI.COMM_SELF, depth, LEAF, RANK), options)
    for name, given in NETWORKS.items():
        reason = CASES[name].unavailable()
        yield from [not_run(f"{name}: Woodbury factors and solves", reason)] if reason else _rows(name, compressed(name, **given), options)


def compressed(name, **given):
    """The HSS matrix of one of `benchmarks.cases`."""
    job = CASES[name].job()
    operator, _ = operator_from_job(job, MPI.COMM_SELF, np.float32)
    options = {key: job["compress"][key] for key in ("rtol", "leaf_size", "max_rank", "distance", "seed")}
    return compress(operator, **(options | given))


def _rows(name, matrix, options):
    damping = DAMPING * matrix.report["lambda_max"]
    multiply, gemm_flops = gemm(np.float64, 128 if options.tiny else 1536)
    kept = []

    def factor():
        kept[:] = [InterpolativeElimination.factorize(matrix, damping)]

    def plain():
        multiply()

    turns = Turns({"factor": factor, "dgemm": plain}, options)
    factors = kept[0]
    needed, size = models.factorization(factors), models.factor_solve(factors, 0).bytes / 2
    label = f"{name}, N = {matrix.n_params:,}, factors {size / 1e6:.0f} MB"
    ceiling = f"dgemm {gemm_flops / turns.median('dgemm') / 1e9:.0f} GFLOP/s"
    widest = max(e.order_of_pivots() for e in factors.eliminations)
    holds = f"Cholesky factors, triangular inverses and products of blocks of at most {widest} rows"
    share = turns.ratio("factor", "dgemm", needed.flops, gemm_flops)
    yield row(f"{label}: factor, of dgemm", ASKED_FACTOR, share, "share", ceiling, holds, turns, gflop=needed.flops / 1e9)
    yield from (_solve(label, factors, k, size, options) for k in ASKED_SOLVE)


def _solve(label, factors, k, size, options):
    B = np.random.default_rng(5).standard_normal((factors.matrix.n_params, k))
    needed = models.factor_solve(factors, k)
    run, moved = triad(int(min(max(size, 1 << 20), 1 << 31)))
    multiply, gemm_flops = gemm(np.float64, 128 if options.tiny else 1536)

    def solve():
        factors.solve_rows(B)

    def plain():
        multiply()

    turns = Turns({"solve": solve, "triad": run, "dgemm": plain}, options)
    of_triad = turns.ratio("solve", "triad", needed.bytes, moved)
    of_gemm = turns.ratio("solve", "dgemm", needed.flops, gemm_flops)
    facts = {"gbytes": needed.bytes / 1e9, "gflop": needed.flops / 1e9, "of_triad": of_triad, "of_dgemm": of_gemm}
    if k == 1:
        ceiling = f"triad {moved / turns.median('triad') / 1e9:.1f} GB/s at {max(size, 1 << 20) / 1e6:.0f} MB"
        holds = f"{1e3 * turns.median('solve'):.2f} ms in all: what a level costs besides its bytes"
        return row(f"{label}: solve with 1, of triad", ASKED_SOLVE[k], of_triad, "share", ceiling, holds, turns, **facts)
    ceiling = f"dgemm {gemm_flops / turns.median('dgemm') / 1e9:.0f} GFLOP/s"
    holds = f"{needed.flops / needed.bytes:.1f} operations a byte: {100 * of_triad:.0f} % of triad"
    return row(f"{label}: solve with {k}, of dgemm", ASKED_SOLVE[k], of_gemm, "share", ceiling, holds, turns, **facts)
