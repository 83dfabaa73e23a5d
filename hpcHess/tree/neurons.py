"""Trees of rectangles: clusters of neurons times clusters of inputs, leaves aligned with whole neurons or whole inputs.

A layer's diagonal block is (1/n) Σ_i x_i x_iᵀ ⊗ κ_i, modelled as K ⊗ S: K = mean κ, S the inputs' correlations. All inputs of the neurons P
meet the other neurons in K_P,Pᶜ ⊗ S, all neurons of the inputs Q the other inputs in K ⊗ S_Q,Qᶜ: numerical ranks count products of singular
values of two small matrices. That decides, layer by layer, whether nodes are cut along neurons first (an output layer under squared error
has K = 2I: its neurons do not couple) or along inputs first (pixels under a classifier, whose K has few dominant directions).
Clusters of either come from halving along the principal axis of unit vectors: an input's over the samples, a neuron's
row of the kernel with all neurons. Measured in docs/MATHEMATICS.md, "Trees".
"""

from dataclasses import dataclass

import numpy as np

from hpcHess.parallel.ownership import starts_of
from hpcHess.tree.inputs import along_principal_axis
from hpcHess.tree.tree import Tree, depth_for

KERNEL_NEURONS = 1024  # up to so many neurons of a network are clustered; beyond they keep their order, and the model takes a sample
_SAMPLED = 256  # neurons and inputs of a layer in the model
_COMPARED = 3  # levels over which the two first cuts are compared
_BALANCE = 1 / 3  # smallest side of a cut between layers
_MIXED = 1 / 4  # part of the leaves that may hold parts of two atoms before the tree becomes one level deeper


@dataclass
class Layer:
    """Alive parameters of a layer: positions `at` int64 [m]; `items`: for neurons and for inputs the number of each [m] within the
    layer; `vectors`: unit vectors of the two, [d, ·] (None: too many neurons) and [d', ·]; `kernel` K [c, c] of its neurons or a sample of
    them; `rows` [d', k]: S = rows rowsᵀ."""

    at: np.ndarray
    items: tuple
    vectors: tuple
    kernel: np.ndarray
    rows: np.ndarray

    def factors(self):
        """(K, S) of a sample of neurons and inputs that have alive parameters."""
        rows = self.rows[_sampled(np.unique(self.items[1]))]
        return self.kernel, rows @ rows.T


def neuron_tree(layers, alive, leaf_size, rtol):
    """The Tree over `alive` from the network's `Layer`s. Not collective.

    The layers' atoms (neurons, or inputs: the dimension cut first) stand in one line: layers one after another, but a layer smaller
    than a third of all lies where the axis of the largest has its origin, because inputs of different layers are orthogonal.
    """
    layers = [layer for layer in layers if len(layer.at)]
    if not layers:
        return aligned_tree(alive, *np.zeros((3, 0), np.int64), leaf_size)
    factors = [layer.factors() for layer in layers]
    scale = rtol * np.sqrt(sum((np.linalg.norm(K) * np.linalg.norm(S)) ** 2 for K, S in factors))
    first = [first_cut(K, S, scale, depth_for(len(alive), leaf_size)) for K, S in factors]
    largest = max(range(len(layers)), key=lambda i: len(layers[i].at))
    guests = [i for i in range(len(layers)) if i != largest and len(layers[i].at) < _BALANCE * len(alive)]
    of_layer, outer, minor, slot = np.zeros((4, len(alive)), np.int64)
    base = 0
    for number, layer in enumerate(layers):
        of_layer[layer.at] = number
        weights = [len(layers[i].at) for i in guests] if number == largest else []
        outer[layer.at], homes = _places(layer, first[number], weights)
        minor[layer.at], _ = _places(layer, 1 - first[number], [])
        if number in guests:
            continue
        slot[layer.at] = base + outer[layer.at]
        for guest, home in zip(guests, homes, strict=False):
            slot[layers[guest].at] = base + home
        base = max(base, slot[layer.at].max() + 1, *(base + home + 1 for home in homes))
    order = np.lexsort((outer, of_layer, slot))
    atoms = np.stack([slot, of_layer, outer])[:, order]
    major = np.empty(len(alive), np.int64)
    major[order] = np.cumsum(np.append(False, np.any(atoms[:, 1:] != atoms[:, :-1], axis=0)))
    return aligned_tree(alive, of_layer, major, minor, leaf_size)


def first_cut(K, S, tolerance, depth):
    """The dimension that a layer is cut along first: 0 neurons, 1 inputs; by Σ over the first nodes of rank², the model's storage."""
    if min(len(K), len(S)) < 2:
        return int(len(K) < 2)
    levels = min(_COMPARED, int(np.log2(len(K))), int(np.log2(len(S))))
    costs = []
    for near, other in ((K, S), (S, K)):
        spectrum, cost = np.abs(np.linalg.eigvalsh(other)), 0
        norms = np.sqrt(np.maximum(np.diag(near), np.finfo(float).tiny))
        place = recursive_order(near / norms, np.ones(len(near)))
        for level in range(1, levels + 1):
            bound = tolerance / np.sqrt(2.0 * max(1, depth) * 2.0**level)
            for part in np.array_split(np.argsort(place), 1 << level):
                outside = np.setdiff1d(np.arange(len(near)), part)
                values = np.linalg.svd(near[np.ix_(part, outside)], compute_uv=False)
                cost += _rank(np.outer(values, spectrum), bound) ** 2
        costs.append(cost)
    return int(costs[1] < costs[0])


def _rank(values, bound):
    """Smallest r with √(Σ_{j ≥ r} σ_j²) ≤ bound."""
    squares = np.sort(np.square(values, dtype=float).ravel())
    return int(np.sum(np.cumsum(squares) > bound**2))


