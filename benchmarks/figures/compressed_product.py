"""Products of a compressed matrix with 64 vectors against exact products, by number of samples, at an error of 1e-2: the best format by product time.

The 784-77-784 autoencoder fitted to 1,000 images of MNIST, its curvature over the first n images. Formats are tried in order while there is time.
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
FORMATS = {"kronecker-sum": {}, "hss": {"leaf_size": 64, "distance": "neuron"}, "low-rank": {}}
FURTHER = 4000  # samples: more formats than the first are tried below


def measure(options):
    """A row for every number of samples."""
    rows = []
    for n, operator in _operators(options):
        rows.append(_row(n, operator, options) if operator is not None else not_run(f"n = {n:,}", CASES["autoencoder"].unavailable()))
    return rows


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
    tried, best = {}, None
    for name, given in FORMATS.items():
        if tried and (operator.n_samples > FURTHER or options.tiny):
            break
        start = time.perf_counter()
        matrix = compress(operator, rtol=ERROR, format=name, **given)
        made = time.perf_counter() - start
        turns = Turns({"compressed": lambda: _discard(matrix.matmat_rows, V), "exact": lambda: _discard(operator.partial_matmat, V)}, options)  # noqa: B023
        error = matrix.report["error_estimate"]["value"]
        tried[name] = {"made": made, "product": turns.median("compressed"), "error": error, "met": matrix.report["rtol_met"]}
        if matrix.report["rtol_met"] and (best is None or tried[name]["product"] < best[1].median("compressed")):
            best = name, turns, error
    label = f"{'-'.join(map(str, operator.samples.widths))}, n = {operator.n_samples:,}, {k} vectors"
    operator.close()
    if best is None:
        return not_run(label, f"no format met {ERROR:g}: {tried}")
    name, turns, error = best
    ceiling = f"exact {turns.median('exact'):.3f} s, {name} at {error:.1e} {turns.median('compressed'):.4f} s, made in {tried[name]['made']:.1f} s"
    holds = f"exact products cost {turns.median('exact') / operator.n_samples * 1e6:.0f} μs a sample"
    return row(label, ASKED[n], turns.ratio("compressed", "exact"), "times", ceiling, holds, turns, format=name, tried=tried)


def _discard(work, V):
    work(V)
