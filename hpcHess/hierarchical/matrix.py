"""H̃ with nested bases (HSS, FMM): level arrays and what they answer."""

import numpy as np

from hpcHess.compressed.matrix import CompressedMatrix
from hpcHess.hierarchical.evaluate import multiply_parameter_rows, multiply_tree_rows
from hpcHess.hierarchical.norms import norm_frobenius
from hpcHess.hierarchical.solvers import DIRECT, direct_solver
from hpcHess.hierarchical.storage_count import count_storage
from hpcHess.parallel.exchange import RowPermutation


class HierarchicalMatrix(CompressedMatrix):
    """Symmetric H̃ [N, N] = near blocks + Σ over far pairs U_α B_αβ U_βᵀ, U nested (an H² matrix; HSS when near = self).

    Built by `hpcHess.compress` or `hpcHess.load`; what it offers is `compressed.matrix.CompressedMatrix`. An HSS matrix has direct factors,
    an FMM matrix a coarser HSS matrix as its `preconditioner`.
    """

    stores_factors = True

    def __init__(self, comm, backend, n_params, tree, near, levels, report=None):
        super().__init__(comm, backend, n_params, near.blocks.dtype, report)
        self.tree, self.near, self.levels = tree, near, levels
        self.leaf_parameters = None  # `evaluate.leaf_rows`
        self.by_leaves = comm.size == 1 and self.format == "hss"  # leaves own their parameters' rows, here
        self.leaf_rows = tree.leaf_starts[near.owned]  # first tree row of each rank
        self.permutation = RowPermutation(comm, tree.permutation, self.parameter_starts, self.leaf_rows)

    def __repr__(self):
        return super().__repr__()[:-1] + f", depth {self.tree.depth})"

    @property
    def format(self):
        """`hss` where every leaf is near itself alone, else `fmm`."""
        return "hss" if np.array_equal(self.near.pairs[:, 0], self.near.pairs[:, 1]) else "fmm"

    @property
    def solvers(self):
        """Forms of the direct factors of an HSS matrix; an FMM matrix has none."""
        return tuple(DIRECT) if self.format == "hss" else ()

    @property
    def n_alive(self):
        """Parameters in the tree; the other rows of H are zero."""
        return self.tree.n

    def tree_rows(self, starts):
        """This rank's (first, last) of a row partition."""
        return int(starts[self.comm.rank]), int(starts[self.comm.rank + 1])

    def matmat_rows(self, V):
        """H̃V in parameter rows, [n_local, k] → [n_local, k]; the wider of stored and given precision."""
        backend, take = self.backend, self.backend.take_rows
        if self.by_leaves:
            V = np.ascontiguousarray(V, np.result_type(self.dtype, V.dtype))
            return backend.to_host(multiply_parameter_rows(self, backend.asarray(V)))
        W = np.ascontiguousarray(self.permutation.to_tree(V, take), np.result_type(self.dtype, V.dtype))
        return self.permutation.to_parameters(backend.to_host(multiply_tree_rows(self, backend.asarray(W))), take)

    def diagonal_rows(self):
        """H̃_jj of the own parameter rows, float64: the diagonals of the leaves' own blocks."""
        blocks, own = self.near.blocks, np.flatnonzero(self.near.own[:, 0] == self.near.own[:, 1])
        values = self.backend.to_host(blocks.data)
        parts = [values[blocks.offsets[i] : blocks.offsets[i + 1]].reshape(self.near.rows[i], self.near.cols[i]).diagonal() for i in own]
        tree_rows = np.concatenate([np.zeros(0), *parts]).astype(np.float64)
        return self.permutation.to_parameters(tree_rows[:, None])[:, 0]

    def norm_frobenius(self):
        """‖H̃‖_F, exact (`hierarchical.norms`)."""
        return norm_frobenius(self)

    def storage(self):
        """Numbers, bytes and the levels' table (`hierarchical.storage_count`)."""
        return count_storage(self)

    def _factorized(self, damping, solver):
        return direct_solver(solver).factorize(self, damping)

    def append(self, out):
        """Its datasets (docs/FORMAT.md) into `out`; the format's root attributes. Not collective."""
        from hpcHess.hierarchical.file import append

        return append(self, out)
