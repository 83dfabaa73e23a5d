"""Sherman–Morrison–Woodbury factors of H̃ + λI by telescoping interpolative elimination (HSS: near blocks on the diagonal only).

With A = D + U B Uᵀ level by level, every node eliminates its redundant rows (`backend.elimination`) and hands
D̂ = (UᵀD⁻¹U)⁻¹ to its parent, whose block is [[D̂_l, B], [Bᵀ, D̂_r]]; the root is solved densely. This is the Woodbury
identity A⁻¹ = G + E (D̂ + B)⁻¹ Eᵀ (Martinsson & Rokhlin, JCP 2005) without its loss of digits at small λ. O(N s²) to
factor, O(N s) to solve; log|A| and inertia are sums over the eliminated parts.
"""

import numpy as np
from mpi4py import MPI

from hpcHess.backend.blocks import Blocks
from hpcHess.parallel.agree import agree
from hpcHess.parallel.exchange import ranges
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.levels import new_level, to_children, to_parents

SOLVE_COLUMNS = 256  # right-hand sides in one sweep


class Woodbury:
    """Factors of H̃ + λI, float64. `eliminations`: by level 0 (root) … depth; `kept` int64 [2^level] by level, replicated.

    All methods are collective.
    """

    def __init__(self, matrix, damping, eliminations, kept):
        self.matrix, self.damping, self.eliminations, self.kept = matrix, damping, eliminations, kept
        self.comm, self.backend = matrix.comm, matrix.backend
        comm, depth = self.comm, matrix.tree.depth
        self._root = new_level(comm, 0, depth, None)
        dead = matrix.n_params - matrix.n_alive
        log_abs = comm.allreduce(sum(float(e.log_abs.sum()) for e in eliminations))
        negative = comm.allreduce(sum(int(e.negative.sum()) for e in eliminations))
        self.log_abs = log_abs + (dead * np.log(damping) if dead and damping > 0 else (-np.inf if dead else 0.0))
        self.negative = negative
        self.zero = dead if damping == 0 else 0

    @classmethod
    def factorize(cls, matrix, damping):
        """Factor H̃ + λI. Raises InputError for a damping that is negative or not finite, a matrix that is singular, or not HSS."""
        if not np.isfinite(damping) or damping < 0:
            raise InputError(f"the damping must be a number ≥ 0, not {damping}")
        if np.any(matrix.near.pairs[:, 0] != matrix.near.pairs[:, 1]):
            raise InputError("Woodbury factors need an HSS matrix (near blocks on the diagonal only)")
        comm, backend, depth = matrix.comm, matrix.backend, matrix.tree.depth
        A = _damped_leaves(matrix, damping)
        eliminations, kept = [None] * (depth + 1), [None] * (depth + 1)
        delayed = np.zeros((len(A), 2), np.int64)  # of the own nodes' two children
        for number in range(depth, 0, -1):
            level = matrix.levels[number]
            order, T = extended_order(matrix, level, delayed)
            eliminations[number] = found = backend.eliminate(A, order, T)
            kept[number] = np.concatenate(comm.allgather(found.kept))
            above = matrix.levels[number - 1] or new_level(comm, 0, depth, None)
            A, delayed = _parents(backend, comm, level, above, found.schur, kept[number])
            found.schur = None
        order = np.concatenate([np.arange(c) for c in A.rows] or [np.zeros(0, np.int64)])
        none = Blocks.shaped(backend.xp.zeros(0), np.zeros_like(A.rows), A.rows)
        error = None
        try:
            eliminations[0] = backend.eliminate(A, order, none, delay=False)
        except np.linalg.LinAlgError:
            error = _singular(damping)
        agree(comm, error)
        _check_regular(matrix, damping, eliminations)
        kept[0] = np.zeros(1, np.int64)
        return cls(matrix, damping, eliminations, kept)

    def solve_rows(self, B):
        """(H̃ + λI)⁻¹B in parameter rows, float64 [n_local, k]. Raises InputError at λ = 0 where a dead parameter's b is not 0."""
        matrix = self.matrix
        X = np.empty(B.shape, np.float64)
        for a in range(0, B.shape[1], SOLVE_COLUMNS):
            part = np.ascontiguousarray(B[:, a : a + SOLVE_COLUMNS], np.float64)
            tree = self.backend.asarray(matrix.permutation.to_tree(part))
            solved = matrix.permutation.to_parameters(self.backend.to_host(self._solve_tree_rows(tree)))
            X[:, a : a + SOLVE_COLUMNS] = solved
        if matrix.n_alive < matrix.n_params:
            self._solve_dead(B, X)
        return X

    def _solve_dead(self, B, X):
        """Dead parameters contribute λ alone: x = b / λ."""
        lo, hi = self.matrix.tree_rows(self.matrix.parameter_starts)
        dead = np.setdiff1d(np.arange(lo, hi), self.matrix.tree.permutation) - lo
        if self.damping > 0:
            X[dead] = B[dead] / self.damping
        elif self.comm.allreduce(int(np.any(B[dead]))):
            raise InputError("H̃ is singular: dead parameters have zero rows, where the right-hand side is not zero; use a damping > 0")

    def _solve_tree_rows(self, rows):
        matrix, comm, backend = self.matrix, self.comm, self.backend
        states = [None] * len(self.eliminations)
        for number in range(len(self.eliminations) - 1, -1, -1):
            rows, states[number] = self.eliminations[number].forward(rows)
            if number:
                rows = to_parents(comm, backend, rows, matrix.levels[number], self._above(number), self.kept[number])
        for number in range(len(self.eliminations)):
            if number:
                rows = to_children(comm, backend, rows, self._above(number), matrix.levels[number], self.kept[number])
            rows = self.eliminations[number].backward(rows, states[number])
        return rows

    def _above(self, number):
        return self.matrix.levels[number - 1] or self._root

    def slogdet(self):
        """(sign, log|det(H̃ + λI)|)."""
        return (0.0 if self.zero else (-1.0) ** self.negative), self.log_abs

    def inertia(self):
        """(positive, negative) eigenvalues of H̃ + λI."""
        return self.matrix.n_params - self.zero - self.negative, self.negative


