"""Direct factors of H̃ + λI for an HSS matrix (near blocks on the diagonal only): the sweep over the levels that all solvers share.

With A = D + U B Uᵀ level by level, every node eliminates what couples to nothing outside and hands D̂ = (UᵀD⁻¹U)⁻¹ (in some basis) to its
parent, whose block is [[D̂_l, B], [Bᵀ, D̂_r]]; the root is solved densely: the Woodbury identity A⁻¹ = G + E (D̂ + B)⁻¹ Eᵀ, telescoping
(Martinsson & Rokhlin, JCP 2005). O(N s²) to factor, O(N s) to solve; log|A| and inertia are sums over the eliminated parts.
`elimination`, `ulv` and `woodbury` differ in what a node does.
"""

import numpy as np
from mpi4py import MPI

from hpcHess.backend.assembly import Assembly
from hpcHess.backend.blocks import Blocks
from hpcHess.backend.elimination import Elimination
from hpcHess.compressed.damping import check_damping
from hpcHess.compressed.factors import PROBES, ROUNDS, DirectFactors
from hpcHess.hierarchical.evaluate import multiply_tree_rows
from hpcHess.parallel.agree import agree
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError
from hpcHess.skeleton.levels import new_level, to_children, to_parents

SOLVE_COLUMNS = 256  # right-hand sides in one sweep


