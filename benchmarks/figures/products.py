"""Exact curvature products with 64 vectors against sgemm, and against the plain matrix products of the same shapes."""

from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

from benchmarks.figures.turns import Turns, gemm, row
from benchmarks.products import CASES, TINY, flops, problem
from hpcHess.curvature.from_job import KINDS

ASKED = 0.6
KINDS_MEASURED = ("gauss-newton", "hessian")


def measure(options):
    """Rows of all networks and both kinds, one by one."""
    size = SimpleNamespace(samples=20 if options.tiny else 1000, vectors=3 if options.tiny else 64)
    yield from (_row(name, kind, size, options) for name in (TINY if options.tiny else CASES) for kind in KINDS_MEASURED)


def _row(name, kind, size, options):
    network, inputs, targets = problem(name, size.samples)
    operator = KINDS[kind](network, inputs, targets, comm=MPI.COMM_SELF, dtype=np.float32)
    V = np.random.default_rng(1).standard_normal((network.n_params, size.vectors)).astype(np.float32)
    multiply, gemm_flops = gemm(order=256 if options.tiny else 2048)
    shapes = gemm_shapes(network, size.samples, size.vectors, kind)
    works = {"product": lambda: operator.partial_matmat(V), "gemms of its shapes": plain_gemms(shapes), "sgemm": multiply}
    turns = Turns({name: discard(work) for name, work in works.items()}, options)
    operator.close()
    needed = flops(network, kind, size)
    share = turns.ratio("product", "sgemm", needed, gemm_flops)
    alone = turns.ratio("gemms of its shapes", "sgemm", 2.0 * sum(m * n * k for m, n, k in shapes), gemm_flops)
    ceiling = f"sgemm {gemm_flops / turns.median('sgemm') / 1e9:.0f} GFLOP/s"
    holds = f"the plain sweep's gemms alone reach {100 * alone:.0f} %; the rest is passes over arrays of samples × neurons × vectors"
    return row(f"{name}, {kind}, {size.vectors} vectors", ASKED, share, "share", ceiling, holds, turns, gflop=needed / 1e9, gemms_alone=alone)


def discard(work):
    """The work without its result, which `Turns` would take for seconds."""

    def run():
        work()

    return run


def gemm_shapes(network, n, k, kind):
    """[(m, n, k)] of the matrix products of a plain forward and backward sweep with n samples and k vectors; the Hessian's two more a layer above the first."""
    shapes = []
    for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        d, inner = W.shape
        c = inner + (b is not None)
        shapes += [(k * d, n, c), (k * d, c, n)]
        if layer:
            shapes += [(d, n * k, inner), (inner, n * k, d)]
            shapes += [(k * inner, n, d), (d, k * inner, n)] * (kind == "hessian")
    return shapes


def plain_gemms(shapes):
    """A function that runs the matrix products of `shapes`, in memory of their own."""
    largest = [max(size) for size in zip(*((m * k, k * n, m * n) for m, n, k in shapes), strict=True)]
    a, b, c = (np.ones(size, np.float32) for size in largest)

    def run():
        for m, n, k in shapes:
            np.matmul(a[: m * k].reshape(m, k), b[: k * n].reshape(k, n), out=c[: m * n].reshape(m, n))

    return run
