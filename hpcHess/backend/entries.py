"""Entries of Gram-type matrices whose columns are products of two numbers over the samples, a whole batch of blocks at once:

    H_jk = scale Σ_i x_iq x_iq' κ_i(p, p'),   κ_i(p, p') = ⟨C_i e_p, C_i e_p'⟩,   j = (p, q), k = (p', q')

for neurons p < s and rows q of X (`GramFactors`). κ of a pair, the first that holds:

* p, p' ≥ `separable`:  g_ip g_ip' ⟨M e_p, M e_p'⟩, so that a block is one matrix product of A = (g_ip x_iq), times `gram`
* `stored` is given:  stored[place_p, place_p'], place_p ≤ place_p'
* both layers have a C:  Σ_e C_ep C_ep'
* one has, the other one shares its factors:  g_ip' Σ_e C_ep M_ep'
* one has, the other is the last with outputs o:  √o_p' C_p'p
* both are the last:  δ_pp' o_p, or with `rest` o_p rest_p and −o_p o_p'

This module is the reference; `native/entries.cpp` computes the same.
"""

from dataclasses import dataclass

import numpy as np

from hpcHess.parallel.exchange import ranges
from hpcHess.parallel.ownership import starts_of

PIECE = 1 << 17  # numbers in one [|J|, samples] temporary


@dataclass
class GramFactors:
    """What κ is made of: arrays of the backend, of one float type, C-contiguous, the samples last; int64 host arrays.

    X              [R, n]
    layer_starts   int64 [L + 1]: the first neuron of each layer, and their number
    C              list over the layers: [neurons, r, n] or None
    slopes         [h, n]: g of the neurons before the last layer; 1 in the last
    separable      the first neuron with shared factors
    M, gram        [s − separable, r], and the products ⟨M e_p, M e_p'⟩, or None
    output, rest   [d, n] of the last layer, or None; `roots` is √output
    stored, place  κ [s', s'', n] or None; int64 [s], increasing, of the neurons that are stored
    """

    X: object
    layer_starts: np.ndarray
    C: list
    slopes: object
    separable: int
    M: object = None
    gram: object = None
    output: object = None
    rest: object = None
    roots: object = None
    stored: object = None
    place: object = None

    @property
    def n(self):
        """The number of samples."""
        return self.X.shape[1]

    def kappa(self, xp, p, neurons, piece):
        """κ(p, p') of sorted neurons p' for a slice of samples, [#p', m]; not for p, p' ≥ separable."""
        if self.stored is not None:
            a, b = self.place[p], self.place[neurons]
            return self.stored[xp.asarray(np.minimum(a, b)), xp.asarray(np.maximum(a, b)), piece]
        result = xp.empty((len(neurons), self.X[:1, piece].shape[1]), self.X.dtype)
        cuts, own = np.searchsorted(neurons, self.layer_starts), self._column(p, piece)
        for layer, (first, last) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            if first < last:
                result[first:last] = self._kappa(xp, p, own, layer, neurons[first:last] - self.layer_starts[layer], piece)
        return result

    def _column(self, p, piece):
        """C e_p [r, m], or None where it is not stored."""
        layer = int(np.searchsorted(self.layer_starts, p, side="right")) - 1
        return None if self.C[layer] is None else self.C[layer][int(p - self.layer_starts[layer]), :, piece]

    def _kappa(self, xp, p, own, layer, local, piece):
        """κ(p, p') of neurons p' of one layer."""
        at, first, last = xp.asarray(local), int(self.layer_starts[layer]), int(self.layer_starts[-2])
        if self.C[layer] is None and own is None:  # both in the last layer
            o, mine = self.output[at, piece], self.output[int(p - last), piece]
            equal = xp.asarray(local == p - last)[:, None]
            return xp.where(equal, o, 0) if self.rest is None else xp.where(equal, o * self.rest[at, piece], -o * mine)
        if self.C[layer] is None and self.output is not None:
            return self.roots[at, piece] * own[at]
        if self.C[layer] is not None and own is not None:
            return xp.einsum("en,pen->pn", own, self.C[layer][at, :, piece])
        if own is not None:
            found = self.M[at + (first - self.separable)] @ own
            return found if first == last else found * self.slopes[at + first, piece]
        if self.output is not None:
            return self.roots[int(p - last), piece] * self.C[layer][at, int(p - last), piece]
        found = xp.einsum("e,pen->pn", self.M[int(p) - self.separable], self.C[layer][at, :, piece])
        return found if p >= last else found * self.slopes[int(p), piece]


