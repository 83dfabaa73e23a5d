"""What dense and block-diagonal matrices would cost: their sizes are known."""

import itertools

import numpy as np

from hpcHess.blockwise.symmetric import SymmetricBlocks
from hpcHess.compressed.certificate import frobenius_interval
from hpcHess.compressed.format import Prediction
from hpcHess.curvature.sample_gram import input_gram, kernel_gram
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows

PROBES = 4  # a layer, of the error that block-diagonal matrices have
EXACT_SAMPLES = 1024  # at most whose inner products give it exactly
_ROWS = 256  # samples in a block of these


def predict_dense(facts):
    """n(n + 1)/2 numbers, exact but for rounding them. Not collective."""
    return _predicted(facts, np.array([facts.n_alive]), 0.0, "exact")


def predict_block_diagonal(facts, groups):
    """The blocks that `groups(operator, blocks)` gives (permutation, starts), with the error of leaving out what is between them: exact for few
    samples, else the upper end of a 95 % interval. Collective.
    """
    blocks = facts.options.get("blocks", "layer")
    if getattr(facts.operator, "network", None) is None:
        return Prediction(refused="no layers")
    permutation, starts = groups(facts.operator, blocks)
    error, note = np.inf, "error not predicted"
    if blocks == "layer":
        exact = hasattr(facts.operator, "samples") and facts.n_samples <= EXACT_SAMPLES
        error = _error_exact(facts) if exact else _error_between(facts, permutation, starts)
        note = f"{len(starts) - 1} blocks, {'' if exact else 'upper end of the '}error"
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
        error=error + (np.finfo(np.float32).eps / 2 if itemsize == np.float32 else 0.0),
        note=note,
    )


def _error_exact(facts):
    """‖H − block diagonal‖_F / ‖H‖_F by layers: Σ_{ℓ≠ℓ'} ‖H_ℓℓ'‖² and Σ_ℓ ‖H_ℓℓ‖² from inner products of the samples' kernels and inputs. Collective."""
    samples, comm, squares = facts.operator.samples, facts.comm, np.zeros(2)
    for at, lo in enumerate(range(0, samples.n, _ROWS)):
        I, J = np.arange(lo, min(samples.n, lo + _ROWS)), np.arange(samples.n)
        for a, b in itertools.combinations_with_replacement(facts.network.chosen, 2) if at % comm.size == comm.rank else ():
            squares[int(a == b)] += (1 if a == b else 2) * float((kernel_gram(samples, a, b, I, J) * input_gram(samples, a, b, I, J)).sum())
    outside, inside = np.maximum(comm.allreduce(squares), 0)
    return float(np.sqrt(outside / (outside + inside))) if outside else 0.0


def _error_between(facts, permutation, starts):
    """‖H − block diagonal‖_F / ‖H‖_F, at most: E‖rows outside of a block of H g‖² over Gaussian g on that block, by both intervals. Collective."""
    operator, comm = facts.operator, facts.comm
    first, last = (int(at) for at in row_starts(facts.n_params, comm.size)[comm.rank : comm.rank + 2])
    squares = np.zeros((2, PROBES))  # outside, inside; a probe is a vector on every block in turn
    for a, b in zip(starts[:-1], starts[1:], strict=True):
        within = np.zeros(facts.n_params, bool)
        within[permutation[a:b]] = True
        mine = within[first:last]
        G = gaussian_rows(facts.seed, "between blocks", first, last, range(PROBES), operator.dtype) * mine[:, None]
        found = np.square(operator.matmat_rows(np.ascontiguousarray(G, operator.dtype)), dtype=np.float64)
        squares += found[~mine].sum(axis=0), found[mine].sum(axis=0)
    (_, _, high), (_, low, _) = (frobenius_interval(each) for each in comm.allreduce(squares))
    return float(high / np.hypot(high, low)) if high else 0.0
