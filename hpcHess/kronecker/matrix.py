"""Sums of Kronecker products over the layer pairs of a network, as users hold them."""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.compressed.matrix import CompressedMatrix
from hpcHess.kronecker.inverse import PRODUCT_BYTES, KroneckerInverse
from hpcHess.kronecker.layers import Places
from hpcHess.kronecker.preconditioner import Elimination, eliminable
from hpcHess.parallel.exchange import gather_rows, reduce_rows
from hpcHess.parallel.ownership import starts_of


class KroneckerSum(CompressedMatrix):
    """H̃ = Σ over layer pairs (ℓ ≤ ℓ') of Σ_k A_k ⊗ S_k and, of ℓ < ℓ', its transpose, in row-major [W b] order of each layer.

    layers   `kronecker.layers.Layer`s;  terms   `kronecker.terms.Terms` of the pairs that have any, whole on every host
    The terms are dealt out to the ranks by operations, contiguously: each multiplies with its own.
    """

    format = "kronecker-sum"

    def __init__(self, comm, backend, n_params, dtype, layers, terms, report=None):
        super().__init__(comm, backend, n_params, dtype, report)
        self.layers, self.terms = layers, [each for each in terms if len(each)]
        self._places, self.eigen, self.elimination = Places(layers), None, None
        cost = starts_of(np.concatenate([np.full(len(each), each.flops()) for each in self.terms] or [np.zeros(0)]))
        middle = (cost[:-1] + cost[1:]) / 2
        bounds = np.searchsorted(middle, cost[-1] * np.arange(comm.size + 1) / comm.size)
        starts = starts_of([len(each) for each in self.terms])
        first, last = np.clip(bounds[comm.rank : comm.rank + 2], starts[:-1, None], starts[1:, None]).T - starts[:-1]
        self._own = [slice(int(a), int(b)) for a, b in zip(first, last, strict=True)]

    @property
    def n_alive(self):
        """Parameters in living rows and columns."""
        return sum(d * c for d, c in (layer.shape for layer in self.layers))

    @property
    def block_diagonal(self):
        """Whether there is one term for diagonal pairs and none else: then (H̃ + λI)⁻¹ is known."""
        return all(each.symmetric and len(each) == 1 for each in self.terms)

    @property
    def solvers(self):
        """`kronecker` where the inverse is known, else none: solves are iterative."""
        return ("kronecker",) if self.block_diagonal else ()

    def partial_matmat(self, V):
        """The share of this rank's terms of H̃V: V [N, k] whole → [N, k]; the sum over ranks is H̃V. Not collective."""
        xp, k = self.backend.xp, V.shape[1]
        dtype = np.result_type(self.dtype, V.dtype)
        result = xp.zeros((self.n_params, k), dtype)
        V = self.backend.asarray(V, dtype)
        used = {layer for each, own in zip(self.terms, self._own, strict=True) if own.stop > own.start for layer in each.layers}
        inputs = {at: self.layers[at].gather(xp, V) for at in used}
        outputs = {at: xp.zeros_like(inputs[at]) for at in used}
        for each, own in zip(self.terms, self._own, strict=True):
            if own.stop > own.start:
                a, b = each.layers
                each.add(self.backend, own, inputs[a], inputs[b], outputs[a], outputs[b])
        for at in used:
            self.layers[at].scatter(xp, outputs[at], result)
        return self.backend.to_host(result)

    def matmat_rows(self, V):
        """H̃V in parameter rows, [n_local, k] → [n_local, k]. Collective."""
        dtype = np.result_type(self.dtype, V.dtype)
        result, width = np.empty(V.shape, dtype), max(1, PRODUCT_BYTES // (max(1, self.n_params) * dtype.itemsize))
        for a in range(0, V.shape[1], width):
            whole = gather_rows(self.comm, np.ascontiguousarray(V[:, a : a + width], dtype), self.parameter_starts)
            result[:, a : a + width] = reduce_rows(self.comm, self.partial_matmat(whole), self.parameter_starts)
        return result

    def diagonal_rows(self):
        """H̃_jj of the own parameter rows, float64 [n_local]. Collective."""
        whole = np.zeros((self.n_params, 1))
        for each, own in zip(self.terms, self._own, strict=True):
            if each.symmetric and own.stop > own.start:
                self.layers[each.layers[0]].scatter(np, np.ascontiguousarray(each.diagonal(own)[:, None, :]), whole)
        return reduce_rows(self.comm, whole, self.parameter_starts)[:, 0]

    def norm_frobenius(self):
        """‖H̃‖_F, exact, by the inner products of the terms. Collective."""
        squares = [(1 if each.symmetric else 2) * each.squared_norm(own) for each, own in zip(self.terms, self._own, strict=True)]
        return float(np.sqrt(self.comm.allreduce(sum(squares))))

    def entries(self, I, J):
        """H̃[I, J], [|I|, |J|], for int64 parameter indices. Not collective."""
        found = np.zeros((len(I), len(J)))
        rows, columns = {at: rest for at, *rest in self._places.of(I)}, {at: rest for at, *rest in self._places.of(J)}
        for each in self.terms:
            a, b = each.layers
            if a in rows and b in columns:
                (at, p, q), (at2, p2, q2) = rows[a], columns[b]
                found[at[:, None], at2] = each.entries(p, q, p2, q2)
            if a != b and b in rows and a in columns:
                (at, p, q), (at2, p2, q2) = rows[b], columns[a]
                found[at[:, None], at2] = each.entries(p2, q2, p, q).T
        return found.astype(self.dtype)

    def entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of H̃[I_b, J_b] for flat index arrays cut at the starts. Not collective."""
        result = Blocks.shaped(lambda size: np.empty(size, self.dtype), np.diff(starts_I), np.diff(starts_J))
        for b in range(len(result)):
            result[b][...] = self.entries(I[starts_I[b] : starts_I[b + 1]], J[starts_J[b] : starts_J[b + 1]])
        return result

    def storage(self):
        """storage_entries, storage_bytes, storage_percent."""
        entries = sum(each.numbers() for each in self.terms)
        percent = 100.0 * entries / float(self.n_params) ** 2
        return {"storage_entries": entries, "storage_bytes": entries * self.dtype.itemsize, "storage_percent": percent}

    def inverse(self, damping):
        """`KroneckerInverse` from the leading term of every diagonal layer block: exact where `block_diagonal`, else a preconditioner."""
        return KroneckerInverse(self, damping, exact=self.block_diagonal)

    def _factorized(self, damping, solver):
        return self.inverse(damping)

    def preconditioning_factors(self, damping, solver=None):
        """The exact inverse where it is known; else `kronecker.preconditioner.Eliminated` where the operator is at hand and allows it, else
        None: the inverse of the leading terms (`inverse`) is worse than nothing (docs/MATHEMATICS.md). Collective.
        """
        if self.direct:
            return self.factors(damping, solver)
        if damping <= 0 or not eliminable(self.operator):
            return None
        if self.elimination is None or self.elimination.operator is not self.operator:
            self.elimination = Elimination(self.operator)
        return self.elimination.preconditioner(damping, self)

    def append(self, out):
        """Its datasets (docs/FORMAT.md, "Kronecker sums"); returns its attributes."""
        from hpcHess.kronecker.file import append

        return append(self, out)

