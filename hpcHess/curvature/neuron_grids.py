"""Entries of many diagonal blocks that have (nearly) the same neurons and few inputs each, as the leaves of a tree by neurons have:

    H_{(p,q),(p',q')} = (1/n) Σ_i (x_iq x_iq') κ_i(p, p') :   one matrix product from the pairs of inputs of all these blocks to the pairs of neurons,

[pairs of inputs, n] [n, pairs of neurons], so that κ is made once for all of them: 2 n an entry and nothing else, where block by block κ alone, one vector for
every entry, takes 2 n r. A group of blocks is computed for the union of their neurons; what a block has not is left out.
"""

import numpy as np

_INPUTS = 8  # of a block, at most
_NEURONS = 16, 512  # of a group, at least and at most
_FILLED = 0.7  # part of neurons × inputs that a block has, at least
_SPREAD = 1.3  # neurons of the union, as a multiple of any block's
_COLUMNS = 512  # pairs of inputs of one product, at most
_SAMPLES = 256  # of one product
_ROWS = 1 << 22  # numbers in a temporary


class Grids:
    """The groups among the diagonal blocks of `Sides`: `groups`, a list of (neurons [u] sorted, block numbers); `rest`, the other blocks' numbers."""

    def __init__(self, sides, layer_starts, rank):
        self.sides, self.groups, rest = sides, [], []
        found = []  # [layer, mask over the neurons, smallest block, blocks, pairs of inputs]
        for b in range(len(sides.starts) - 1):
            neuron, row, _ = sides.part(b)
            neurons, inputs = np.unique(neuron), np.unique(row)
            layer = int(np.searchsorted(layer_starts, neurons[0], side="right")) - 1 if len(neurons) else -1
            grid = len(neurons) * len(inputs)
            if (
                not _NEURONS[0] <= len(neurons) <= _NEURONS[1] or len(inputs) > _INPUTS or len(neuron) < _FILLED * grid or neurons[-1] >= layer_starts[layer + 1]
            ):  # fmt: skip
                rest.append(b)
                continue
            group = next((each for each in found if each[0] == layer and _fits(each, neurons)), None)
            if group is None:
                group = [layer, np.zeros(int(layer_starts[-1]), bool), len(neurons), [], 0]
                found.append(group)
            group[1][neurons] = True
            group[2] = min(group[2], len(neurons))
            group[3].append(b)
            group[4] += len(inputs) * (len(inputs) + 1) // 2
        for _, mask, _, blocks, pairs in found:
            if pairs >= 2 * rank:
                self.groups.append((np.flatnonzero(mask), blocks))
            else:
                rest += blocks
        self.rest = np.array(sorted(rest), np.int64)


def _fits(group, neurons):
    """Whether the union with these neurons is not much more than any block has."""
    union = int(group[1].sum()) + int((~group[1][neurons]).sum())
    return union <= _NEURONS[1] and union <= _SPREAD * min(group[2], len(neurons))


def add_group(backend, factors, sides, neurons, blocks, scale, H):
    """Sets the blocks of H numbered `blocks`, all of the same neurons or some of them. Sums over pieces of the samples in float64."""
    xp, u = backend.xp, len(neurons)
    square = np.zeros((u, u), np.int64)
    left, right = np.triu_indices(u)
    square[left, right] = square[right, left] = np.arange(len(left))
    parts, columns = [], []
    for b in blocks:
        neuron, row, place = sides.part(b)
        inputs, of = np.unique(row, return_inverse=True)
        numbers = np.zeros((len(inputs),) * 2, np.int64)
        upper = np.triu_indices(len(inputs))
        numbers[upper] = numbers[upper[::-1]] = len(columns) + np.arange(len(upper[0]))
        columns += list(zip(inputs[upper[0]], inputs[upper[1]], strict=True))
        parts.append((b, np.searchsorted(neurons, neuron), of, place, numbers))
    at = 0
    while at < len(parts):  # as many blocks at a time as have _COLUMNS pairs of inputs
        first, end = int(parts[at][4].min()), at + 1
        while end < len(parts) and int(parts[end][4].max()) < first + _COLUMNS:
            end += 1
        pairs = np.array(columns[first : int(parts[end - 1][4].max()) + 1], np.int64)
        sums = _sums(backend, factors, neurons, square, pairs)
        for b, own, of, place, numbers in parts[at:end]:
            values = np.empty((len(own),) * 2, sums.dtype) if len(numbers) > 1 else None
            if values is None:
                values = sums[int(numbers[0, 0] - first)][xp.asarray(square[own[:, None], own])]
            else:
                values = sums[xp.asarray(numbers[of[:, None], of] - first), xp.asarray(square[own[:, None], own])]
            back = np.argsort(place)
            H[b][...] = (values * scale)[xp.asarray(back)][:, xp.asarray(back)]
        at = end


def _sums(backend, factors, neurons, square, pairs):
    """Σ_i (x_iq x_iq') κ_i(p, p'), float64 [pairs of inputs, pairs of neurons]."""
    xp, n = backend.xp, factors.n
    left, right = np.triu_indices(len(neurons))
    sums = xp.zeros((len(pairs), len(left)))
    for lo in range(0, n, _SAMPLES):
        piece = slice(lo, min(n, lo + _SAMPLES))
        kappa = _kappa(xp, factors, neurons, square, piece)
        inputs = factors.X[xp.asarray(pairs[:, 0]), piece] * factors.X[xp.asarray(pairs[:, 1]), piece]
        step = max(1, _ROWS // len(left))
        for a in range(0, len(pairs), step):
            sums[a : a + step] += xp.matmul(inputs[a : a + step], kappa)
    return sums


def _kappa(xp, factors, neurons, square, piece):
    """κ_i(p, p') of the pairs p ≤ p' for a slice of samples, [m, pairs]."""
    layer = int(np.searchsorted(factors.layer_starts, neurons[0], side="right")) - 1
    left, right = np.triu_indices(len(neurons))
    m, C = piece.stop - piece.start, factors.C[layer]
    if factors.stored is not None or C is None:
        result = xp.empty((m, len(left)), factors.X.dtype)
        starts = np.flatnonzero(np.diff(left, prepend=-1))
        for at, (a, b) in enumerate(zip(starts, np.append(starts[1:], len(left)), strict=True)):
            result[:, a:b] = factors.kappa(xp, neurons[at], neurons[at:], piece).T
        return result
    local = xp.ascontiguousarray(C[xp.asarray(neurons - factors.layer_starts[layer]), :, piece].transpose(2, 0, 1))
    result, flat, step = xp.empty((m, len(left)), C.dtype), xp.asarray(left * len(neurons) + right), max(1, _ROWS // square.size)
    for a in range(0, m, step):
        part = local[a : a + step]
        result[a : a + step] = xp.take(xp.matmul(part, part.transpose(0, 2, 1)).reshape(len(part), -1), flat, axis=1)
    return result
