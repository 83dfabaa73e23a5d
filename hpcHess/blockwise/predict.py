"""What dense and block-diagonal matrices would cost: their sizes are known."""

import numpy as np

from hpcHess.blockwise.symmetric import SymmetricBlocks
from hpcHess.compressed.format import Prediction
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows

PROBES = 4  # a layer, of the error that block-diagonal matrices have


def predict_dense(facts):
    """n(n + 1)/2 numbers, exact. Not collective."""
    return _predicted(facts, np.array([facts.n_alive]), 0.0, "exact")


def predict_block_diagonal(facts, groups):
    """The blocks that `groups(operator, blocks)` gives (permutation, starts), with the error of leaving out what is between them. Collective."""
    blocks = facts.options.get("blocks", "layer")
    if getattr(facts.operator, "network", None) is None:
        return Prediction(refused="no layers")
    permutation, starts = groups(facts.operator, blocks)
    error, note = np.inf, "error not predicted"
    if blocks == "layer":
        error, note = _error_between(facts, permutation, starts), f"{len(starts) - 1} blocks"
    return _predicted(facts, np.diff(starts), error, note)


def _predicted(facts, sizes, error, note):
    entries, cubes = float(np.sum(sizes * (sizes + 1.0) / 2)), float(np.sum(sizes.astype(float) ** 3))
    itemsize = np.dtype(np.float32 if facts.itemsize == 4 else np.float64)
    return Prediction(
        entries=entries,
        memory=float(facts.comm.allreduce(SymmetricBlocks.bytes_needed(facts.comm, sizes, itemsize))),
        compress=facts.n_alive * facts.product_seconds / max(1, len(sizes)),
        apply=facts.seconds_of_vector(entries),
        solve=facts.seconds_of(4.0 * entries, 16.0 * entries / 64) + facts.seconds_of(cubes / 3) / facts.rhs_count,
        error=error,
        note=note,
    )


def _error_between(facts, permutation, starts):
    """‖H − block diagonal‖_F / ‖H‖_F: E‖rows outside of a block of H g‖² over Gaussian g on that block. Collective."""
    operator, comm = facts.operator, facts.comm
    first, last = (int(at) for at in row_starts(facts.n_params, comm.size)[comm.rank : comm.rank + 2])
    outside = total = 0.0
    for a, b in zip(starts[:-1], starts[1:], strict=True):
        inside = np.zeros(facts.n_params, bool)
        inside[permutation[a:b]] = True
        mine = inside[first:last]
        G = gaussian_rows(facts.seed, "between blocks", first, last, range(PROBES), operator.dtype) * mine[:, None]
        squares = np.square(operator.matmat_rows(np.ascontiguousarray(G, operator.dtype)), dtype=np.float64).sum(axis=1)
        outside, total = outside + squares[~mine].sum(), total + squares.sum()
    outside, total = comm.allreduce(np.array([outside, total]))
    return float(np.sqrt(outside / total)) if total else 0.0
