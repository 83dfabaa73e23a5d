"""Plain dense BLAS and LAPACK on the same matrix, where it fits: products, Cholesky factors, solves."""

import numpy as np
from mpi4py import MPI
from scipy.linalg import cho_factor, cho_solve

from benchmarks.cases import CASES
from benchmarks.figures.stored import free_memory
from benchmarks.figures.turns import Turns, not_run, row
from benchmarks.figures.woodbury import DAMPING, compressed
from hpcHess.hierarchical.elimination import InterpolativeElimination

CASE = "mnist"


def measure(options):
    """Rows of products with 1 and 64 vectors, of factors, of solves with 1 and 64."""
    name = "small" if options.tiny else CASE
    if reason := CASES[name].unavailable():
        return [not_run(f"{name}: dense BLAS and LAPACK", reason)]
    matrix = compressed(name)
    n = matrix.n_params
    if 20.0 * n**2 > free_memory():
        return [not_run(f"{name}: dense BLAS and LAPACK", f"N = {n:,} needs {20 * n**2 / 1e9:.0f} GB")]
    A, damping = matrix.operator.matmat(np.eye(n, dtype=np.float32)), DAMPING * matrix.report["lambda_max"]
    error = matrix.report["error_estimate"]["value"]
    label = f"{name}, N = {n:,}, HSS at error {error:.0e}"
    rows = [_product(label, A, matrix, k, options) for k in (1, 64)]
    D = np.array(A, np.float64, order="F")
    D[np.diag_indices(n)] += damping
    kept = {}

    def dense():
        kept["dense"] = cho_factor(D, lower=True, check_finite=False)

    def ours():
        kept["ours"] = InterpolativeElimination.factorize(matrix, damping)

    turns = Turns({"dense": dense, "ours": ours}, options)
    ratio = turns.ratio("ours", "dense")
    rate = n**3 / 3 / turns.median("dense") / 1e9
    rows.append(row(f"{label}: factors, dense / ours", None, ratio, "times", f"LAPACK potrf {turns.median('dense'):.2f} s, {rate:.0f} GFLOP/s", "", turns))
    return rows + [_solve(label, kept, n, k, options) for k in (1, 64)]


def _product(label, A, matrix, k, options):
    V = np.random.default_rng(3).standard_normal((matrix.n_params, k)).astype(np.float32)

    def dense():
        A @ V

    def ours():
        matrix.matmat_rows(V)

    turns = Turns({"dense": dense, "ours": ours}, options)
    ceiling = f"BLAS float32 {1e3 * turns.median('dense'):.1f} ms, ours {1e3 * turns.median('ours'):.2f} ms"
    return row(f"{label}: product with {k}, dense / ours", None, turns.ratio("ours", "dense"), "times", ceiling, "", turns)


def _solve(label, kept, n, k, options):
    B = np.random.default_rng(5).standard_normal((n, k))

    def dense():
        cho_solve(kept["dense"], B, check_finite=False)

    def ours():
        kept["ours"].solve_rows(B)

    turns = Turns({"dense": dense, "ours": ours}, options)
    ceiling = f"LAPACK potrs float64 {1e3 * turns.median('dense'):.1f} ms, ours {1e3 * turns.median('ours'):.2f} ms"
    return row(f"{label}: solve with {k}, dense / ours", None, turns.ratio("ours", "dense"), "times", ceiling, "", turns)
