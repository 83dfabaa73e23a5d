"""Compression: tree, near blocks, sketch, skeletons, verification, and again with a tighter tolerance when the error is missed."""

from dataclasses import dataclass

import numpy as np

from hpcHess import backend as backends
from hpcHess.hierarchical.error import ErrorEstimate, estimate_error, exact_probes, largest_eigenvalue, spectral_error
from hpcHess.hierarchical.matrix import HierarchicalMatrix
from hpcHess.hierarchical.storage_count import count_storage
from hpcHess.hierarchical.tolerance import Budget
from hpcHess.parallel.ownership import node_starts
from hpcHess.runtime.errors import InputError
from hpcHess.runtime.progress import Silent
from hpcHess.skeleton.levels import PairBlocks
from hpcHess.skeleton.skeletonize import Saturation, Skeletonizer, entry_blocks
from hpcHess.skeleton.sketch import Sketch
from hpcHess.tree.build import build_tree
from hpcHess.tree.interactions import far_pairs, near_self


def stored_dtype(dtype, rtol):
    """float64 or float32; `auto`: float64 where rtol < 1e-5."""
    if dtype == "auto":
        return np.dtype(np.float64 if rtol < 1e-5 else np.float32)
    return np.dtype(dtype)


def compress(
    operator,
    rtol=1e-2,
    leaf_size=64,
    max_rank=0,
    distance="parameter",
    seed=0,
    dtype="auto",
    probes=32,
    backend="auto",
    progress=None,
):
    """H̃ (HSS) with ‖H̃ − H‖_F ≤ rtol ‖H‖_F for a curvature operator (docs/ARCHITECTURE.md, "Operators"). Collective.

    rtol         relative to ‖H‖_F of the whole matrix; verified by `probes` ≥ 32 fresh Gaussian products, accepted where the
                 upper end of the 95 % interval is ≤ rtol; `report["rtol_met"]` says whether it was reached
    leaf_size    upper bound of a leaf's parameters; max_rank: 0 for no bound
    distance     of the tree: angle, kernel, input, parameter, random (`tree.build.build_tree`)
    dtype        of what is stored: auto (float64 where rtol < 1e-5), float32, float64
    The allowed error is shared among the nodes by `hierarchical.tolerance`. Raises InputError for values out of range.
    """
    _check(rtol, leaf_size, max_rank, probes, dtype)
    progress = Silent() if progress is None else progress
    comm, kernels = operator.comm, backends.get(backend)
    dtype = stored_dtype(dtype, rtol)
    with progress.phase("tree"):
        tree = build_tree(operator, leaf_size, distance, seed)
    owned = node_starts(tree.depth, tree.depth, comm.size)
    rows = tree.leaf_starts[owned]
    near = PairBlocks(comm, near_self(tree.depth), owned, tree.leaf_sizes)
    with progress.phase("near blocks"):
        entry_blocks(operator, kernels, near, tree.permutation[rows[comm.rank] : rows[comm.rank + 1]], dtype)
    sketch = Sketch(operator, tree.permutation, rows, seed)
    with progress.phase("sketch", min(tree.n, leaf_size + 16)) as steps:
        sketch.extend(min(tree.n, leaf_size + 16), steps.advance)
    with progress.phase("exact probes"):
        G, HG = exact_probes(operator, rows, tree.permutation, probes, seed)
    skeletonizer = Skeletonizer(operator, tree, near, far_pairs(near.pairs, tree.depth), sketch, kernels, dtype)
    budget, best, norm = Budget(rtol, _norm(comm, sketch.Y, dtype), tree.depth), None, None
    again = True
    while again:
        with progress.phase(f"skeletons (attempt {budget.attempts + 1})", tree.depth) as steps:
            levels, saturation = skeletonizer.run(budget.tolerances(), max_rank, lambda _: steps.advance())
        matrix = HierarchicalMatrix(comm, kernels, operator.shape[0], tree, near, levels)
        with progress.phase("verification"):
            error, norm = estimate_error(matrix, G, HG, norm)
        attempt = _Attempt(matrix, saturation, error, count_storage(matrix))
        best = attempt if best is None else min(best, attempt, key=lambda each: each.order(rtol))
        again = budget.learn(error.high, norm.value, levels, saturation.nodes > 0)
    matrix, error = best.matrix, best.error
    with progress.phase("spectral norms"):
        lambda_max = largest_eigenvalue(matrix, seed)
        spectral = spectral_error(matrix, operator, G, HG)
    matrix.operator = operator
    matrix.report = {
        "rtol": float(rtol),
        "rtol_met": bool(error.high <= rtol),
        "error_estimate": error.as_dict(),
        "norm_frobenius": norm.value,
        "lambda_max": lambda_max,
        "error_spectral": spectral,
        "sketch_columns": sketch.n_columns,
        "attempts": budget.attempts,
        "distance": distance,
        "leaf_size": int(leaf_size),
        "max_rank": int(max_rank),
        "seed": int(seed),
        "backend": kernels.name,
        "warnings": _warnings(error, rtol, best.saturation, max_rank, operator, budget.attempts),
        "timings": progress.timings.as_dict(),
        **best.storage,
    }
    return matrix


@dataclass
class _Attempt:
    """One pass over the levels and what came of it."""

    matrix: HierarchicalMatrix
    saturation: Saturation
    error: ErrorEstimate
    storage: dict

    def order(self, rtol):
        """Accepted attempts by storage, before the others by error."""
        met = self.error.high <= rtol
        return not met, self.storage["storage_entries"] if met else self.error.high


def _check(rtol, leaf_size, max_rank, probes, dtype):
    if not (np.isfinite(rtol) and 0 < rtol < 1):
        raise InputError(f"rtol must lie between 0 and 1, not {rtol}")
    if leaf_size < 2:
        raise InputError(f"leaf_size must be at least 2, not {leaf_size}")
    if max_rank < 0:
        raise InputError(f"max_rank must be ≥ 0 (0: no bound), not {max_rank}")
    if probes < 32:
        raise InputError(f"probes must be at least 32, not {probes}")
    if dtype not in ("auto", "float32", "float64"):
        raise InputError(f"dtype must be auto, float32 or float64, not {dtype!r}")


def _norm(comm, Y, dtype):
    """‖H‖_F from a sketch, E‖Hω‖² = ‖H‖_F². InputError where it is larger than the products' or the stored type can hold."""
    norm = float(np.sqrt(comm.allreduce(float(np.sum(np.square(Y, dtype=np.float64)))) / max(1, Y.shape[1])))
    if not norm < min(np.finfo(Y.dtype).max, np.finfo(dtype).max):
        raise InputError("the curvature's entries are too large: scale the network or the data, or set compress.dtype to float64")
    return norm


def _warnings(error, rtol, saturation, max_rank, operator, attempts):
    """One line for everything that kept the tolerance from being met."""
    found = []
    if saturation.nodes:
        bound = f"max_rank = {max_rank}" if max_rank else "the sketch"
        found.append(
            f"rank saturation: {saturation.nodes} nodes on levels {sorted(saturation.levels)} reached {bound} before their tolerance "
            f"(largest remainder {saturation.worst:.3g} in ‖H‖_F units of the matrix)"
        )
    if error.high > rtol:
        advice = "raise rtol"
        if saturation.nodes:
            advice = "raise max_rank"
        elif operator.dtype == np.float32:
            advice = "the precision of the products limits it: use float64"
        interval = f"{error.value:.3g} (95 % interval {error.low:.3g} … {error.high:.3g})"
        found.append(f"rtol {rtol:g} not met: error {interval} after {attempts} attempts; {advice}")
    return found