@dataclass
class Sides:
    """Rows, or columns, of all blocks one after another, each block's sorted by neuron: int64 host arrays.

    neuron, row, place   [Σ m_b]: p, q and where in the block the row stands
    starts               [b + 1]
    """

    neuron: np.ndarray
    row: np.ndarray
    place: np.ndarray
    starts: np.ndarray

    def part(self, b):
        """(neuron, row, place) of one block."""
        rows = slice(int(self.starts[b]), int(self.starts[b + 1]))
        return self.neuron[rows], self.row[rows], self.place[rows]

    def equals(self, other):
        """Whether these are the same rows in the same order."""
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in ("starts", "neuron", "row", "place"))

    def chosen(self, blocks):
        """The sides of the blocks with these numbers."""
        counts = np.diff(self.starts)[blocks]
        rows = ranges(self.starts[:-1][blocks], counts)
        return Sides(self.neuron[rows], self.row[rows], self.place[rows], starts_of(counts))

    def some(self, first, end):
        """The sides of some blocks."""
        starts = self.starts[first : end + 1]
        rows = slice(int(starts[0]), int(starts[-1]))
        return Sides(self.neuron[rows], self.row[rows], self.place[rows], starts - starts[0])


def gram_entries(xp, factors, I, J, scale, H):
    """Sets every block of H, `Blocks` of any float type, to the entries of `Sides` I and J; sums over pieces of the samples in float64."""
    for b in range(len(H)):
        (p, q, place), (p2, q2, place2) = I.part(b), J.part(b)
        if not len(p) or not len(p2):
            continue
        sums = xp.zeros((len(p), len(p2)))
        a, a2 = np.searchsorted(p, factors.separable), np.searchsorted(p2, factors.separable)
        _by_neuron(xp, factors, (p[:a], q[:a]), (p2, q2), sums[:a])
        _by_neuron(xp, factors, (p2[:a2], q2[:a2]), (p[a:], q[a:]), sums[a:, :a2].T)
        _shared(xp, factors, (p[a:], q[a:]), (p2[a2:], q2[a2:]), sums[a:, a2:])
        H[b][xp.asarray(place)[:, None], xp.asarray(place2)] = sums * scale


def _pieces(n, width):
    step = max(32, PIECE // width)
    return (slice(lo, min(n, lo + step)) for lo in range(0, n, step))


def _by_neuron(xp, factors, I, J, sums):
    """sums += Σ_i of entries with κ of all pairs: for every neuron p of the side with fewer, X_{I_p} (κ(p, ·) ∘ X_J)ᵀ."""
    if not sums.size:
        return
    starts, starts2 = (np.append(np.flatnonzero(np.diff(side[0], prepend=-1)), len(side[0])) for side in (I, J))
    if len(starts2) < len(starts):
        I, J, starts, starts2, sums = J, I, starts2, starts, sums.T
    of = xp.asarray(np.repeat(np.arange(len(starts2) - 1), np.diff(starts2)))
    for piece in _pieces(factors.n, len(J[0])):
        X_I, X_J = factors.X[xp.asarray(I[1]), piece], factors.X[xp.asarray(J[1]), piece]
        for first, last in zip(starts[:-1], starts[1:], strict=True):
            kappa = factors.kappa(xp, I[0][first], J[0][starts2[:-1]], piece)
            sums[first:last] += X_I[first:last] @ (kappa[of] * X_J).T


def _shared(xp, factors, I, J, sums):
    """sums += ⟨M e_p, M e_p'⟩ ∘ A_I A_Jᵀ."""
    if not sums.size:
        return
    for piece in _pieces(factors.n, max(sums.shape)):
        sums += _scaled(xp, factors, *I, piece) @ _scaled(xp, factors, *J, piece).T
    at, at2 = (xp.asarray(side[0] - factors.separable) for side in (I, J))
    sums *= factors.gram[at[:, None], at2]


def _scaled(xp, factors, neuron, row, piece):
    """A = (g_ip x_iq), [len, m]."""
    A, hidden = factors.X[xp.asarray(row), piece], int(np.searchsorted(neuron, factors.layer_starts[-2]))
    if hidden:
        A[:hidden] *= factors.slopes[xp.asarray(neuron[:hidden]), piece]
    return A
