"""Weight decay: l2 times the identity added to any operator."""

from numbers import Real

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.agree import together
from hpcHess.parallel.exchange import ranges
from hpcHess.parallel.ownership import row_starts, whole_rows
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError


class Regularized:
    r"""The curvature of a loss with weight decay (PyTorch's `weight_decay`), of all parameters, biases too:

    .. math:: f(\theta) + \tfrac{l_2}{2} \|\theta\|^2: \quad H + l_2 I \in R^{N \times N}

    operator   H, any (docs/ARCHITECTURE.md, "Operators")
    l2         ≥ 0

    It has what H has but `samples` and `network`; of a Regularized, both terms add up. `hpcHess.compress` compresses H without the term
    (`unregularized`), in which parameters may be dead and ranks low, and adds it to the result (`compressed.regularized`). Making it is
    not collective but for the error: InputError where l2 is no finite number ≥ 0.
    """

    without_samples = "l2·I is no sum over samples; do it with the operator before it is regularized"

    def __init__(self, operator, l2):
        with together(operator.comm):
            if not isinstance(l2, Real) or not 0 <= l2 < np.inf:
                raise InputError(f"l2 must be a number ≥ 0, not {l2!r}")
        if isinstance(operator, Regularized):
            operator, l2 = operator.unregularized, operator.l2 + l2
        self.unregularized, self.l2 = operator, float(l2)
        self.comm, self.dtype, self.n_params = operator.comm, operator.dtype, operator.shape[0]
        self.alive = np.arange(self.n_params) if self.l2 else operator.alive
        starts = row_starts(self.n_params, self.comm.size)
        self._own = slice(*(int(at) for at in starts[self.comm.rank : self.comm.rank + 2]))
        for name in ("n_samples", "n_outputs", "entry_draws", "indefinite", "input_groups", "neuron_groups", "close"):
            if hasattr(operator, name):
                setattr(self, name, getattr(operator, name))
        for name in ("diagonal", "entries", "entries_batch", "partial_probe"):
            if hasattr(operator, name):
                setattr(self, name, getattr(self, f"_{name}"))

    def __repr__(self):
        return f"Regularized({self.unregularized!r}, l2 = {self.l2:g})"

    @property
    def quadrature(self):
        """How the samples of H were chosen; its error is relative to ‖H‖_F without the term."""
        return getattr(self.unregularized, "quadrature", None)

    @property
    def full(self):
        """With the operator on all samples."""
        return self if self.quadrature is None else Regularized(self.unregularized.full, self.l2)

    @property
    def shape(self):
        """(N, N)."""
        return self.n_params, self.n_params

    def partial_matmat(self, V):
        """V [N, k] whole → [N, k]: this rank's share of HV, and l2 V in its parameter rows; the sum over ranks is the product."""
        result = np.array(self.unregularized.partial_matmat(V), self.dtype)
        result[self._own] += self._share(V[self._own])
        return result

    def matmat(self, V):
        """(H + l2 I)V for V [N] or [N, k], whole on every rank, as is the result. Collective."""
        V = whole_rows(V, self.n_params)
        return self.unregularized.matmat(V) + self._share(V)

    __matmul__ = matmat

    def matmat_rows(self, V):
        """(H + l2 I)V in parameter rows, [n_local, k] → [n_local, k]. Collective."""
        return self.unregularized.matmat_rows(V) + self._share(V)

    def _share(self, V):
        """l2 V in the operator's type."""
        return np.multiply(V, self.l2).astype(self.dtype, copy=False)

    def _diagonal(self):
        """H_jj + l2, [N], whole on every rank. Collective."""
        return (self.unregularized.diagonal() + self.l2).astype(self.dtype, copy=False)

    def _entries(self, I, J):
        """H[I, J] + l2 where indices meet, [|I|, |J|]. Not collective."""
        found = self.unregularized.entries(I, J)
        return found + np.where(np.asarray(I)[:, None] == np.asarray(J), found.dtype.type(self.l2), 0)

    def _entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of such blocks for flat index arrays cut at the starts. Not collective."""
        found = self.unregularized.entries_batch(I, starts_I, J, starts_J)
        at = meeting(I, starts_I, J, starts_J, self.n_params, found.offsets)
        data = np.array(found.data)
        data[at] += data.dtype.type(self.l2)
        return Blocks(data, found.rows, found.cols, found.offsets)

    def _partial_probe(self, k, seed):
        """The share of this rank of Z [N, k] with E ZZᵀ = H + l2 I: H's plus √(l2 / k) times standard normal rows. Not collective."""
        Z = np.array(self.unregularized.partial_probe(k, seed))
        Z[self._own] += np.sqrt(self.l2 / k) * gaussian_rows(seed, "l2", self._own.start, self._own.stop, range(k), Z.dtype)
        return Z


def meeting(I, starts_I, J, starts_J, n, offsets):
    """Where in the flat data of blocks [I_b, J_b], at `offsets`, row-major, both indices are the same; int64."""
    heights, widths = np.diff(starts_I), np.diff(starts_J)
    blocks = np.arange(len(heights))
    of_I, of_J = np.repeat(blocks, heights), np.repeat(blocks, widths)
    keys_I = of_I * n + np.asarray(I, np.int64)[starts_I[0] : starts_I[-1]]
    keys_J = of_J * n + np.asarray(J, np.int64)[starts_J[0] : starts_J[-1]]
    order = np.argsort(keys_J, kind="stable")
    low, high = (np.searchsorted(keys_J[order], keys_I, side) for side in ("left", "right"))
    i, j = np.repeat(np.arange(len(keys_I)), high - low), order[ranges(low, high - low)]
    b = of_I[i]
    starts_I, starts_J = np.asarray(starts_I) - starts_I[0], np.asarray(starts_J) - starts_J[0]
    return np.asarray(offsets)[b] + (i - starts_I[b]) * widths[b] + (j - starts_J[b])
