"""Products of a compressed matrix with 64 vectors against exact products, by number of samples, at an error of 1e-2.

The 784-77-784 autoencoder fitted to 1,000 images of MNIST, its curvature over the first n images, as a Kronecker sum: of the formats that reach that error
here (docs/FORMATS.md) the one that stores least by far, and whose products cost least.
"""

import time

import numpy as np
from mpi4py import MPI

from benchmarks.cases import CASES
from benchmarks.figures.turns import Turns, not_run, row
from benchmarks.products import problem
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.formats.compress import compress
from hpcHess.networks import datasets
from hpcHess.networks.problem import load_problem

ASKED = {1000: None, 10_000: 3.0, 60_000: 15.0}
ERROR, VECTORS = 1e-2, 64
FORMAT = "kronecker-sum"


def measure(options):
    """A row for every number of samples, one by one."""
    for n, operator in _operators(options):
        yield _row(n, operator, options) if operator is not None else not_run(f"n = {n:,}", CASES["autoencoder"].unavailable())


def _operators(options):
    """(n, the operator over n samples or None)."""
    if options.tiny:
        network, inputs, targets = problem("12-5-12, squared error", 40)
        yield 1000, GaussNewton(network, inputs, targets, comm=MPI.COMM_SELF, dtype=np.float32)
        return
    if CASES["autoencoder"].unavailable():
        yield from ((n, None) for n in ASKED)
        return
    network = load_problem(CASES["autoencoder"].job(), MPI.COMM_SELF).network
    inputs, _ = datasets.load("mnist", max(ASKED), "autoencode")
    for n in ASKED:
        yield n, GaussNewton(network, inputs[:n], inputs[:n], comm=MPI.COMM_SELF, dtype=np.float32)


def _row(n, operator, options):
    k = 3 if options.tiny else VECTORS
    V = np.random.default_rng(3).standard_normal((operator.n_params, k)).astype(np.float32)
    start = time.perf_counter()
    matrix = compress(operator, rtol=ERROR, format=FORMAT)
    made = time.perf_counter() - start
    turns = Turns({"compressed": lambda: _discard(matrix.matmat_rows, V), "exact": lambda: _discard(operator.partial_matmat, V)}, options)
    label, error = f"{'-'.join(map(str, operator.samples.widths))}, n = {operator.n_samples:,}, {k} vectors", matrix.report["error_estimate"]["value"]
    operator.close()
    if not matrix.report["rtol_met"]:
        return not_run(label, f"{FORMAT} reaches {error:.1e} only")
    exact, mine = turns.median("exact"), turns.median("compressed")
    ceiling = f"exact {exact:.3f} s; {FORMAT} at error {error:.1e} {mine:.4f} s, made in {made:.1f} s"
    holds = f"an exact product costs {1e6 * exact / operator.n_samples:.0f} μs a sample, the compressed one as much as {operator.n_samples * mine / exact:,.0f} samples"
    return row(label, ASKED[n], turns.ratio("compressed", "exact"), "times", ceiling, holds, turns, format=FORMAT, made=made, error=error)


def _discard(work, V):
    work(V)
