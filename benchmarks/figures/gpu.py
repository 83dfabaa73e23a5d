"""A GPU against the processor's cores by the backend `cupy`: level kernels, products, factors, solves, and the device's own ceilings. No GPU: one row that says so.

Every time ends with `backend.synchronize()`.
"""

import numpy as np
from mpi4py import MPI

from benchmarks import models
from benchmarks.figures import synthetic
from benchmarks.figures.turns import Turns, not_run, row
from hpcHess import backend as backends
from hpcHess.hierarchical.elimination import InterpolativeElimination
from hpcHess.hierarchical.evaluate import multiply_tree_rows
from hpcHess.runtime.errors import InputError

ASKED_PRODUCT, ASKED_SOLVE, ASKED_SHARE = 50.0, 20.0, 0.4
LEAF, RANK, DEPTH = 144, 72, 13
TINY = (16, 6, 3)


def measure(options):
    """Rows, or one that says that there is no GPU."""
    try:
        device = backends.get("cupy")
    except InputError as error:
        return [not_run("a GPU against 2 cores", f"no GPU here: {error}")]
    leaf, rank, depth = TINY if options.tiny else (LEAF, RANK, DEPTH)
    host = synthetic.hss(MPI.COMM_SELF, depth, leaf, rank)
    there = synthetic.hss(MPI.COMM_SELF, depth, leaf, rank, kernels=device)
    rates = ceilings(device, options)
    return [_product(host, there, device, k, rates, options) for k in (1, 64)] + _solves(host, there, device, rates, options)


def synchronized(device, work):
    """The work until the device is done with it."""

    def run():
        work()
        device.synchronize()

    return run


def ceilings(device, options):
    """{sgemm, dgemm in flop/s, copy in byte/s (read and written)} of the device."""
    xp, order, size = device.xp, 256 if options.tiny else 8192, 1 << (16 if options.tiny else 30)
    works, amounts = {}, {"copy": 2.0 * size, "sgemm": 2.0 * order**3, "dgemm": 2.0 * order**3}
    for name, dtype in (("sgemm", np.float32), ("dgemm", np.float64)):
        A = xp.ones((order, order), dtype)
        works[name] = synchronized(device, lambda A=A: A @ A)
    source, target = xp.ones(size // 8), xp.zeros(size // 8)
    works["copy"] = synchronized(device, lambda: xp.copyto(target, source))
    turns = Turns(works, options)
    return {name: amounts[name] / turns.median(name) for name in works}


def _product(host, there, device, k, rates, options):
    """H̃V of vectors that lie where they are multiplied, in tree rows."""
    V = np.random.default_rng(3).standard_normal((host.n_alive, k)).astype(host.dtype)
    W = device.asarray(V)

    def cpu():
        multiply_tree_rows(host, V)

    turns = Turns({"cpu": cpu, "gpu": synchronized(device, lambda: multiply_tree_rows(there, W))}, options)
    needed = models.matrix_product(host, k, V.dtype)
    label = f"synthetic HSS, N = {host.n_params:,}, H̃V, {k} vectors"
    return _row(label, ASKED_PRODUCT, needed, turns, rates, {})


def _solves(host, there, device, rates, options):
    kept = {}

    def factor(name, matrix):
        kept[name] = InterpolativeElimination.factorize(matrix, 1.0)

    turns = Turns({"cpu": lambda: factor("cpu", host), "gpu": synchronized(device, lambda: factor("gpu", there))}, options)
    label, needed = f"synthetic HSS, N = {host.n_params:,}", models.factorization(kept["cpu"])
    rows = [_row(f"{label}, Woodbury factors", ASKED_SOLVE, needed, turns, rates, {})]
    for k in (1, 64):
        B = np.random.default_rng(5).standard_normal((host.n_params, k))
        works = {"cpu": lambda: _discard(kept["cpu"], B), "gpu": synchronized(device, lambda: _discard(kept["gpu"], B))}  # noqa: B023
        rows.append(_row(f"{label}, solve with {k}, host to host", ASKED_SOLVE, models.factor_solve(kept["cpu"], k), Turns(works, options), rates, {}))
    return rows


def _discard(factors, B):
    factors.solve_rows(B)


def _row(label, asked, needed, turns, rates, facts):
    least = max(needed.flops32 / rates["sgemm"] + needed.flops64 / rates["dgemm"], needed.bytes / rates["copy"])
    share = least / turns.median("gpu")
    told = ", ".join(f"{name} {rate / 1e9:,.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}" for name, rate in rates.items())
    holds = f"{100 * share:.0f} % of the device's ceiling that binds (asked {100 * ASKED_SHARE:.0f} %)"
    ceiling = f"CPU {turns.median('cpu'):.3g} s, GPU {turns.median('gpu'):.3g} s; {100 * share:.0f} % of the binding ceiling of {told}"
    return row(label, asked, turns.ratio("gpu", "cpu"), "times", ceiling, holds, turns, of_ceiling=share, **facts)