class Factors(DirectFactors):
    """Factors of H̃ + λI, float64. `eliminations`: a level's steps (`backend`), by level 0 (root) … depth; `kept` int64 [2^level] by level,
    replicated.

    signed: whether the steps keep X_RR⁻¹ = WσWᵀ apart, so that |X_RR|⁻¹ = WWᵀ can be applied. With S the inverse applied, the backward error
    estimates ‖I − (H̃ + λI)S‖₂ from below; where that is < 1 the inertia is S's.
    All methods are collective.
    """

    def __init__(self, matrix, damping, eliminations, kept, backward_error=None):
        self.eliminations, self.kept, self.backend = eliminations, kept, matrix.backend
        comm, depth = matrix.comm, matrix.tree.depth
        self._leaf_rows = self._dead = None
        self._root = new_level(comm, 0, depth, None)
        dead = matrix.n_params - matrix.n_alive
        log_abs = comm.allreduce(sum(float(e.log_abs.sum()) for e in eliminations))
        negative = comm.allreduce(sum(int(e.negative.sum()) for e in eliminations))
        log_abs += dead * np.log(damping) if dead and damping > 0 else (-np.inf if dead else 0.0)
        super().__init__(matrix, damping, log_abs, negative, dead if damping == 0 else 0, backward_error)

    @classmethod
    def factorize(cls, matrix, damping):
        """Factor H̃ + λI. Raises InputError for a damping that is negative or not finite, a matrix that is singular, or not HSS."""
        check_damping(damping)
        if matrix.format != "hss":
            raise InputError('an FMM matrix has no direct factors, log-determinant or inertia: compress with format = "hss" for them')
        comm, backend, depth = matrix.comm, matrix.backend, matrix.tree.depth
        A, state = Assembly(matrix.near.blocks, shift=damping), None
        eliminations, kept = [None] * (depth + 1), [None] * (depth + 1)
        delayed = np.zeros((len(A), 2), np.int64)  # of the own nodes' two children
        for number in range(depth, 0, -1):
            level = matrix.levels[number]
            found = error = None
            try:
                found = cls._step(backend, A, *extended_order(matrix, level, delayed), state, delay=True)
            except np.linalg.LinAlgError:
                error = cls._singular(damping)
            agree(comm, error)
            eliminations[number], kept[number] = found, np.concatenate(comm.allgather(found.kept))
            above = matrix.levels[number - 1] or new_level(comm, 0, depth, None)
            A, delayed, state = cls._parents(backend, comm, level, above, found, kept[number])
            found.schur = None
        eliminations[0], kept[0] = cls._solved_root(matrix, damping, A), np.zeros(1, np.int64)
        _check_regular(matrix, damping, eliminations, cls._singular)
        return cls(matrix, damping, eliminations, kept)

    @staticmethod
    def _step(backend, A, order, T, state, delay):
        """The steps of a level's own blocks A (`backend.assembly.Assembly`); `state`: what `_parents` of the level below handed up. Not collective."""
        raise NotImplementedError

    @classmethod
    def _solved_root(cls, matrix, damping, A):
        backend, error, found = matrix.backend, None, None
        order = np.concatenate([np.arange(c) for c in A.rows] or [np.zeros(0, np.int64)])
        none = Blocks.shaped(backend.xp.zeros(0), np.zeros_like(A.rows), A.rows)
        try:
            found = cls._step(backend, A, order, none, None, delay=False)
        except np.linalg.LinAlgError:
            error = cls._singular(damping)
        agree(matrix.comm, error)
        return found

    @classmethod
    def _parents(cls, backend, comm, level, above, found, kept):
        """The parents' blocks on their owners, their children's delayed rows [n, 2], and what `_step` of the parents needs besides."""
        return *parent_blocks(backend, comm, level, above, found.schur, kept, level.far.blocks), None

    @staticmethod
    def _singular(damping):
        return InputError(f"H̃ + λI is singular to working precision at damping {damping:g}: use a larger damping")

    def solve_rows(self, B, absolute=False):
        """(H̃ + λI)⁻¹B in parameter rows, float64 [n_local, k]. Raises InputError at λ = 0 where a dead parameter's b is not 0.

        absolute: with the signs of the eliminated parts dropped, (L|D|Lᵀ)⁻¹B, positive definite (`preconditioner`).
        """
        matrix, X = self.matrix, None
        for a in range(0, B.shape[1], SOLVE_COLUMNS):
            solved = self._solve_columns(np.ascontiguousarray(B[:, a : a + SOLVE_COLUMNS], np.float64), absolute)
            if solved.shape == B.shape:
                X = solved
                break
            X = np.empty(B.shape) if X is None else X
            X[:, a : a + SOLVE_COLUMNS] = solved
        X = np.empty(B.shape) if X is None else X
        if matrix.n_alive < matrix.n_params:
            self._solve_dead(B, X)
        return X

    def _solve_columns(self, B, absolute):
        """Of a few right-hand sides: from and to parameter rows by the leaves where they can, else by way of tree rows."""
        matrix, backend, leaves = self.matrix, self.backend, self.eliminations[-1]
        if matrix.by_leaves and isinstance(leaves, Elimination):
            if self._leaf_rows is None:
                self._leaf_rows = matrix.tree.permutation.astype(np.int64, copy=False)[leaves.rows()]
            into = (backend.empty if matrix.n_alive == matrix.n_params else backend.zeros)(B.shape, B.dtype)
            return backend.to_host(self._sweeps(backend.asarray(B), absolute, self._leaf_rows, into))
        tree = backend.asarray(matrix.permutation.to_tree(B, backend.take_rows))
        return matrix.permutation.to_parameters(backend.to_host(self._sweeps(tree, absolute)), backend.take_rows)

    def append(self, out, prefix=""):
        """Its datasets into `out` (`hierarchical.factor_arrays`); the attributes. Not collective."""
        from hpcHess.hierarchical.factor_arrays import append_factors

        return append_factors(out, self, prefix)

    def _solve_dead(self, B, X):
        """Dead parameters contribute λ alone: x = b / λ."""
        if self._dead is None:
            lo, hi = self.matrix.tree_rows(self.matrix.parameter_starts)
            self._dead = np.setdiff1d(np.arange(lo, hi), self.matrix.tree.permutation) - lo
        dead = self._dead
        if self.damping > 0:
            X[dead] = B[dead] / self.damping
        elif self.comm.allreduce(int(np.any(B[dead]))):
            raise InputError("H̃ is singular: dead parameters have zero rows, where the right-hand side is not zero; use a damping > 0")

    def _sweeps(self, rows, absolute=False, at=None, into=None):
        """Up and down the levels, in tree rows; or from [N, k] `into` [N, k], in place, the leaves' rows in their order at `at`."""
        matrix, comm, backend, last = self.matrix, self.comm, self.backend, len(self.eliminations) - 1
        states, there = [None] * (last + 1), {} if at is None else {"rows": at}
        for number in range(last, -1, -1):
            rows, states[number] = self.eliminations[number].forward(rows, **there if number == last else {})
            if absolute:  # σWᵀb → Wᵀb: |X_RR| between the two triangular sweeps
                states[number] = self.eliminations[number].sign[:, None] * states[number]
            if number:
                rows = to_parents(comm, backend, rows, matrix.levels[number], self._above(number), self.kept[number])
        for number in range(last + 1):
            if number:
                rows = to_children(comm, backend, rows, self._above(number), matrix.levels[number], self.kept[number])
            rows = self.eliminations[number].backward(rows, states[number], **there | {"into": into} if there and number == last else {})
            states[number] = None
        return rows

    def _above(self, number):
        return self.matrix.levels[number - 1] or self._root

    @np.errstate(all="ignore")
    def _measured(self):
        """The backward error of `PROBES` random right-hand sides, and of their normalized remainders: inf where it is not a number."""
        matrix, backend, worst = self.matrix, self.backend, 0.0
        lo, hi = matrix.leaf_rows[self.comm.rank : self.comm.rank + 2]
        whole = gaussian_rows(0, "backward error", 0, matrix.n_params, range(PROBES), np.float64)
        B = np.ascontiguousarray(whole[matrix.tree.permutation[lo:hi]])
        for _ in range(ROUNDS):
            b = backend.asarray(B)
            x = self._sweeps(b)
            remainder = backend.to_host(b - multiply_tree_rows(matrix, x) - self.damping * x)
            squares = self.comm.allreduce(np.stack([np.square(each).sum(axis=0) for each in (remainder, B)]))
            ratio = np.sqrt(squares[0] / np.where(squares[1] > 0, squares[1], 1))
            if not np.isfinite(ratio).all():
                return np.inf
            worst = max(worst, float(ratio.max()))
            B = remainder / np.where(squares[0] > 0, np.sqrt(squares[0]), 1)
        return worst


