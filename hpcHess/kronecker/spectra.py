r"""Singular value decompositions of rearranged blocks R = (1/n) Φᵀ Ψ (`kronecker.sides`) in three ways, none of which forms Φ or Ψ whole.

explicit     R itself, where one side has few coordinates: D_small combinations of the other side
gram         for n of a few thousand: with ΦΦᵀ = L L^T, ΨΨᵀ = M Mᵀ (eigen-decompositions of the n × n Gram matrices; L = Φ where D ≤ n), L from
             the left and M from the right carry the SVD of LᵀM/n over to R; squares of singular values are known to ε ‖Φ‖²‖Ψ‖²/n²
             in absolute terms, so those below about √ε of the largest are noise and are not offered, and the error is known to as much
randomized   for many samples (Halko, Martinsson & Tropp, SIREV 2011): an orthonormal P in the range of R Rᵀ G for a Gaussian G, B = Rᵀ P, the
             SVD of B; ‖R − P Pᵀ R‖² = ‖R‖² − ‖B‖², exact, grown block by block until the terms chosen need no more

A spectrum has `values` [K], descending, `tails` [K + 1]: ‖R − best sum of the first k‖² (of what is offered), `norm2` = ‖R‖²_F, `doubt`: what the tails are known
to; `vectors(lo, hi)`: unit singular vectors in the coordinates of both sides, whole on every rank. Samples are split over the ranks. All methods are collective.
"""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel.agree import together
from hpcHess.parallel.ownership import row_starts
from hpcHess.parallel.random import gaussian_rows
from hpcHess.parallel.replicated import replicated

GRAM_SAMPLES = 4000  # most samples of the Gram route
EXPLICIT_NUMBERS = 1 << 25  # in R of the explicit one
CHEAP = 2e8  # operations
FLOOR = 1e-7  # of the largest singular value: smaller ones of the Gram route are noise
DOUBT = 8  # ε ‖R‖², to which differences of squares are known (‖R‖² − ‖B‖², K-FAC's): 3 times what is measured (docs/MATHEMATICS.md)
BLOCK = 32  # columns of the randomized route at first
OVERSAMPLING = 8
_MESSAGE = 1 << 27
_SAMPLES, _LEAST = 1024, 64
_NUMBERS = 1 << 24
_SQUARE = 2048  # samples in a block of the Gram matrices of `squared_norms`


