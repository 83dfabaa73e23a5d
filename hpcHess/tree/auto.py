"""The cheapest of several trees, by measurement: ranks of a few nodes' far fields predict what a compression would store.

One sketch Y = HΩ serves all trees. The far field of a node α is sampled by R_α = Y_α − H_αα Ω_α, with exact entries; its singular values give the
rank at any tolerance. On every level with nodes small enough some are measured: the one with the largest ‖Y_α‖ and others evenly spaced by it.
Ranks of the levels above follow by the growth from level to level, ranks beyond the sketch by the power law of the tail. All trees are
measured with small nodes, those that come near the best again with larger ones. Storage is the format's (HSS)

    Σ_leaves m(m + 1)/2 + Σ_nodes r(c − r) + Σ_siblings r r',   c = m in leaves, the children's ranks above

with the tolerance shared as `hierarchical.tolerance` does: ε_α² ∝ (storage of α)^0.85. The numbers rank the trees; each may be off by the ratio
of pivoted QR to optimal ranks and by the spread among nodes.
"""

import numpy as np

from hpcHess.parallel.ownership import starts_of
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError
from hpcHess.tree.build import build_tree

SKETCH_BYTES = 1 << 27
ROUNDS = ((256, 256, 1 << 19), (1024, 512, 1 << 22))  # of a round: largest node, columns of the sketch, entries of a level
NEAR = 1.5  # times the least prediction: measured in the next round, too
LIKELY = 1.1  # predictions are good to about that: the first distance of the list that comes so near is taken
_FEWEST, _MOST = 4, 16  # nodes of a level
_PART = 8  # the sketch and the measured nodes are no larger than N by this
_EXPONENT = 0.85
_PASSES = 4  # of sharing the tolerance
_SLOWER = 0.85  # growth of the mean rank from level to level, less 1, goes down by this factor
_TRUSTED = 0.7  # part of the sketch's columns up to which a rank is read off it


def cheapest_tree(operator, leaf_size, seed, rtol, advance=lambda n: None):
    """(its distance, its Tree, {distance: predicted numbers}). Collective.

    A network's operator chooses among `neuron`, `input`, `parameter` (on every network measured `kernel` and `angle` store more: docs/MATHEMATICS.md),
    others among `kernel`, `angle`, `parameter`. InputError for an operator without entries.
    """
    if not hasattr(operator, "entries_batch"):
        raise InputError("distance = 'auto' measures entries, which this operator does not have: use distance = 'parameter'")
    offered = [name for name, need in (("neuron", "neuron_groups"), ("input", "input_groups")) if hasattr(operator, need)] + ["parameter"]
    if len(offered) == 1 and (hasattr(operator, "partial_probe") or hasattr(operator, "diagonal")):
        offered = ["kernel", "angle", *offered]
    trees = {name: build_tree(operator, leaf_size, name, seed, rtol) for name in offered}
    predictions = predicted_storage(operator, trees, rtol, seed, advance)
    bound = LIKELY * min(predictions.values())
    best = next(name for name in offered if predictions[name] <= bound)
    return best, trees[best], predictions


