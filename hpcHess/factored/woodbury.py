r"""`data-woodbury`: exact solves in the space of the data. With H = GᵀG, G [M × N], M = n r (`factored.gram`):

    (H + λI)⁻¹ = λ⁻¹ (I − Gᵀ (λI + GGᵀ)⁻¹ G),    log|H + λI| = (N − M) log λ + log|λI + GGᵀ|.

G is applied by a forward and a backward sweep, GGᵀ is kept and factored. Solved so, the residual is 10 to 1000 times the ε ‖H‖ / λ of a dense solve; one step of
iterative refinement with the exact product brings it there, more steps change nothing.
"""

import numpy as np

from hpcHess.blockwise.factors import SOLVE_COLUMNS, BlockFactors
from hpcHess.blockwise.symmetric import SymmetricBlocks
from hpcHess.compressed.damping import check_damping
from hpcHess.compressed.factors import DirectFactors
from hpcHess.factored.gram import gram_blocks
from hpcHess.factored.matrix import FactoredMatrix, stored
from hpcHess.parallel.agree import agree
from hpcHess.parallel.exchange import gather_rows, reduce_rows, repartition
from hpcHess.parallel.memory import check_room
from hpcHess.runtime.errors import InputError

REFINEMENTS = 1


class DataWoodbury(FactoredMatrix):
    """`FactoredMatrix` with `gram`, the `SymmetricBlocks` of GGᵀ [M, M] in float64, rows by samples, and direct factors by it."""

    format, solvers = "data-woodbury", ("data-space",)

    def __init__(self, form, n_alive, gram, report=None):
        super().__init__(form, n_alive, report)
        self.gram = gram

    def norm_frobenius(self):
        """‖H‖_F = ‖GGᵀ‖_F, exact."""
        return float(np.sqrt(self.gram.norm2()))

    def storage(self):
        """Numbers of the factored form and of GGᵀ, once."""
        entries = self.gram.entries()
        return stored(self.form.entries + entries, self.form.bytes + entries * 8, self.n_params) | {"gram_rows": self.gram.layout.n}

    def _factorized(self, damping, solver):
        return DataSpaceFactors(self, damping)

    def append(self, out):
        """`factored/…` and `gram/values` into `out`. Not collective."""
        attributes = super().append(out)
        self.gram.append(out, "gram/values")
        return attributes


def gram_matrix(form, backend):
    """`SymmetricBlocks` of GGᵀ, not yet filled. Collective; InputError beyond the hosts' memory."""
    M, rows = form.n * form.rank, form.sample_starts * form.rank
    what = f"data-woodbury of {form.n:,} samples with {form.rank} outputs each, a matrix of {M:,} rows,"
    check_room(form.comm, SymmetricBlocks.bytes_needed(form.comm, [M], np.float64, rows, factors=True), what)
    return SymmetricBlocks(form.comm, backend, [M], np.float64, rows)


def assembled(form, backend, progress=None):
    """GGᵀ, computed. Collective."""
    gram = gram_matrix(form, backend)
    begin = int(form.sample_starts[form.comm.rank]) * form.rank
    for rows, columns, block in gram_blocks(form, progress):
        gram.piece(0)[rows.start - begin : rows.stop - begin, columns] = block
    return gram.finish()


class DataSpaceFactors(DirectFactors):
    """(H + λI)⁻¹ by a Cholesky factor of λI + GGᵀ on one rank."""

    solver = "data-space"

    def __init__(self, matrix, damping):
        check_damping(damping)
        if damping == 0:
            raise InputError("the format data-woodbury solves with H + λI for λ > 0 only: give a damping > 0")
        self._factors = BlockFactors(matrix.gram, damping, "the samples' Gram matrix")
        M = matrix.gram.layout.n
        if M < matrix.n_params and not damping > M * np.finfo(np.float64).eps * self._factors.size:  # λ is an eigenvalue of H + λI
            raise InputError(f"H + λI is singular to working precision at damping {damping:g}: use a larger damping")
        log_abs = self._factors.log_abs + (matrix.n_params - matrix.gram.layout.n) * np.log(damping)
        super().__init__(matrix, damping, log_abs)

    def solve_rows(self, B, absolute=False):
        """(H + λI)⁻¹B in parameter rows, float64 [n_local, k]."""
        X = np.empty(B.shape)
        for a in range(0, B.shape[1], SOLVE_COLUMNS):
            part = np.ascontiguousarray(B[:, a : a + SOLVE_COLUMNS], np.float64)
            found = self._plain(part)
            for _ in range(REFINEMENTS):
                found += self._plain(part - self.matrix.matmat_rows(found) - self.damping * found)
            X[:, a : a + SOLVE_COLUMNS] = found
        return X

    def _plain(self, B):
        """λ⁻¹ (B − Gᵀ (λI + GGᵀ)⁻¹ G B)."""
        form, layout, comm = self.matrix.form, self.matrix.gram.layout, self.comm
        Y = form.root_products(gather_rows(comm, B, form.parameter_starts))
        Y = self._factors.solve(repartition(comm, Y, layout.rows, layout.homes))
        Y = form.root_transposed(repartition(comm, Y, layout.homes, layout.rows))
        return (B - reduce_rows(comm, Y, form.parameter_starts)) / self.damping


def read_gram(form, file, backend):
    """What `DataWoodbury.append` wrote, on any number of ranks. Collective."""
    gram, error = gram_matrix(form, backend), None
    try:
        gram.read(file, "gram/values")
    except Exception as caught:  # of any kind: the other ranks must hear of it
        error = caught
    agree(form.comm, error)
    return gram.finish()