class Pair:
    """The block of the layers ℓ ≤ ℓ': its sides, and how often it counts in ‖H‖_F² (`times` 1 or 2)."""

    def __init__(self, layers, kernels, inputs, samples):
        self.layers, self.kernels, self.inputs, self.samples = layers, kernels, inputs, samples
        self.n, self.times = samples.n, 1 if layers[0] == layers[1] else 2
        self.empty = not (kernels.D and inputs.D)

    def term_numbers(self):
        """Numbers stored for one term."""
        return self.kernels.numbers() + self.inputs.D

    def shared_numbers(self):
        """Numbers stored once for all terms."""
        return 0 if self.kernels.shared is None else self.kernels.shared.size

    def blocks(self, mine):
        """Numbers of the samples of a slice, in pieces."""
        step = int(min(_SAMPLES, max(_LEAST, _NUMBERS // max(1, self.kernels.D))))
        for lo in range(mine.start, mine.stop, step):
            yield np.arange(lo, min(mine.stop, lo + step))


def summed(comm, array):
    """The sum over ranks of a contiguous array, in place. Collective."""
    flat = array.reshape(-1)
    for at in range(0, flat.size, _MESSAGE) if comm.size > 1 else ():
        comm.Allreduce(MPI.IN_PLACE, flat[at : at + _MESSAGE])
    return array


def sent(comm, array, owner):
    """The owner's float64 array on every rank (the others give None). Collective."""
    if comm.size == 1:
        return array
    shape = comm.bcast(None if array is None else array.shape, root=owner)
    array = np.empty(shape) if comm.rank != owner else np.ascontiguousarray(array)
    flat = array.reshape(-1)
    for at in range(0, flat.size, _MESSAGE):
        comm.Bcast(flat[at : at + _MESSAGE], root=owner)
    return array


def _tails(squares):
    """Σ_{i ≥ k} of squares [K], for k = 0 … K."""
    return np.append(np.cumsum(squares[::-1])[::-1], 0.0)


class _Known:
    """A spectrum of which all singular values are known; the vectors lie with the owner."""

    route, doubt = "explicit", 0.0

    def __init__(self, pair, comm, mine, owner):
        self.pair, self.comm, self.mine, self.owner = pair, comm, mine, owner

    def _settle(self, values, floor):
        """Keep all values for the tails and offer those above the floor. Collective."""
        values = sent(self.comm, values, self.owner)
        tails = replicated(self.comm, _tails, np.square(values))
        self.norm2 = float(tails[0])
        offered = int((values > floor * values[0]).sum()) if len(values) else 0
        self.values, self.tails = values[:offered], tails[: offered + 1]

    def grow(self):
        """Whether there are more terms than before: never."""
        return False


class Explicit(_Known):
    """By R itself, [D_small, D_large], on rank `owner`."""

    def __init__(self, pair, comm, mine, owner=0):
        super().__init__(pair, comm, mine, owner)
        self._kernels_small = pair.kernels.D <= pair.inputs.D
        small, large = (pair.kernels, pair.inputs) if self._kernels_small else (pair.inputs, pair.kernels)
        R = np.zeros((small.D, large.D))
        with together(comm):
            for block in pair.blocks(mine):
                R += large.combine(small.features(block).T, block)
        R = summed(comm, R)
        R /= pair.n
        self._vectors = values = None
        with together(comm):
            if comm.rank == owner:
                U, values, Vt = np.linalg.svd(R, full_matrices=False)
                self._vectors = np.ascontiguousarray(U.T), Vt
        self._settle(values, np.finfo(float).eps)

    def vectors(self, lo, hi):
        few, many = (sent(self.comm, None if self._vectors is None else each[lo:hi], self.owner) for each in self._vectors or (None, None))
        return (few, many) if self._kernels_small else (many, few)


class Gram(_Known):
    """By the n × n Gram matrices, which rank `owner` decomposes; `decompose` does it (so that many pairs go at once)."""

    route = "gram"

    def __init__(self, pair, comm, mine, owner=0):
        super().__init__(pair, comm, mine, owner)
        every, rows = np.arange(pair.n), np.arange(mine.start, mine.stop)
        self._halves, self._coefficients = [], None
        for side in (pair.kernels, pair.inputs):
            by_features = side.D <= pair.n
            with together(comm):
                part = side.features(rows).T if by_features else side.gram(rows, every)
            self._halves.append((by_features, self._collected(np.ascontiguousarray(part, np.float64))))

    def _collected(self, part):
        """The rows of all ranks on the owner, else None."""
        comm = self.comm
        if comm.size == 1:
            return part
        counts = np.diff(row_starts(self.pair.n, comm.size)) * part.shape[1]
        whole = np.empty((self.pair.n, part.shape[1])) if comm.rank == self.owner else None
        comm.Gatherv(part, None if whole is None else [whole, counts], root=self.owner)
        return whole

    def decompose(self):
        """The SVD on the owner; not collective."""
        if self.comm.rank == self.owner:
            (L, left), (M, right) = (_half(*each) for each in self._halves)
            if not (left is None and right is None):
                self.doubt = (FLOOR * _largest(L) * _largest(M) / self.pair.n) ** 2
            U, self._values, Vt = np.linalg.svd(L.T @ M / self.pair.n, full_matrices=False)
            self._coefficients = [U.T if left is None else U.T @ left.T, Vt if right is None else Vt @ right.T]
        self._made = [by_features for by_features, _ in self._halves]
        self._halves = None

    def settle(self):
        """Tell all ranks the singular values. Collective."""
        self.doubt = self.comm.bcast(self.doubt, root=self.owner)
        self._settle(self._values if self.comm.rank == self.owner else None, FLOOR)
        if self._coefficients is not None:
            self._coefficients = [each[: len(self.values)].copy() for each in self._coefficients]

    def vectors(self, lo, hi):
        found = []
        for at, (side, by_features) in enumerate(zip((self.pair.kernels, self.pair.inputs), self._made, strict=True)):
            own = None if self._coefficients is None else self._coefficients[at][lo:hi]
            W = sent(self.comm, own, self.owner)
            found.append(W if by_features else _combined(self.comm, self.pair, side, W, self.mine))
        return found


def _half(by_features, array):
    """(L with L Lᵀ = the side's Gram matrix, coefficients W with Φᵀ W orthonormal; None where L = Φ)."""
    if by_features:
        return array, None
    w, V = np.linalg.eigh(array)
    keep = w > w[-1] * 1e-14 if w[-1] > 0 else np.zeros(len(w), bool)
    return V[:, keep] * np.sqrt(w[keep]), V[:, keep] / np.sqrt(w[keep])


def _largest(L):
    """‖L‖₂ to a few per cent, by power iteration."""
    v, size = np.abs(L).sum(axis=0), 0.0
    for _ in range(10):
        v /= np.linalg.norm(v) or 1.0
        image = L @ v
        size, v = float(np.linalg.norm(image)), L.T @ image
    return size


def difference_of_squares(pair, norm2):
    """To what a difference of ‖R‖² = norm2 and something near it is known."""
    return DOUBT * float(np.finfo(pair.inputs.dtype).eps) * norm2


def _combined(comm, pair, side, W, mine):
    """Σ_i W_ki φ_i over all samples, float64 [k, D], for W [k, n] whole on every rank. Collective."""
    total = np.zeros((len(W), side.D))
    with together(comm):
        for block in pair.blocks(mine):
            total += side.combine(W[:, block].T, block)
    return summed(comm, total)


class Randomized:
    """By random projections. norm2: ‖R‖_F² (`squared_norms`). P and B have the coordinates of the smaller and larger side."""

    route = "randomized"

    def __init__(self, pair, comm, mine, norm2, seed=0):
        self.pair, self.comm, self.mine, self.norm2, self._seed = pair, comm, mine, norm2, seed
        self.doubt = difference_of_squares(pair, norm2)
        self._kernels_small = pair.kernels.D <= pair.inputs.D
        self._small, self._large = (pair.kernels, pair.inputs) if self._kernels_small else (pair.inputs, pair.kernels)
        self._P, self._B = np.zeros((0, self._small.D)), np.zeros((0, self._large.D))
        self._drawn, self._complete = 0, False
        self.grow()

    def _apply(self, V, source, target):
        """Rᵀ or R times coordinates, [k, D_source] → [k, D_target]."""
        total = np.zeros((len(V), target.D))
        with together(self.comm):
            for block in self.pair.blocks(self.mine):
                total += target.combine(source.inner(V, block), block)
        total = summed(self.comm, total)
        total /= self.pair.n
        return total

    def grow(self):
        """As many columns again (BLOCK at first); False where R is exhausted."""
        k = min(max(BLOCK, len(self._P)), self._small.D - len(self._P))
        if self._complete or k <= 0:
            return False
        stream = f"kronecker {self.pair.layers[0]} {self.pair.layers[1]}"
        G = gaussian_rows(self._seed, stream, 0, self._small.D, range(self._drawn, self._drawn + k), np.float64).T
        self._drawn += k
        if len(self._P) + k < self._small.D:
            G = self._outside(G)
            Z = self._apply(G, self._small, self._large)
            Z /= np.linalg.norm(Z, axis=1, keepdims=True).clip(np.finfo(float).tiny)
            G = self._apply(Z, self._large, self._small)
        P = replicated(self.comm, self._added, G)
        if not len(P):
            self._complete = True
            return False
        self._P = np.concatenate([self._P, P])
        self._B = np.concatenate([self._B, self._apply(P, self._small, self._large)])
        self._decompose()
        return True

    def _added(self, G):
        """Orthonormal rows: what those of G add to the span of P's. Not collective."""
        return _orthonormal(self._outside(_orthonormal(self._outside(G))))

    def _outside(self, G):
        return G - (G @ self._P.T) @ self._P

    def _decompose(self):
        """Singular values by the Gram matrix of B, whose columns the ranks share."""
        starts = row_starts(self._large.D, self.comm.size)[self.comm.rank :]
        part = np.ascontiguousarray(self._B[:, int(starts[0]) : int(starts[1])])
        w, U = replicated(self.comm, np.linalg.eigh, summed(self.comm, part @ part.T))
        w, self._U = np.maximum(w[::-1], 0), U[:, ::-1]
        whole = len(self._P) == self._small.D
        kept = len(w) if whole or self._complete else max(1, len(w) - OVERSAMPLING)
        above = int((w > FLOOR**2 * w[0]).sum())
        self._complete |= above < len(w)  # what would come now is rounding
        kept = min(kept, above)
        tails = replicated(self.comm, _tails, w)
        tails += max(0.0, self.norm2 - float(tails[0]))
        self.values, self.tails = np.sqrt(w[:kept]), tails[: kept + 1]

    def vectors(self, lo, hi):
        U = self._U[:, lo:hi].T
        few, many = U @ self._P, (U @ self._B) / self.values[lo:hi, None]
        return (few, many) if self._kernels_small else (many, few)


def _orthonormal(G):
    """An orthonormal basis of the rows of G [k, D], without rows that are rounding."""
    Q, T = np.linalg.qr(G.T)
    size = np.abs(np.diag(T))
    return np.ascontiguousarray(Q.T[size > 1e-12 * size.max(initial=0)])


def squared_norms(pairs, comm):
    """‖R‖_F² of every pair, Σ_ij ⟨φ_i, φ_j⟩⟨ψ_i, ψ_j⟩ / n², by pairs of blocks of samples that the ranks share. Collective."""
    totals = np.zeros(len(pairs))
    for at, pair in enumerate(pairs):
        blocks, task = [np.arange(lo, min(pair.n, lo + _SQUARE)) for lo in range(0, pair.n, _SQUARE)], 0
        with together(comm):
            for a, I in enumerate(blocks):
                for b, J in enumerate(blocks[: a + 1]):
                    if task % comm.size == comm.rank:
                        product = pair.kernels.gram(I, J) * pair.inputs.gram(I, J)
                        totals[at] += (1 if a == b else 2) * float(product.sum(dtype=np.float64))
                    task += 1
        totals[at] /= float(pair.n) ** 2
    return summed(comm, totals)


def route_of(pair):
    """The cheapest exact way to a pair's SVD by operations (`explicit`, to rounding, where that is `CHEAP`), or `randomized` where n × n arrays and R are
    too large."""
    n, small, large = pair.n, *sorted((pair.kernels.D, pair.inputs.D))
    costs = {}
    if small * large <= EXPLICIT_NUMBERS:
        costs["explicit"] = 2.0 * small * large * n + 12.0 * small**2 * large
        if costs["explicit"] <= CHEAP:
            return "explicit"
    if n <= GRAM_SAMPLES:
        widths = min(n, small), min(n, large)
        inner = sum(pair.inputs.shape)
        costs["gram"] = 2.0 * n * n * (min(small, 4 * n) + inner) + 20.0 * n**3 * (small > n) + 30.0 * n**3 + 12.0 * widths[0] ** 2 * widths[1]
    cheapest = min(costs, key=costs.get, default="randomized")
    by_random = 6.0 * n * (small + large) * 4 * BLOCK + 2.0 * n * n * (min(small, large) + 1)
    return "randomized" if n > GRAM_SAMPLES and costs.get(cheapest, np.inf) > by_random else cheapest


def spectra_of(pairs, comm, mine, seed=0, route=None):
    """A spectrum for every pair, all by `route` or each by `route_of`. Collective."""
    routes = [route or route_of(pair) for pair in pairs]
    grown = [at for at, each in enumerate(routes) if each == "randomized"]
    norms = dict(zip(grown, squared_norms([pairs[at] for at in grown], comm), strict=True))
    made = {at: Randomized(pairs[at], comm, mine, norms[at], seed) for at in grown}
    for number, at in enumerate(each for each, way in enumerate(routes) if way == "explicit"):
        made[at] = Explicit(pairs[at], comm, mine, number % comm.size)
    grams = [at for at, each in enumerate(routes) if each == "gram"]
    for first in range(0, len(grams), comm.size):  # as many at a time as there are ranks to decompose them
        several = grams[first : first + comm.size]
        for owner, at in enumerate(several):
            made[at] = Gram(pairs[at], comm, mine, owner)
        with together(comm):
            for at in several:
                made[at].decompose()
        for at in several:
            made[at].settle()
    return [made[at] for at in range(len(pairs))]
