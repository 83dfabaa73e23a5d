"""10,000 solves of (H + λI) x = b to 1e-6, λ = 1e-4 λ_max, in blocks of 64: ours with everything that comes before, against CG with curvlinops' products.

Network: the 784-77-784 autoencoder fitted to 1,000 images of MNIST, squared error. Both sides are extrapolated from a few blocks, all in float64, and
residuals are computed with the exact operator in float64.

ours    krylov.solve with exact products; preconditioned by the eliminated last layers, with the Kronecker sum that λ_max is taken from: compression and
        set-up count once
theirs  CG on 64 columns side by side: seconds of one iteration with curvlinops' operator × iterations. These are counted with our products of the same
        matrix (the same numbers) on fewer columns; 64 columns side by side take at least as many.
"""

import time

import numpy as np
from mpi4py import MPI

from benchmarks.cases import CASES
from benchmarks.figures.turns import not_run, row
from benchmarks.products import peer
from hpcHess.curvature.gauss_newton import GaussNewton
from hpcHess.kronecker.compress import compress_kronecker
from hpcHess.kronecker.preconditioner import Elimination
from hpcHess.krylov.solve import solve
from hpcHess.networks.problem import load_problem
from hpcHess.runtime.errors import InputError

ASKED, WHAT = 20.0, "10,000 solves to 1e-6, λ = 1e-4 λ_max"
COUNT, BLOCK, RTOL, DAMPING = 10_000, 64, 1e-6, 1e-4
COUNTED = 4  # columns on which iterations are counted
THEIR_ITERATIONS, OUR_BLOCKS = 4, 2


def measure(options):
    """One row."""
    try:
        import curvlinops  # noqa: F401
        import torch
    except ImportError as error:
        return [not_run(WHAT, f"{error}: pip install torch curvlinops-for-pytorch")]
    name = "small" if options.tiny else "autoencoder"
    if reason := CASES[name].unavailable():
        return [not_run(WHAT, reason)]
    torch.set_num_threads(options.threads)
    try:
        return [_row(name, options)]
    except InputError as error:  # no PETSc
        return [not_run(WHAT, str(error))]


def _row(name, options):
    block = 4 if options.tiny else BLOCK
    problem = load_problem(CASES[name].job(), MPI.COMM_SELF)
    start = time.perf_counter()
    operator = GaussNewton(problem.network, problem.inputs, problem.targets, comm=MPI.COMM_SELF, dtype=np.float64)
    matrix = compress_kronecker(operator, rtol=5e-2, dtype="float32")
    damping = DAMPING * matrix.report["lambda_max"]
    preconditioner = Elimination(operator).preconditioner(damping)
    setup = time.perf_counter() - start
    rng = np.random.default_rng(7)
    blocks, residual = [], 0.0
    for _ in range(OUR_BLOCKS):
        B = rng.standard_normal((operator.n_params, block))
        start = time.perf_counter()
        found = solve(operator, B, damping, preconditioner=preconditioner, rtol=RTOL, block=block)
        blocks.append(time.perf_counter() - start)
        residual = max(residual, _residual(operator, damping, found.X_local, B))
    theirs, iteration, iterations, their_residual = _theirs(operator, problem, damping, block, rng)
    ours = setup + float(np.median(blocks)) * -(-COUNT // block)
    shape = "-".join(map(str, operator.samples.widths))
    what = f"{WHAT}, {shape}, n = {operator.n_samples:,}: CG with curvlinops / ours"
    ceiling = f"CG with curvlinops {theirs:,.0f} s ({iterations} iterations of {iteration:.2f} s), ours {ours:,.0f} s ({setup:.1f} + {np.median(blocks):.2f} a block)"
    holds = f"{found.iterations} iterations a block with exact products in float64"
    facts = {"ours": ours, "theirs": theirs, "setup": setup, "blocks": blocks, "iterations": found.iterations, "their_iterations": iterations}
    facts |= {"their_iteration": iteration, "residual": residual, "their_residual": their_residual, "extrapolated_from": [OUR_BLOCKS, THEIR_ITERATIONS]}
    return row(what, ASKED, theirs / ours, "times", ceiling, holds, **facts)


def _theirs(operator, problem, damping, block, rng):
    """(seconds of all, of one iteration, iterations, residual reached in as many)."""
    product = peer(problem.network, np.asarray(problem.inputs, np.float64), _targets(problem), "gauss-newton")
    V = rng.standard_normal((operator.n_params, 2))
    A, B = operator.matmat(V), product(V)
    scale = float(np.vdot(A, B) / np.vdot(B, B))  # of the losses: a mean over outputs, halves
    if np.linalg.norm(A - scale * B) > 1e-8 * np.linalg.norm(A):
        raise InputError("curvlinops' product is another matrix's")
    right = rng.standard_normal((operator.n_params, COUNTED))
    X, iterations, _ = conjugate_gradients(operator.matmat, right, damping, RTOL, 5000)
    residual = _residual(operator, damping, X, right)
    right = rng.standard_normal((operator.n_params, block))
    _, _, seconds = conjugate_gradients(lambda V: scale * product(V), right, damping, RTOL, THEIR_ITERATIONS)
    iteration = float(np.median(seconds[1:]))
    return -(-COUNT // block) * iterations * iteration, iteration, iterations, residual


def _targets(problem):
    targets = np.asarray(problem.targets)
    return targets if targets.dtype.kind in "iu" else targets.astype(np.float64)


def _residual(operator, damping, X, B):
    """Largest ‖b − (H + λI)x‖ / ‖b‖."""
    remainder = B - operator.matmat(X) - damping * X
    return float((np.linalg.norm(remainder, axis=0) / np.linalg.norm(B, axis=0)).max())


def conjugate_gradients(product, B, damping, rtol, most):
    """(X, iterations, seconds of each) of CG on every column of (H + λI) X = B side by side, until all recurrence residuals are below rtol."""
    X, R, seconds = np.zeros_like(B), B.copy(), []
    P, rho = R.copy(), np.einsum("ij,ij->j", R, R)
    first = rho.copy()
    while len(seconds) < most and (rho > rtol**2 * first).any():
        start = time.perf_counter()
        Q = product(P)
        Q += damping * P
        alpha = np.where(rho > 0, rho / np.einsum("ij,ij->j", P, Q), 0.0)
        X += alpha * P
        R -= alpha * Q
        rho, before = np.einsum("ij,ij->j", R, R), rho
        P *= np.where(before > 0, rho / before, 0.0)
        P += R
        seconds.append(time.perf_counter() - start)
    return X, len(seconds), seconds