def _sampled(numbers):
    """At most _SAMPLED of them, evenly spaced."""
    return numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), _SAMPLED)).astype(np.int64)]


def _places(layer, dimension, guests):
    """(place [m] of each parameter's neuron (0) or input (1) in the clusters' order, places of guests: zero vectors of these weights)."""
    present, inverse, counts = np.unique(layer.items[dimension], return_inverse=True, return_counts=True)
    vectors = layer.vectors[dimension]
    if vectors is None:  # too many to compare: their own order, guests last
        return inverse, len(present) + np.arange(len(guests))
    vectors = np.concatenate([vectors[present], np.zeros((len(guests), vectors.shape[1]))])
    place = recursive_order(vectors, np.append(counts, guests).astype(float))
    return place[inverse], place[len(present) :]


def recursive_order(vectors, weights):
    """Place of every vector [d, k] when the set is halved by weight along its principal axis down to single ones, int64 [d]."""
    pieces, done = [np.arange(len(vectors))], []
    while pieces:
        piece = pieces.pop()
        if len(piece) < 2:
            done.extend(piece)
            continue
        piece = piece[np.lexsort((piece, along_principal_axis(vectors[piece], weights[piece])))]
        cut = _nearest_half(np.cumsum(weights[piece]))
        pieces += [piece[cut:], piece[:cut]]
    place = np.empty(len(vectors), np.int64)
    place[np.array(done, np.int64)] = np.arange(len(vectors))
    return place


def _nearest_half(ends):
    """How many of several pieces with these cumulated sizes come nearest to one half, at least one and not all."""
    return 1 + int(np.argmin(np.abs(ends[:-1] - ends[-1] / 2)))


def aligned_tree(alive, of_layer, major, minor, leaf_size):
    """The Tree of the least depth (or one more) whose nodes are cut between atoms where a cut fits.

    int64 [n] each: a parameter's layer, its atom `major` (numbered along the line), its place `minor` in the other dimension.
    A node of size ≤ leaf_size·2^(levels below) is cut between layers where both sides are at least a third of it, else between the atoms next
    to its median, else along the other dimension, else at the median itself: that leaf mixes parts of two atoms.
    """
    depth = depth_for(len(alive), leaf_size)
    pieces, mixed = _cut_levels(of_layer, major, minor, leaf_size, depth)
    if mixed > _MIXED * (1 << depth):
        deeper, fewer = _cut_levels(of_layer, major, minor, leaf_size, depth + 1)
        if fewer < mixed:
            pieces, depth = deeper, depth + 1
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    return Tree(depth, alive[np.concatenate(pieces)].astype(np.int64), starts_of(sizes))


def _cut_levels(of_layer, major, minor, leaf_size, depth):
    """(leaves as lists of positions, number of cuts through an atom that were not aligned)."""
    pieces, mixed = [np.lexsort((minor, major))], 0
    for level in range(depth):
        capacity, halves = leaf_size << (depth - level - 1), []
        for piece in pieces:
            *both, aligned = _cut(piece, of_layer, major, minor, capacity, leaf_size)
            halves += both
            mixed += not aligned
        pieces = halves
    return pieces, mixed


def _cut(piece, of_layer, major, minor, capacity, leaf_size):
    """(left, right, aligned) of a node's positions, sorted by atom and then by minor place. One atom that fits a leaf stays whole."""
    n = len(piece)
    layers, atoms = of_layer[piece], major[piece]
    if n < 2 or (n <= leaf_size and atoms[0] == atoms[-1]):
        return piece, piece[:0], True
    between = _best(np.flatnonzero(layers[1:] != layers[:-1]) + 1, n, n - max(1, int(n * _BALANCE)))
    if between is None or max(between, n - between) > capacity:
        between = _best(np.flatnonzero(atoms[1:] != atoms[:-1]) + 1, n, capacity)
    if between is not None:
        return piece[:between], piece[between:], True
    if layers[0] == layers[-1]:
        across = piece[np.argsort(minor[piece], kind="stable")]
        places = minor[across]
        between = _best(np.flatnonzero(places[1:] != places[:-1]) + 1, n, capacity)
        if between is not None:
            return *(half[np.lexsort((minor[half], major[half]))] for half in (across[:between], across[between:])), True
    return piece[: (n + 1) // 2], piece[(n + 1) // 2 :], False


def _best(boundaries, n, capacity):
    """The boundary next to n/2 with both sides ≤ capacity, or None."""
    if len(boundaries) == 0:
        return None
    best = int(boundaries[np.argmin(np.abs(boundaries - n / 2))])
    return best if max(best, n - best) <= capacity else None


def network_layers(operator, n_columns, seed):
    """`Layer`s of a network's operator. Not collective; the same for any number of ranks."""
    neuron, starts, chosen, kernel = operator.neuron_groups(KERNEL_NEURONS)
    groups, inputs = operator.input_groups(n_columns, seed)
    alive = operator.alive
    neuron, groups = neuron[alive], groups[alive]
    of_layer, layers = np.searchsorted(starts, neuron, side="right") - 1, []
    for number, (a, b) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        at = np.flatnonzero(of_layer == number)
        if not len(at):
            continue
        first, last = groups[at].min(), groups[at].max() + 1
        rows = inputs[first:last]
        rows = np.asarray(rows[:, rows.any(axis=0)], np.float64)
        own = np.flatnonzero((chosen >= a) & (chosen < b))
        alike = _unit(kernel[own]) if len(own) == b - a else None
        present = own[np.isin(chosen[own], neuron[at])]
        K = kernel[np.ix_(*2 * [_sampled(present if len(present) else own)])]
        layers.append(Layer(at, (neuron[at] - a, groups[at] - first), (alike, _unit(rows)), K, rows))
    return layers


def _unit(rows):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
