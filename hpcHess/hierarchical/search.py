"""The search for the tolerances: samples, attempts, and the certificate of the best."""

from dataclasses import dataclass

import numpy as np

from hpcHess.hierarchical.error import estimate_error
from hpcHess.hierarchical.matrix import HierarchicalMatrix
from hpcHess.hierarchical.storage_count import count_storage
from hpcHess.hierarchical.tolerance import ATTEMPTS, Budget
from hpcHess.parallel.memory import check_room
from hpcHess.parallel.ownership import node_starts
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.levels import PairBlocks
from hpcHess.skeleton.products import ProductSamples
from hpcHess.skeleton.rows import RowSamples, lists_in_tree_rows
from hpcHess.skeleton.skeletonize import Saturation, Skeletonizer, entry_blocks
from hpcHess.skeleton.sketch import TOO_LARGE, Sketch, SketchSamples
from hpcHess.tree.interactions import far_fields, far_pairs

MISLED = 1.5  # an error above so many times what was allowed: the samples are to blame


def first_samples(sampling, operator, tree, neighbours, leaf_size, seed, progress):
    """What skeletons are chosen from (`skeletonize.Skeletonizer`), with products enough for any leaf. Collective.

    sampling: sketch, rows, products; neighbours: `tree.neighbours.Neighbours` where near lists needed them, or None: all rows are drawn by strata.
    """
    comm = operator.comm
    rows = tree.leaf_starts[node_starts(tree.depth, tree.depth, comm.size)]
    sketch = Sketch(operator, tree.permutation, rows, seed)
    if sampling == "rows":
        lists = None if neighbours is None else lists_in_tree_rows(comm, operator.alive, tree, rows, neighbours.lists)
        return RowSamples(sketch, leaf_size, seed, lists)
    samples = ProductSamples(sketch) if sampling == "products" else SketchSamples(sketch)
    columns = samples.first_columns(tree, leaf_size)
    check_room(comm, _first_bytes(sketch, tree, columns), f"{columns} products of {operator.shape[0]:,} parameters and the leaves' own blocks")
    with progress.phase("sketch", columns) as steps:
        sketch.extend(columns, steps.advance)
    return samples


def _first_bytes(sketch, tree, columns):
    """Bytes that a rank needs at least: the first columns of the sketch, the leaves' own blocks in the type of the products."""
    itemsize, owned = sketch.operator.dtype.itemsize, node_starts(tree.depth, tree.depth, sketch.operator.comm.size)
    sizes = tree.leaf_sizes[slice(*owned[sketch.operator.comm.rank :][:2])]
    return int(sketch.row_bytes * len(sketch.rows) * columns) + itemsize * int((sizes**2).sum())


def prepared(operator, tree, near, samples, kernels, dtype, progress):
    """A Skeletonizer for near pairs `near`, with their exact entries where the operator has any. Collective."""
    comm = operator.comm
    owned = node_starts(tree.depth, tree.depth, comm.size)
    near = PairBlocks(comm, near, owned, tree.leaf_sizes)
    if samples.by_entries:
        with progress.phase("near blocks"):
            rows = tree.leaf_starts[owned[comm.rank : comm.rank + 2]]
            entry_blocks(operator, kernels, near, tree.permutation[rows[0] : rows[1]], dtype)
    return Skeletonizer(operator, tree, near, far_pairs(near.pairs, tree.depth), samples, kernels, dtype)


class Search:
    """Attempts with tolerances that adapt to what came of them; the result is certified with probes that no attempt has seen.

    norm: the `certificate.Norm` that rtol refers to, the operator's own by default.
    `attempts`: passes over the levels; those after which only the samples were deepened are not among the `budget.attempts`.
    """

    def __init__(self, skeletonizer, rtol, max_rank, n_probes, progress, norm=None):
        self.skeletonizer, self.rtol, self.max_rank, self.n_probes, self.progress = skeletonizer, rtol, max_rank, n_probes, progress
        self.norm, self.attempts, sketch = norm, 0, skeletonizer.samples.sketch
        with progress.phase("exact probes"):
            self.probes = sketch.fresh(n_probes, "search")
        squares = sketch.squares if sketch.n_columns else float(np.sum(np.square(self.probes[1], dtype=np.float64)))
        own = _norm(skeletonizer, squares, sketch.n_columns or n_probes)
        self.budget = Budget(rtol, own if norm is None else norm.value, far_fields(skeletonizer.far))

    def certified(self):
        """(the smallest attempt that meets rtol, else the most accurate one; its ErrorEstimate). Collective."""
        for certificate in range(ATTEMPTS):
            best = None
            best = self._best()
            with self.progress.phase("verification"):
                fresh = self.skeletonizer.samples.sketch.fresh(self.n_probes, f"certificate {certificate}")
                error, _ = estimate_error(best.matrix, *fresh, self.norm)
                del fresh
            if error.high <= self.rtol or not best.met or not self.budget.tighten(best.share, error.high):
                break
        return best, error

    def _matrix(self, levels):
        made = self.skeletonizer
        return HierarchicalMatrix(made.comm, made.backend, made.operator.shape[0], made.tree, made.near, levels)

    def _best(self):
        best, again, progress, budget = None, True, self.progress, self.budget
        while again:
            levels = matrix = attempt = None  # what the attempt before made, unless it is the best, is not beside the next
            self.attempts += 1
            with progress.phase(f"skeletons (attempt {self.attempts})", self.skeletonizer.tree.depth) as steps:
                levels, saturation = self.skeletonizer.run(budget.tolerances(), self.max_rank, lambda _: steps.advance())  # noqa: B023
            matrix = self._matrix(levels)
            with progress.phase("errors of the attempts"):
                error, self.norm = estimate_error(matrix, *self.probes, self.norm)
            attempt = Attempt(matrix, saturation, error.high, error.high <= self.rtol, budget.share, count_storage(matrix))
            best = attempt if best is None else min(best, attempt, key=Attempt.order)
            if not saturation.nodes and self._tails_mislead(error.high) and self.skeletonizer.samples.deepen():
                continue
            again = budget.learn(error.high, self.norm.value, levels, saturation.nodes > 0)
        return best

    def _tails_mislead(self, high):
        """Whether an error is far above what the nodes' tolerances add up to, and above what rounding can do."""
        eps = max(np.finfo(dtype).eps for dtype in (self.skeletonizer.dtype, self.skeletonizer.operator.dtype))
        return high > max(MISLED * self.budget.share * self.rtol, 100 * eps)


@dataclass
class Attempt:
    """One pass over the levels and what came of it."""

    matrix: HierarchicalMatrix
    saturation: Saturation
    high: float
    met: bool
    share: float
    storage: dict

    def order(self):
        """Accepted attempts by storage, before the others by error."""
        return not self.met, self.storage["storage_entries"] if self.met else self.high


def _norm(made, squares, columns):
    """‖H‖_F from ‖HΩ‖_F² of the own rows, E‖Hω‖² = ‖H‖_F². InputError where the products' or the stored type cannot hold its entries."""
    norm = float(np.sqrt(made.comm.allreduce(squares) / columns))
    narrow = min(np.finfo(made.operator.dtype), np.finfo(made.dtype), key=lambda each: each.max)
    if not norm < narrow.max:
        raise InputError(f"the curvature's entries are too large: {TOO_LARGE}")
    if made.tree.n and norm < narrow.tiny / narrow.eps:
        raise InputError(f"the matrix is too small for {narrow.dtype} (‖H‖_F ≈ {norm:.1e}): scale it, or set compress.dtype to float64")
    return norm
