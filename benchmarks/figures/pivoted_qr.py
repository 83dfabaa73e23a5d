"""Truncated pivoted QR (the row interpolative decompositions of a level) against SciPy's whole QR of the same matrices, one after the other."""

import numpy as np
from scipy.linalg import qr

from benchmarks import models
from benchmarks.figures.turns import Turns, gemm, row
from hpcHess import backend as backends

ASKED = 5.0
ORDER, RANK = 512, 64
MANY = 16


def measure(options):
    """A row a type and size of batch: one matrix, one a thread, many."""
    order, rank, many = (48, 8, 3) if options.tiny else (ORDER, RANK, MANY)
    batches = sorted({1, options.threads, many})
    yield from (_row(order, rank, count, dtype, options) for dtype in (np.float32, np.float64) for count in batches)


def _row(order, rank, count, dtype, options):
    rng = np.random.default_rng(0)
    decay = np.exp(-np.arange(order) / rank)  # singular values over the rank: pivots matter
    R = np.concatenate([rng.standard_normal((order, order)) * decay @ rng.standard_normal((order, order)) for _ in range(count)]).astype(dtype)
    starts, backend = np.arange(count + 1) * order, backends.get()
    found = backend.interpolate(R, starts, 0.0, rank)
    assert (found.ranks == rank).all()
    one = np.asfortranarray(R[:order].T)
    multiply, gemm_flops = gemm(dtype, 128 if options.tiny else 1024)

    def ours():
        backend.interpolate(R, starts, 0.0, rank)

    def scipy():
        qr(one, mode="r", pivoting=True, check_finite=False)

    def product():
        multiply()

    turns = Turns({"ours": ours, "scipy": scipy, "gemm": product}, options)
    name = np.dtype(dtype).name
    needed = models.truncated_qr([order] * count, [rank] * count, order, dtype).flops
    ratio = turns.ratio("ours", "scipy", float(count))
    share = turns.ratio("ours", "gemm", needed, gemm_flops)
    whole = 4 / 3 * order**3 / (needed / count)
    ceiling = f"scipy.linalg.qr(mode='r', pivoting=True) {1e3 * turns.median('scipy'):.1f} ms a matrix"
    holds = f"it needs {whole:.1f} × fewer operations than a whole QR and runs at {100 * share:.0f} % of gemm: panels and sketches are below it"
    return row(f"{order} × {order} to rank {rank}, {name}, {count} at once", ASKED, ratio, "times", ceiling, holds, turns, of_gemm=share)
