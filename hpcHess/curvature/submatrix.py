"""The block of some parameters of any operator."""

import numpy as np

from hpcHess.parallel.agree import together
from hpcHess.parallel.exchange import RowPermutation
from hpcHess.parallel.operator import PRODUCT_BYTES
from hpcHess.parallel.ownership import row_starts, whole_rows
from hpcHess.runtime.errors import InputError


class PrincipalSubmatrix:
    r"""H[I, I] of an operator H [N, N] and different indices I = (i_1, …, i_m), in the order given:

    .. math:: S = E^T H E \in R^{m \times m}, \quad E = [e_{i_1}, …, e_{i_m}] \in R^{N \times m}

    operator   H, any (docs/ARCHITECTURE.md, "Operators")
    indices    int64 [m], the same on all ranks, in parameter order of H; parameter j of S is parameter i_j of H

    Products are H's of vectors that are zero elsewhere and cost the same; entries, diagonal, probes and the groups of trees are there where H
    has them. It has no `samples`: layers as a whole are better taken from the network (`Network.restricted`), whose operator is of
    that size. Making it is not collective but for the errors: InputError where indices are no integers, none, out of range or twice the
    same, and for operators of fewer samples (`quadrature`), whose error is known of all of H alone.
    """

    quadrature = None
    without_samples = "a block of some parameters has none of its own (one of whole layers has: curvature.layers, Network.restricted)"

    def __init__(self, operator, indices):
        self.comm, self.operator, self.dtype = operator.comm, operator, operator.dtype
        with together(self.comm):
            self.indices = checked_indices(indices, operator.shape[0])
            if getattr(operator, "quadrature", None) is not None:
                raise InputError(
                    "the error of fewer samples is known of the whole matrix, not of some parameters' block: leave out the quadrature, "
                    "or choose layers (curvature.layers) in place of parameters"
                )
        self.n_params = len(self.indices)
        self.alive = np.flatnonzero(np.isin(self.indices, operator.alive)).astype(np.int64)
        starts = row_starts(operator.shape[0], self.comm.size)
        self._moves = RowPermutation(self.comm, self.indices, starts, row_starts(self.n_params, self.comm.size))
        for name in ("n_samples", "n_outputs", "entry_draws", "indefinite"):
            if hasattr(operator, name):
                setattr(self, name, getattr(operator, name))
        for name in ("diagonal", "entries", "entries_batch", "partial_probe", "probe", "input_groups", "neuron_groups"):
            if hasattr(operator, name):
                setattr(self, name, getattr(self, f"_{name}"))

    def __repr__(self):
        return f"PrincipalSubmatrix({self.n_params} parameters of {self.operator!r})"

    @property
    def full(self):
        """The operator itself."""
        return self

    @property
    def shape(self):
        """(m, m)."""
        return self.n_params, self.n_params

    def partial_matmat(self, V):
        """V [m, k] whole → [m, k]: this rank's share of SV; the sum over ranks is SV. Collective where it is for H."""
        return np.ascontiguousarray(self.operator.partial_matmat(self._padded(V))[self.indices])

    def matmat(self, V):
        """SV for V [m] or [m, k], whole on every rank, as is the result. Collective."""
        V = whole_rows(V, self.n_params)
        columns = V.reshape(self.n_params, -1)
        blocks = [self.operator.matmat(self._padded(columns[:, a:b]))[self.indices] for a, b in self._blocks(columns.shape[1])]
        return np.concatenate([np.empty((self.n_params, 0), self.dtype), *blocks], axis=1).reshape(V.shape)

    __matmul__ = matmat

    def matmat_rows(self, V):
        """SV in parameter rows of S, [m_local, k] → [m_local, k]. Collective."""
        result = np.empty(V.shape, self.dtype)
        for a, b in self._blocks(V.shape[1]):
            rows = self._moves.to_parameters(np.ascontiguousarray(V[:, a:b], self.dtype))
            result[:, a:b] = self._moves.to_tree(self.operator.matmat_rows(rows))
        return result

    def _blocks(self, k):
        """Column ranges whose vectors of H are of bounded size."""
        width = max(1, PRODUCT_BYTES // (self.operator.shape[0] * self.dtype.itemsize))
        return [(a, min(k, a + width)) for a in range(0, k, width)]

    def _padded(self, V):
        """EV, [N, k]."""
        whole = np.zeros((self.operator.shape[0], V.shape[1]), self.dtype)
        whole[self.indices] = V
        return whole

    def _diagonal(self):
        """S_jj, [m], whole on every rank. Collective."""
        return self.operator.diagonal()[self.indices]

    def _entries(self, I, J):
        """Exact S[I, J], [|I|, |J|]. Not collective."""
        return self.operator.entries(self.indices[I], self.indices[J])

    def _entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of S[I_b, J_b] for flat index arrays cut at the starts. Not collective."""
        return self.operator.entries_batch(self.indices[I], starts_I, self.indices[J], starts_J)

    def _partial_probe(self, k, seed):
        """The share of this rank of Z [m, k] with E ZZᵀ = S. Not collective."""
        return np.ascontiguousarray(self.operator.partial_probe(k, seed)[self.indices])

    def _probe(self, k, seed=0):
        """Z [m, k] with E ZZᵀ = S, whole on every rank. Collective."""
        return self.operator.probe(k, seed)[self.indices]

    def _input_groups(self, k, seed):
        """Each parameter's input and the inputs' vectors. Not collective."""
        groups, rows = self.operator.input_groups(k, seed)
        return groups[self.indices], rows

    def _neuron_groups(self, most):
        """Each parameter's neuron, and what `GaussNewton.neuron_groups` says of all neurons. Not collective."""
        groups, *neurons = self.operator.neuron_groups(most)
        return groups[self.indices], *neurons

    def close(self):
        """Let go of what H holds; neither can be used any more. Collective."""
        if hasattr(self.operator, "close"):
            self.operator.close()


def checked_indices(indices, n, name="indices"):
    """int64 [m], m ≥ 1, different ones of 0 … n − 1; else an InputError that begins with `name`. Not collective."""
    indices = np.asarray(indices)
    if indices.dtype.kind not in "iu" or indices.ndim != 1:
        raise InputError(f"{name} must be integers [m], numbers of parameters, not {indices.dtype} of the shape {list(indices.shape)}")
    if not len(indices):
        raise InputError(f"{name} is empty: at least one parameter is needed")
    wrong = np.flatnonzero((indices < 0) | (indices >= n))
    if len(wrong):
        raise InputError(f"{name}: {indices[wrong[0]]} at [{wrong[0]}] is no parameter, there are 0 … {n - 1}")
    indices = indices.astype(np.int64)
    order = np.argsort(indices, kind="stable")
    again = np.flatnonzero(np.diff(indices[order]) == 0)
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        raise InputError(f"{name}: parameter {indices[first]} is there twice, at [{first}] and [{second}]")
    return indices
