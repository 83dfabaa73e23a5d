"""Symmetric blocks of a level given by their parts, so that a kernel that reads each entry once need not have them written out first."""

from dataclasses import dataclass

import numpy as np

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.exchange import ranges


@dataclass
class Assembly:
    """b blocks A_i = D_i + λI, or [[D_2i, B_i 0], [·, D_2i+1]] + λI where B_i [s × s'] lies in the leading rows and columns of its corner.

    `diagonal`: Blocks, one or (with `coupling`) two a block; `coupling`: Blocks B_i or None; `shift`: λ. Of any float types.
    """

    diagonal: Blocks
    coupling: Blocks = None
    shift: float = 0.0

    @property
    def parts(self):
        """Diagonal blocks a block."""
        return 1 if self.coupling is None else 2

    @property
    def rows(self):
        """int64 [b]."""
        return self.diagonal.rows.reshape(-1, self.parts).sum(axis=1)

    def __len__(self):
        return len(self.diagonal) // self.parts

    def block(self, xp, i):
        """A_i in float64, an array of `xp`."""
        D = self.diagonal[self.parts * i]
        if self.coupling is not None:
            B, after, n = self.coupling[i], self.diagonal[2 * i + 1], len(D)
            whole = xp.zeros((n + len(after), n + len(after)))
            whole[:n, :n], whole[n:, n:] = D, after
            whole[: B.shape[0], n : n + B.shape[1]], whole[n : n + B.shape[1], : B.shape[0]] = B, B.T
            D = whole
        return D.astype(np.float64, copy=False) + self.shift * xp.eye(len(D))

    def whole(self, backend):
        """All of them written out in float64."""
        rows, xp = self.rows, backend.xp
        if self.coupling is None:
            A = Blocks.shaped(xp.array(self.diagonal.data, dtype=np.float64), rows, rows)
        else:
            A, sizes = Blocks.shaped(xp.zeros, rows, rows), self.diagonal.rows.reshape(-1, 2)
            blocks, none = np.arange(len(rows)), np.zeros(len(rows), np.int64)
            corner = np.stack([none, sizes[:, 0]], axis=1).ravel()
            backend.place(A, self.diagonal, np.repeat(blocks, 2), corner, corner)
            backend.place(A, self.coupling, blocks, none, sizes[:, 0])
            backend.place(A, self.coupling, blocks, sizes[:, 0], none, transpose=True)
        if self.shift:
            A.data[backend.asarray(np.repeat(A.offsets[:-1], rows) + ranges(0 * rows, rows) * np.repeat(rows + 1, rows))] += self.shift
        return A