def _singular(damping):
    return InputError(f"H̃ + λI is singular to working precision at damping {damping:g}: use a larger damping")


def _check_regular(matrix, damping, eliminations):
    """InputError where the smallest pivot of all nodes cannot be told from rounding: |λ| ≤ c ε max|H̃ + λI|, c the largest block."""
    xp, comm = matrix.backend.xp, matrix.comm
    parts = [matrix.near.blocks.data, *(level.far.blocks.data for level in matrix.levels[1:])]
    size = comm.allreduce(max(float(xp.max(xp.abs(part))) if part.size else 0.0 for part in parts), MPI.MAX) + damping
    order = comm.allreduce(max(int(each.W.rows.max(initial=0)) for each in eliminations), MPI.MAX)
    smallest = comm.allreduce(min(each.smallest() for each in eliminations), MPI.MIN)
    if smallest <= order * np.finfo(np.float64).eps * size:
        raise _singular(damping)


def _damped_leaves(matrix, damping):
    """D_α + λI of the own leaves in float64."""
    near, backend = matrix.near, matrix.backend
    data = backend.xp.array(near.blocks.data, dtype=np.float64)
    within = ranges(np.zeros_like(near.rows), near.rows)
    diagonal = np.repeat(near.blocks.offsets[:-1], near.rows) + within * np.repeat(near.rows + 1, near.rows)
    data[backend.asarray(diagonal)] += damping
    return Blocks.shaped(data, near.rows, near.rows)


def extended_order(matrix, level, delayed):
    """Order and T of the own nodes with their children's delayed rows [n, 2] among the redundant ones, those columns of T zero.

    A node's columns are [J_l, δ_l, J_r, δ_r]; without delayed rows these are the level's own arrays.
    """
    if not delayed.any():
        return level.order, level.T
    comm, backend = matrix.comm, matrix.backend
    columns, ranks = level.own(comm, level.columns), level.own(comm, level.ranks)
    left = matrix.levels[level.level + 1].ranks.reshape(-1, 2)[slice(*level.at(comm)), 0]
    T = Blocks.shaped(backend.xp.zeros, ranks, columns - ranks + delayed.sum(axis=1))
    none = np.zeros(len(columns), np.int64)
    backend.place(T, level.T, np.arange(len(columns)), none, none)
    orders = [np.zeros(0, np.int64)]
    for i, start in enumerate(level.column_starts[:-1]):
        order = level.order[start : start + columns[i]]
        shifted = order + np.where(order >= left[i], delayed[i, 0], 0)
        orders += [shifted, np.setdiff1d(np.arange(columns[i] + delayed[i].sum()), shifted)]
    return np.concatenate(orders), T


def _parents(backend, comm, level, above, schur, kept):
    """The parents' blocks [[D̂_l, B], [Bᵀ, D̂_r]] on their owners, and their children's delayed rows [n, 2]."""
    lo, hi = above.owned[comm.rank : comm.rank + 2]
    sizes, ranks = kept.reshape(-1, 2)[lo:hi], level.ranks.reshape(-1, 2)[lo:hi]
    data = to_parents(comm, backend, schur.data[:, None], level, above, kept**2)[:, 0]
    A = Blocks.shaped(backend.xp.zeros, sizes.sum(axis=1), sizes.sum(axis=1))
    parents, none = np.arange(hi - lo), np.zeros(hi - lo, np.int64)
    corner = np.stack([none, sizes[:, 0]], axis=1).ravel()
    backend.place(A, Blocks.shaped(data, sizes.ravel(), sizes.ravel()), np.repeat(parents, 2), corner, corner)
    backend.place(A, level.far.blocks, parents, none, sizes[:, 0])
    backend.place(A, level.far.blocks, parents, sizes[:, 0], none, transpose=True)
    return A, sizes - ranks

