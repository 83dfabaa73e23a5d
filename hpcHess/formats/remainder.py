"""H − Π S Π for an operator H and a structured part S: what the tree compresses after S was taken out."""

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.operator import RowOperator


class Remainder(RowOperator):
    """H − Π S Π behind the operator protocol (docs/ARCHITECTURE.md). Symmetric, indefinite even where H is not.

    operator   H; `part` S, a CompressedMatrix with `entries_batch` where the tree's blocks come from entries. Π sets the rows to zero where H's are: a
               Kronecker sum need not be zero there
    Trees come from the network that H was made from: the embeddings are those of H. Making it, `matmat_rows` and `partial_matmat` are collective.
    """

    def __init__(self, operator, part):
        self.comm, self.n_params, self.dtype, self.alive = operator.comm, operator.n_params, operator.dtype, operator.alive
        self._operator, self._part = operator, part.gathered() if hasattr(part, "gathered") else part
        self._dead = dead_rows(self.alive, self.mine)
        for name in ("input_groups", "neuron_groups", "partial_probe", "n_samples", "n_outputs"):
            if hasattr(operator, name):
                setattr(self, name, getattr(operator, name))
        if hasattr(operator, "entries_batch"):
            self.entries_batch = self._entries_batch

    def partial_matmat(self, V):
        """V [N, k] whole → [N, k]: this rank's share of (H − S)V; the sum over ranks is the product."""
        result = np.array(self._operator.partial_matmat(V), self.dtype)
        result[self.mine] -= masked_product(self._part, self._dead, V[self.mine])
        return result

    def own_rows(self, V):
        """This rank's rows of (H − S)V for V [N, k] whole, [n_local, k]."""
        return self.matmat_rows(np.ascontiguousarray(V[self.mine]))

    def matmat_rows(self, V):
        """(H − S)V in parameter rows, [n_local, k] → [n_local, k]."""
        return (self._operator.matmat_rows(V) - masked_product(self._part, self._dead, V)).astype(self.dtype, copy=False)

    def diagonal(self):
        """H_jj − S_jj, [N], whole on every rank. Collective."""
        taken = np.zeros(self.n_params)
        taken[self.alive] = self._part.diagonal()[self.alive]
        return (self._operator.diagonal() - taken).astype(self.dtype)

    def entries(self, I, J):
        """Exact (H − S)[I, J], [|I|, |J|], of alive parameters. Not collective."""
        return (self._operator.entries(I, J) - self._part.entries(I, J)).astype(self.dtype, copy=False)

    def _entries_batch(self, I, starts_I, J, starts_J):
        """`backend.Blocks` of (H − S)[I_b, J_b] for flat index arrays cut at the starts. Not collective."""
        found = self._operator.entries_batch(I, starts_I, J, starts_J)
        taken = self._part.entries_batch(I, starts_I, J, starts_J)
        return Blocks((found.data - taken.data).astype(self.dtype, copy=False), found.rows, found.cols, found.offsets)


def dead_rows(alive, mine):
    """This rank's parameter rows (a slice) outside of `alive`, counted from its first."""
    return np.setdiff1d(np.arange(mine.start, mine.stop), alive) - mine.start


def masked_product(part, dead, V):
    """Π S Π V in parameter rows, Π zero on the own rows `dead`. Collective."""
    V = np.array(V, order="C")
    V[dead] = 0
    result = part.matmat_rows(V)
    result[dead] = 0
    return result
