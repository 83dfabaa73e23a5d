"""H̃ of dense diagonal blocks: one of all parameters (`dense`), or of a layer's, or a neuron's (`block-diagonal`)."""

import numpy as np

from hpcHess.blockwise.factors import BlockwiseFactors
from hpcHess.compressed.matrix import CompressedMatrix
from hpcHess.parallel.exchange import RowPermutation


class BlockMatrix(CompressedMatrix):
    """Symmetric H̃ [N, N] = P blockdiag(A_1 … A_b) Pᵀ; rows of parameters in no block are zero.

    permutation [n_alive]   parameter of every block row, whole on every rank
    blocks                  `blockwise.symmetric.SymmetricBlocks`, finished
    """

    solvers = ("cholesky",)

    def __init__(self, comm, backend, format, n_params, permutation, blocks, report=None):
        super().__init__(comm, backend, n_params, blocks.dtype, report)
        self.format, self.permutation, self.blocks = format, permutation, blocks
        self._to_rows = RowPermutation(comm, permutation, self.parameter_starts, blocks.layout.rows)
        self.to_homes = RowPermutation(comm, permutation, self.parameter_starts, blocks.layout.homes)

    @property
    def n_alive(self):
        """Parameters in a block."""
        return len(self.permutation)

    @property
    def dead_rows(self):
        """Own parameter rows in no block, counted from the first own one."""
        return np.setdiff1d(np.arange(self.mine.start, self.mine.stop), self.permutation) - self.mine.start

    def matmat_rows(self, V):
        """H̃V in parameter rows, [n_local, k] → [n_local, k]; the wider of stored and given precision."""
        W = np.ascontiguousarray(self._to_rows.to_tree(V), np.result_type(self.dtype, V.dtype))
        return self._to_rows.to_parameters(self.blocks.multiply(W))

    def diagonal_rows(self):
        """H̃_jj of the own parameter rows, float64."""
        return self._to_rows.to_parameters(self.blocks.diagonal()[:, None])[:, 0]

    def norm_frobenius(self):
        """‖H̃‖_F, exact."""
        return float(np.sqrt(self.blocks.norm2()))

    def storage(self):
        """Symmetric blocks once, n(n + 1)/2 numbers each."""
        entries, sizes = self.blocks.entries(), self.blocks.layout.sizes
        return {
            "storage_entries": entries,
            "storage_bytes": entries * self.dtype.itemsize,
            "storage_percent": 100.0 * entries / float(self.n_params) ** 2,
            "n_blocks": len(sizes),
            "largest_block": int(sizes.max(initial=0)),
        }

    def _factorized(self, damping, solver):
        return BlockwiseFactors(self, damping)

    def append(self, out):
        """`blocks/…` (docs/FORMAT.md) into `out`. Not collective."""
        out.whole("blocks/permutation", self.permutation)
        out.whole("blocks/starts", self.blocks.layout.starts)
        self.blocks.append(out, "blocks/values")
        return {}