def _check_regular(matrix, damping, eliminations, singular):
    """InputError where the smallest pivot of all nodes cannot be told from rounding: |λ| ≤ c ε max|H̃ + λI|, c the largest block."""
    xp, comm = matrix.backend.xp, matrix.comm
    parts = [matrix.near.blocks.data, *(level.far.blocks.data for level in matrix.levels[1:])]
    size = comm.allreduce(max(max(float(xp.max(part)), -float(xp.min(part))) if part.size else 0.0 for part in parts), MPI.MAX) + damping
    order = comm.allreduce(max(int(each.order_of_pivots()) for each in eliminations), MPI.MAX)
    smallest = comm.allreduce(min(each.smallest() for each in eliminations), MPI.MIN)
    if not smallest > order * np.finfo(np.float64).eps * size:
        raise singular(damping)


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


def blocks_to_parents(backend, comm, level, above, blocks, sizes):
    """Square blocks of the own nodes, of `sizes` [2^level], moved to the parents' owners: `Blocks` of two a parent."""
    lo, hi = above.owned[comm.rank : comm.rank + 2]
    own = sizes.reshape(-1, 2)[lo:hi].ravel()
    return Blocks.shaped(to_parents(comm, backend, blocks.data[:, None], level, above, sizes**2)[:, 0], own, own)


def parent_blocks(backend, comm, level, above, schur, kept, coupling):
    """The parents' blocks [[D̂_l, B], [Bᵀ, D̂_r]] on their owners, `coupling` the B of the own parents; their children's delayed rows [n, 2]."""
    lo, hi = above.owned[comm.rank : comm.rank + 2]
    sizes, ranks = kept.reshape(-1, 2)[lo:hi], level.ranks.reshape(-1, 2)[lo:hi]
    return Assembly(blocks_to_parents(backend, comm, level, above, schur, kept), coupling), sizes - ranks
