"""Products of a stored matrix larger than the caches: one vector against the triad's bandwidth, 64 against sgemm."""

import numpy as np
from mpi4py import MPI

from benchmarks import models
from benchmarks.ceilings import triad
from benchmarks.figures.synthetic import hss, stored_bytes
from benchmarks.figures.turns import Turns, gemm, last_level_cache, row

ASKED = {1: 0.7, 64: 0.5}
LEAF, RANK, DEPTH = 144, 72, 14  # 2.4 GB in float32
TINY = (16, 6, 3)


def measure(options):
    """A row for 1 and for 64 vectors."""
    leaf, rank, depth = TINY if options.tiny else (LEAF, RANK, depth_that_fits(DEPTH, 7e9))
    matrix = hss(MPI.COMM_SELF, depth, leaf, rank)
    yield from (_row(matrix, k, options) for k in ASKED)


def depth_that_fits(depth, need):
    """`depth`, less where the memory free now is below `need` bytes: halved with every level."""
    free = free_memory()
    while need > free and depth > 4:
        depth, need = depth - 1, need / 2
    return depth


def free_memory():
    """Bytes that the system says are free, inf where it does not tell."""
    try:
        with open("/proc/meminfo") as lines:
            return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return np.inf


def _row(matrix, k, options):
    V = np.random.default_rng(3).standard_normal((matrix.n_params, k)).astype(matrix.dtype)
    size = stored_bytes(matrix)
    needed = models.matrix_product(matrix, k, V.dtype)
    run, moved = triad(min(size, 1 << 31))
    multiply, gemm_flops = gemm(order=256 if options.tiny else 2048)

    def product():
        matrix.matmat_rows(V)

    def plain():
        multiply()

    turns = Turns({"product": product, "triad": run, "sgemm": plain}, options)
    of_triad = turns.ratio("product", "triad", needed.bytes, moved)
    of_gemm = turns.ratio("product", "sgemm", needed.flops, gemm_flops)
    times, cache = size / max(last_level_cache(), 1), last_level_cache() >> 20
    name = f"synthetic HSS, N = {matrix.n_params:,}, {size / 1e9:.2f} GB float32 ({times:.1f} × the cache of {cache} MiB), {k} vector{'s' * (k > 1)}"
    facts = {"gbytes": needed.bytes / 1e9, "gflop": needed.flops / 1e9, "of_triad": of_triad, "of_sgemm": of_gemm}
    if k == 1:
        ceiling = f"triad {moved / turns.median('triad') / 1e9:.1f} GB/s at {min(size, 1 << 31) >> 20} MiB"
        return row(f"{name}: of triad", ASKED[k], of_triad, "share", ceiling, "", turns, **facts)
    ceiling = f"sgemm {gemm_flops / turns.median('sgemm') / 1e9:.0f} GFLOP/s"
    holds = f"blocks of {RANK} to {LEAF} rows; vectors of {V.nbytes / 1e6:.0f} MB are read and written by every pass"
    return row(f"{name}: of sgemm", ASKED[k], of_gemm, "share", ceiling, holds, turns, **facts)
