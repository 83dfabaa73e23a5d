"""Solver `ulv`: every node's basis is triangularized by an orthogonal Q and the rows that it then does not touch are eliminated.

Chandrasekaran, Gu & Pals, SIMAX 2006, for symmetric matrices (`backend.orthogonal`). Orthogonal transformations do not let numbers grow, whatever
the interpolations: the most robust form, and the slowest.
"""

import numpy as np

from hpcHess.hierarchical.factors import Factors, blocks_to_parents, parent_blocks


class ULV(Factors):
    """Factors of H̃ + λI by orthogonal rotations and eliminations."""

    solver = "ulv"

    @staticmethod
    def _step(backend, A, order, T, state, delay):
        return backend.eliminate_orthogonally(A.whole(backend), order, T, state, delay)

    @classmethod
    def _parents(cls, backend, comm, level, above, found, kept):
        """Blocks [[D̂_l, Ũ_l B Ũ_rᵀ], [·, D̂_r]]; the children's Ũ and their first rows go to the parents' steps."""
        basis = blocks_to_parents(backend, comm, level, above, found.basis, level.ranks)
        A, delayed = parent_blocks(backend, comm, level, above, found.schur, kept, backend.couple(basis, level.far.blocks))
        lo, hi = above.owned[comm.rank : comm.rank + 2]
        left = kept.reshape(-1, 2)[lo:hi, 0]
        found.basis = None
        return A, delayed, (basis, np.stack([np.zeros_like(left), left], axis=1).ravel())