def predicted_storage(operator, trees, rtol, seed=0, advance=lambda n: None, rounds=ROUNDS):
    """{name: numbers that a compression to rtol would store} for {name: Tree}. Collective; the same on every rank.

    Needs `entries_batch` of the operator. rounds: one is a rough guess; with a single tree the second is made where it is named alone.
    `advance(1)` after every measurement of a tree.
    """
    n, dtype, n_alive = operator.shape[0], operator.dtype, len(operator.alive)
    most = int(min(n_alive, max(64, n_alive // _PART), max(16, SKETCH_BYTES // (n * dtype.itemsize))))
    omega = Y = np.zeros((n, 0), dtype)
    result, spectra = dict.fromkeys(trees, 0), {name: [None] * (tree.depth + 1) for name, tree in trees.items()}
    for largest, columns, entries in rounds:
        bound = NEAR * min(result.values(), default=0)
        measured = [name for name, value in result.items() if value <= bound]
        if bound and len(measured) == 1 and rounds is ROUNDS:
            break
        more = gaussian_rows(seed, "trees", 0, n, range(Y.shape[1], max(Y.shape[1], min(columns, most))), dtype)
        omega, Y = np.concatenate([omega, more], axis=1), np.concatenate([Y, operator.matmat(more)], axis=1)
        norm = float(np.linalg.norm(Y.astype(np.float64)) / np.sqrt(max(1, Y.shape[1])))
        for name in measured:
            _far_fields(spectra[name], operator, trees[name], omega, Y, min(largest, n_alive // _PART), entries)
            result[name] = int(operator.comm.bcast(_storage(trees[name], spectra[name], rtol * norm)))
            advance(1)
    return result


def _far_fields(spectra, operator, tree, omega, Y, largest, entries):
    """Fill `spectra`, by level a list of (size, share of the level, k, σ² decreasing) of some nodes' far fields, where it is None and the
    nodes are no larger than `largest`; the leaves at least. Collective."""
    comm = operator.comm
    weight = np.append(0.0, np.cumsum(np.sum(np.square(Y[tree.permutation], dtype=np.float64), axis=1)))
    for level in range(tree.depth, 0, -1):
        starts = tree.leaf_starts[:: 1 << (tree.depth - level)]
        if level < tree.depth and np.diff(starts).max() > largest:
            break
        if spectra[level] is not None:
            continue
        count = int(min(np.clip(entries / max(1.0, np.mean(np.diff(starts) ** 2.0)), _FEWEST, _MOST), 1 << level))
        by_weight = np.argsort(np.round(np.diff(weight[starts]) / max(weight[-1], np.finfo(float).tiny), 9), kind="stable")
        others = ((np.arange(count - 1) + 0.5) * (len(by_weight) - 1) / max(1, count - 1)).astype(np.int64)
        nodes = np.append(by_weight[-1], by_weight[others])
        mine = nodes[comm.rank :: comm.size]
        I = np.concatenate([tree.permutation[starts[a] : starts[a + 1]] for a in mine] or [tree.permutation[:0]])
        cuts = starts_of(starts[mine + 1] - starts[mine])
        blocks, found = operator.entries_batch(I, cuts, I, cuts), []
        for i, (a, b) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            remainder = Y[I[a:b]] - blocks[i] @ omega[I[a:b]]
            share = 1 / len(by_weight) if mine[i] == nodes[0] else (1 - 1 / len(by_weight)) / max(1, count - 1)
            found.append((int(b - a), share, Y.shape[1], _squares(remainder.astype(np.float64))))
        spectra[level] = [each for part in comm.allgather(found) for each in part]


def _squares(R):
    """σ² of R [m, k], decreasing."""
    gram = R @ R.T if len(R) < R.shape[1] else R.T @ R
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0) if len(gram) else np.zeros(0)


def _rank(size, squares, k, tolerance):
    """The rank of a node's far field at an absolute tolerance: the tail of σ², corrected for a fit to k samples, beyond the trusted
    part of the sketch a power of the rank."""
    tails = np.sqrt(np.append(np.cumsum(squares[::-1])[::-1], 0.0) / k)
    known = min(len(squares), int(_TRUSTED * k))
    corrected = tails[: known + 1] / (1 - np.arange(known + 1) / k)
    if corrected[known] <= tolerance or known == size:
        return int(np.argmax(corrected <= tolerance)) if corrected[known] <= tolerance else size
    half = max(1, known // 2)
    power = max(0.1, np.log(corrected[half] / corrected[known]) / np.log(known / half))
    return int(min(size, known * (corrected[known] / tolerance) ** (1 / power)))


def _storage(tree, spectra, allowed):
    """Numbers stored when the squares of the nodes' errors add up to allowed²/2."""
    sizes, depth = tree.leaf_sizes.astype(float), tree.depth
    near = float(np.sum(sizes * (sizes + 1)) / 2)
    if not depth:
        return near
    shares = np.full(depth + 1, 1.0 / depth)
    for _ in range(_PASSES):
        costs = _costs(sizes.mean(), spectra, allowed * np.sqrt(shares / 2.0 ** np.arange(1, depth + 2)))
        nodes = 2.0 ** np.arange(depth + 1)
        shares = nodes * (np.maximum(costs, nodes) / nodes) ** _EXPONENT
        shares /= shares[1:].sum()
    return near + costs[1:].sum()


def _costs(leaf, spectra, tolerances):
    """Interpolations and couplings of every level, [depth + 1], from mean ranks."""
    depth = len(spectra) - 1
    costs, below, ratio, columns = np.zeros(depth + 1), None, 1.0, leaf
    for level in range(depth, 0, -1):
        if spectra[level] is not None:
            rank = sum(share * _rank(size, squares, k, tolerances[level]) for size, share, k, squares in spectra[level])
            ratio = 1.0 if below is None or not below else float(np.clip(rank / below, 0.5, 2.0))
        else:
            ratio = 1 + _SLOWER * (ratio - 1)
            rank = below * ratio
        rank = min(rank, columns)
        costs[level] = 2.0**level * (rank * (columns - rank) + 0.5 * rank**2)
        below, columns = rank, 2 * rank
    return costs
